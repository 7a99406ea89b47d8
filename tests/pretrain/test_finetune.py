"""Fine-tuning as a whole: it learns, splits as the probe does, survives kills bit for bit, and refuses what it must."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitembed
from vitembed.config import ViTConfig
from vitembed.errors import ConfigError, DataError, ModelError, TrainingError
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import find_images
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.supervised.validation import Validation
from vitembed.probe.classify import classify
from vitembed.probe.evaluation.study import study
from vitembed.probe.labelled_vectors import embed_labelled
from vitembed.probe.labels import read_labelled
from vitembed.probe.saving import SavedProbe
from vitembed.workspace import find_workspace

STEPS = 24
# Whatever keeps state or draws random numbers is on: stochastic depth, mixing, averages, the head's phase.
SETTINGS = [
    "model.drop_path_rate=0.3",
    "optim.batch_size=8",
    f"optim.max_steps={STEPS}",
    "optim.export_ema=0.5",
    "labels.mix_prob=0.8",
    "split.validation_share=0.45",
    "trainer.accelerator=cpu",
    "trainer.log_every_steps=1",
    "trainer.save_every_minutes=0",
    "data.num_workers=0",
]

# Starts the same command again and again in forked children; each is killed at the place it is told, the last is not.
SERVER = """
import json, os, pathlib, signal, sys, time
import vitembed
from vitembed._torchvision import import_torchvision
import_torchvision()
import vitembed.pretrain.supervised.teach, vitembed.pretrain.supervised.compare
from vitembed.pretrain.supervised import run
from vitembed.pretrain.keep import checkpoint_io
from vitembed.workspace import find_workspace

folder, model, work, places, settings = *sys.argv[1:4], json.loads(sys.argv[4]), sys.argv[5:]
metrics = pathlib.Path(work) / ".vitembed/runs/finetuned/metrics.jsonl"

def dying(function, at, when=lambda *args: True):
    left = [at]
    def call(*args, **kwargs):
        left[0] -= when(*args)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

def arm(place):
    replaces = pathlib.Path.replace
    if place == "half a state":
        checkpoint_io._Remembering.write = dying(checkpoint_io._Remembering.write, 200)
    elif place == "between the two renames":
        pathlib.Path.replace = dying(replaces, 4, lambda path, target: path.name == "last.ckpt.new")
    elif place == "before the model":
        run._export = dying(run._export, 1)
    elif place == "model there, run.json not":
        run.write_state = dying(run.write_state, 1, lambda run_dir, state: state["status"] == "complete")

for place in places:
    child = os.fork()
    if child == 0:
        arm(place)
        result = vitembed.finetune(folder, model=model, overrides=settings, progress=False,
                                   workspace=find_workspace(pathlib.Path(work), create=True))
        os._exit(0 if result.completed else 1)
    if isinstance(place, float):  # seconds after the first step
        while not metrics.exists():
            time.sleep(0.01)
        time.sleep(place)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    lines = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    print(json.dumps([place, os.waitstatus_to_exitcode(status), lines]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """180 noisy images of 3 classes: a bright spot anywhere, in the first channel, in the last, or none."""
    root = tmp_path_factory.mktemp("spots")
    rng = np.random.default_rng(0)
    for number in range(180):
        kind = number % 3
        pixels = 100 + 30 * rng.standard_normal((16, 16, 3))
        top, left = rng.integers(0, 12, 2)
        if kind < 2:
            pixels[top : top + 4, left : left + 4, (0, 2)[kind]] += 80
        (root / "abc"[kind]).mkdir(exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / "abc"[kind] / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    config = ViTConfig(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    return save_model(tmp_path_factory.mktemp("model") / "m", VisionTransformer(config), Preprocess(img_size=16))


def run(folder, model, work, *settings, **options):
    workspace = find_workspace(work, create=True)
    return vitembed.finetune(
        folder, model=model, overrides=[*SETTINGS, *settings], workspace=workspace, progress=False, **options
    )


@pytest.fixture(scope="module")
def whole(folder, model, tmp_path_factory):
    """An uninterrupted run; not to be written to."""
    return run(folder, model, tmp_path_factory.mktemp("whole"))


def weights(result):
    return (result.model_dir / "encoder.safetensors").read_bytes(), result.probe_file.read_bytes()[-5000:]


@pytest.fixture(scope="module")
def learned(folder, model, tmp_path_factory):
    """A run long enough to learn something, with a probe to compare with."""
    settings = ["optim.max_steps=160", "optim.batch_size=32", "optim.base_lr=0.01", "optim.export_ema=0"]
    gentle = ["labels.mix_prob=0.3", "model.drop_path_rate=0", "augment.preset=none", "augment.hflip_prob=0.5"]
    scale = [
        "optim.encoder_lr_scale=1",
        "optim.layer_decay=1",
        "split.validation_share=0",
        "trainer.log_every_steps=50",
    ]
    work = tmp_path_factory.mktemp("learned")
    return run(folder, model, work, "trainer.save_every_minutes=5", *settings, *gentle, *scale)


def test_what_the_frozen_encoder_cannot_tell_apart_is_learned(learned):
    report = learned.report
    assert learned.completed
    assert report["linear"]["accuracy"] < 0.75
    assert report["finetuned"]["accuracy"] > 0.9
    assert report["verdict"]["tone"] == "gain"
    assert learned.verdict.startswith("fine-tuning gains +")
    assert learned.gain == pytest.approx(report["tests"][0]["difference"])
    assert read_model(learned.model_dir).provenance["verdict"]["tone"] == "gain"
    assert (
        read_model(learned.model_dir).provenance["parent"]["fingerprint"] != read_model(learned.model_dir).fingerprint
    )


def test_the_split_and_the_frozen_scores_are_those_of_the_probe(folder, model, whole):
    found = embed_labelled(read_labelled(folder), [vitembed.load(model, device="cpu")])
    probed = study(found.embeddings[0], num_draws=0, seed=0, test_share=0.25).report.to_dict()
    for key in ("num_train", "num_test", "num_near_duplicates", "majority", "knn", "linear"):
        assert whole.report[key] == probed[key], key
    assert whole.report["num_learned_from"] + whole.report["validation"]["num_images"] == probed["num_train"]
    assert whole.report["validation"]["num_images"] > 50


def test_classify_says_what_the_trained_classifier_says(folder, learned):
    saved = SavedProbe.load(learned.probe_file)
    assert (saved.kind, saved.classes) == ("mlp", ["a", "b", "c"])
    encoder = vitembed.load(learned.model_dir, device="cpu")
    refs = find_images([folder / "a", folder / "b"]).refs
    results = [result for batch in classify(encoder, refs, saved, num_workers=0) for result in batch.results]
    # The classifier in torch, from the weights in the files: encoder, then two linear layers with GELU between.
    tensors = load_file(learned.probe_file)
    pixels = np.stack([encoder.preprocess.load(ref) for ref in refs])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (encoder.preprocess.mean, encoder.preprocess.std))
    with torch.no_grad():
        cls = encoder.vit((x - mean) / std).cls.double()
        hidden = torch.nn.functional.gelu(cls @ tensors["hidden_coef"].T + tensors["hidden_intercept"])
        expected = (hidden @ tensors["coef"].T + tensors["intercept"]).softmax(dim=1).numpy()
    np.testing.assert_allclose([result.probability for result in results], expected.max(axis=1), atol=1e-5)
    assert [result.guess for result in results] == [saved.classes[i] for i in expected.argmax(axis=1)]
    assert saved.threshold == learned.report["abstain"]["threshold"]
    assert saved.meta["scores"] == learned.report["finetuned"]
    # More of these were learned from than tested, so they cannot be much worse.
    right = np.mean([os.path.basename(os.path.dirname(result.path)) == result.guess for result in results])
    assert right > learned.report["finetuned"]["accuracy"] - 0.1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_a_killed_run_ends_in_the_same_bits(folder, model, whole, tmp_path):
    chance = random.Random(5)
    places = [chance.uniform(0.0, 0.2), "half a state", "between the two renames", "before the model"]
    places += ["model there, run.json not", "never"]
    arguments = [str(folder), str(model), str(tmp_path / "work"), json.dumps(places), *SETTINGS]
    printed = subprocess.run(
        [sys.executable, "-c", SERVER, *arguments], stdout=subprocess.PIPE, text=True, timeout=240, check=True
    ).stdout
    ended = [json.loads(line) for line in printed.splitlines()]
    assert [place for place, _, _ in ended] == places
    # A kill at random may come too late; all others have to strike.
    for place, code, _ in ended[:-1]:
        assert code == -signal.SIGKILL or isinstance(place, float), place
    assert ended[-1][1] == 0
    assert 0 < ended[1][2] < STEPS, "no kill came while it trained"
    resumed = run(folder, model, tmp_path / "work")
    assert weights(resumed) == weights(whole)
    assert resumed.report == whole.report
    assert [path.name for path in resumed.model_dir.parent.glob(".finetuned*")] == []


def test_looks_are_made_after_each_pass_and_at_the_end(whole):
    steps_per_pass = whole.report["num_learned_from"] // 8
    assert [look["step"] for look in whole.report["validation"]["looks"]] == [
        step for step in range(1, STEPS + 1) if step % steps_per_pass == 0 or step == STEPS
    ]


def test_an_epoch_is_taken_before_the_last_only_where_it_is_clearly_better():
    pool = type("Pool", (), {"__len__": lambda self: 100})()
    validation = Validation(None, torch.zeros(0, dtype=torch.int64), steps_per_epoch=1, max_steps=3)
    assert validation.chosen is None
    validation.pool = pool
    validation.looks = [
        {"step": step, "val_accuracy": accuracy, "val_loss": 1.0} for step, accuracy in ((1, 0.5), (2, 0.8), (3, 0.77))
    ]
    validation.best = validation.looks[1]
    assert validation.chosen == validation.looks[2]  # sqrt(0.8 * 0.2 / 100) = 0.04
    validation.looks[2]["val_accuracy"] = 0.75
    assert validation.chosen == validation.looks[1]


@pytest.fixture
def interrupted(folder, model, whole, tmp_path):
    """The workspace of a run that was interrupted before its export."""
    work = tmp_path / "work"
    shutil.copytree(whole.run_dir.parents[2], work)
    path = work / ".vitembed/runs/finetuned/run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))
    return work


def test_other_settings_and_labels_are_refused_and_fresh_starts_anew(folder, model, whole, interrupted, tmp_path):
    with pytest.raises(ConfigError, match=r"labels\.smoothing: 0\.1 -> 0\.2.*--fresh"):
        run(folder, model, interrupted, "labels.smoothing=0.2")
    rows = [f"{path},{path.parent.name}" for path in sorted(folder.glob("*/*.png"))]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label", *rows[:-1], rows[-1][:-1] + "a"]))
    with pytest.raises(ConfigError, match="have changed: their labels, split or groups"):
        run(table, model, interrupted)
    again = run(folder, model, interrupted, "optim.max_steps=2", fresh=True)
    assert again.num_steps == 2
    assert weights(again) != weights(whole)


def test_a_complete_run_is_not_trained_again(folder, model, whole, caplog):
    with caplog.at_level("INFO", logger="vitembed"):
        again = run(folder, model, whole.run_dir.parents[2])
    assert "has finished already" in caplog.text
    assert again.report == whole.report


def test_a_signal_saves_and_the_same_call_goes_on(folder, model, whole, tmp_path, monkeypatch):
    from vitembed.pretrain.supervised.module import FinetuneModule

    step = FinetuneModule.training_step

    def interrupting(self, batch, batch_idx):
        if self.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(FinetuneModule, "training_step", interrupting)
        stopped = run(folder, model, tmp_path / "work")
    assert (stopped.completed, stopped.num_steps, stopped.report) == (False, 7, {})
    assert not stopped.model_dir.exists()
    assert weights(run(folder, model, tmp_path / "work")) == weights(whole)


def test_a_loss_that_is_no_number_stops_the_run_in_one_line(folder, model, tmp_path, monkeypatch):
    from vitembed.pretrain.supervised import module

    loss = module.soft_cross_entropy
    monkeypatch.setattr(module, "soft_cross_entropy", lambda *args, **kwargs: loss(*args, **kwargs) * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 1") as raised:
        run(folder, model, tmp_path / "work")
    assert "\n" not in str(raised.value)


def test_a_time_budget_ends_the_run(folder, model, tmp_path):
    result = run(folder, model, tmp_path / "work", "optim.max_steps=100000", "trainer.save_every_minutes=5",
                 time_budget=6.0)  # fmt: skip
    assert result.completed
    assert result.num_steps < 100_000
    with pytest.raises(ConfigError, match="a time budget of 1 s is too short"):
        run(folder, model, tmp_path / "other", time_budget=1.0)


def test_what_cannot_be_done_is_one_line(folder, model, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="has no model yet"):
        run(folder, None, tmp_path / "empty")
    work = find_workspace(tmp_path / "own", create=True)
    shutil.copytree(model, work.dir / "models" / "mine")
    with pytest.raises(ConfigError, match="would replace .*--name"):
        run(folder, "mine", tmp_path / "own", name="mine")
    with pytest.raises(DataError, match="no such file or folder"):
        run(tmp_path / "none", model, tmp_path / "own")
    shutil.copytree(folder / "a", tmp_path / "one" / "a")
    with pytest.raises(DataError, match="two or more are needed"):
        run(tmp_path / "one", model, tmp_path / "own")
    with pytest.raises(ConfigError, match="parent asks for the model"):
        run(folder, model, tmp_path / "own", "parent=abc")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="one process"):
        run(folder, model, tmp_path / "own")


def test_a_linear_head_is_a_probe_of_the_first_format(folder, model, tmp_path):
    result = run(folder, model, tmp_path / "work", "model.head=linear", "optim.max_steps=1", "optim.base_lr=1e-9",
                 "optim.export_ema=0", "split.validation_share=0")  # fmt: skip
    saved = SavedProbe.load(result.probe_file)
    assert saved.kind == "linear"
    # It started as the linear probe, and nothing was learned: the same answers on the same test images.
    assert result.report["finetuned"]["accuracy"] == result.report["linear"]["accuracy"]
    assert result.report["verdict"]["tone"] == "none"
    assert "keep the frozen encoder" in result.verdict


def test_a_class_without_training_images_is_never_answered(folder, model, tmp_path):
    rows = []
    for path in sorted(folder.glob("*/*.png"))[::4]:
        part = "test" if path.parent.name == "a" or int(path.stem) % 3 == 0 else "train"
        rows.append(f"{path},{path.parent.name},{part}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    result = run(table, model, tmp_path / "work", "optim.max_steps=2", "split.validation_share=0")
    assert SavedProbe.load(result.probe_file).classes == ["b", "c"]
    (never,) = [row for row in result.report["classes"] if row["label"] == "a"]
    assert never["num_train"] == 0
    assert never["finetuned_recall"] == 0
    assert any("never right" in note for note in result.report["notes"])
