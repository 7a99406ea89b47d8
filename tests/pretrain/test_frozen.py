"""When a continued run is stopped and what is kept, on made-up series of scores."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from vitembed.config import AdaptConfig, ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel, read_model
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.onward.frozen import FrozenGuard, decide, save_continued, worse_in_a_row
from vitembed.pretrain.schedule import Clock
from vitembed.pretrain.watch.best import Best


@pytest.mark.parametrize(
    ("merits", "expected"),
    [
        ([0.5], 0),
        ([0.5, 0.49], 0),  # within the tolerance of 5 %: down to 0.475
        ([0.5, 0.47], 1),
        ([0.5, 0.47, 0.2, 0.47], 3),
        ([0.5, 0.1, 0.6, 0.47, 0.47], 2),
        ([0.5, 0.1, 0.1, 0.1, 0.5], 0),
    ],
)
def test_checks_in_a_row_that_are_worse(merits, expected):
    assert worse_in_a_row(merits, 0.05) == expected


class Looks(pl.Callback):
    """Monitors that see a given accuracy after given steps."""

    def __init__(self, accuracies):
        self.accuracies = accuracies
        self.best = Best(max_rank=4)
        self.vit = VisionTransformer(ViTConfig(img_size=8, patch_size=8, embed_dim=4, depth=1, num_heads=1))

    def look(self, step):
        with torch.no_grad():
            self.vit.cls_token.fill_(step)
        look = {
            "step": step,
            "progress": step / 100,
            "rankme": 2.0,
            "view_retrieval": 0.5,
            "knn": self.accuracies[step],
        }
        self.best.add(look, self.vit, candidate=True)

    def on_train_batch_start(self, trainer, module, *args):
        if trainer.global_step == 0:
            self.look(0)

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step in self.accuracies:
            self.look(trainer.global_step)


class Module(PretrainModule):
    """Counts steps and learns nothing."""

    def __init__(self):
        pl.LightningModule.__init__(self)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock = Clock(max_steps=100, budget_seconds=None)

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def optimizer_step(self, *args, **kwargs):
        pl.LightningModule.optimizer_step(self, *args, **kwargs)

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if self.clock.ended else None  # as the saver does: it ends the run

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_before_optimizer_step(self, optimizer):
        pass

    def on_after_backward(self):
        pass

    def configure_gradient_clipping(self, *args, **kwargs):
        pass


def watch(tmp_path, accuracies, **settings):
    """The looks of a run, and the steps after which the guard ended it (or all 100)."""
    looks = Looks(accuracies)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    guard = FrozenGuard(looks.best, AdaptConfig(**settings), tmp_path)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=[looks, guard], **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.zeros(100, 1)))
    return looks, trainer.global_step


def test_three_worse_checks_in_a_row_end_the_run(tmp_path, caplog):
    with caplog.at_level("INFO", "vitembed"):
        looks, steps = watch(tmp_path, {0: 0.5, 3: 0.4, 6: 0.55, 9: 0.4, 12: 0.4, 15: 0.4, 18: 0.9})
    assert steps == 15
    assert "frozen model, before any training: rankme 2, view_retrieval 0.5, knn 0.5" in caplog.text
    assert "k-NN accuracy 0.4, frozen 0.5), 3 of 3 until the run stops" in caplog.text
    assert '"model": "frozen"' in (tmp_path / "metrics.jsonl").read_text()
    decision = decide(looks.best)
    assert decision.kept == "best"
    assert decision.words == (
        "stopped early as it only got worse; the best state of the run is kept (k-NN accuracy 0.55 at step 6): "
        "k-NN accuracy 0.4 at the end (step 15), 0.5 frozen"
    )
    assert looks.best.vit(looks.vit.config).cls_token[0, 0, 0].item() == 6.0


def test_a_run_that_stays_within_the_tolerance_goes_on(tmp_path):
    assert watch(tmp_path, {0: 0.5, 3: 0.495, 6: 0.492, 9: 0.491, 12: 0.493})[1] == 100
    assert watch(tmp_path, {0: 0.5, 3: 0.4, 6: 0.4, 9: 0.4}, patience=4)[1] == 100


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ({0: 0.5, 50: 0.4, 100: 0.6}, "last"),
        ({0: 0.5, 50: 0.9, 100: 0.5}, "last"),
        ({0: 0.5, 50: 0.6, 100: 0.49}, "best"),
        ({0: 0.5, 50: 0.5, 100: 0.49}, "frozen"),
        ({0: 0.5, 100: 0.1}, "frozen"),
    ],
)
def test_what_is_kept(accuracies, kept):
    looks = Looks(accuracies)
    for step in accuracies:
        looks.look(step)
    decision = decide(looks.best)
    assert decision.kept == kept
    assert ("the frozen model is kept unchanged" in decision.words) == (kept == "frozen")
    assert "stopped" not in decision.words
    if kept == "last" and accuracies[50] > accuracies[100]:
        assert decide(looks.best, prefer_best=True).kept == "best"


def test_without_labels_rank_times_retrieval_decides():
    looks = Looks({})
    for step, (rank, retrieval) in enumerate([(4.0, 0.5), (3.0, 0.6)]):
        look = {"step": step, "progress": float(step), "rankme": rank, "view_retrieval": retrieval}
        looks.best.add(look, looks.vit, candidate=True)
    assert decide(looks.best).kept == "frozen"  # 4 * 0.5 > 3 * 0.6


def test_the_frozen_model_is_saved_bit_for_bit_and_the_trained_one_with_its_size(tmp_path):
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=2)).eval()
    parent = SavedModel(
        vit=vit,
        preprocess=Preprocess(img_size=16, mean=(0.5, 0.5, 0.5), crop_pct=0.9),
        pool="mean",
        provenance={"made_by": "someone"},
        licence="MIT",
        fingerprint="abc",
    )
    trained = VisionTransformer(ViTConfig(img_size=32, patch_size=8, embed_dim=8, depth=1, num_heads=2))
    looks = Looks({})
    for step, accuracy in enumerate([0.5, 0.4]):
        look = {"step": step, "progress": float(step), "rankme": 1.0, "view_retrieval": 1.0, "knn": accuracy}
        looks.best.add(look, looks.vit, candidate=True)
    decision = decide(looks.best)
    kept = read_model(save_continued(tmp_path / "a", trained, parent, decision, {"num_steps": 1}))
    assert all(torch.equal(kept.vit.state_dict()[name], tensor) for name, tensor in vit.state_dict().items())
    assert (kept.preprocess, kept.pool, kept.licence) == (parent.preprocess, "mean", "MIT")
    assert kept.provenance["decision"]["kept"] == "frozen"
    assert kept.provenance["parent"] == {"fingerprint": "abc", "licence": "MIT", "provenance": {"made_by": "someone"}}
    other = read_model(save_continued(tmp_path / "b", trained, parent, None, {}))
    assert other.preprocess == Preprocess(img_size=32, mean=(0.5, 0.5, 0.5), crop_pct=0.9)
    assert (other.pool, other.licence) == ("mean", "MIT")
