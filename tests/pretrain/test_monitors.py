"""Monitors in real runs: they change nothing, and what they found survives an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import vitembed
from vitembed.model.checkpoint import read_model
from vitembed.pretrain.schedule import Clock
from vitembed.pretrain.watch.monitors import Monitors, undisturbed
from vitembed.pretrain.watch.progress import RunLog
from vitembed.workspace import find_workspace

TINY = [
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "model.drop_path_rate=0.2",
    "objective.head_hidden_dim=16",
    "objective.head_dim=8",
    "optim.batch_size=8",
    "optim.max_steps=24",
    "trainer.accelerator=cpu",
    "trainer.log_every_steps=1",
    "trainer.num_pictures=3",
    "data.holdout=16",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes that differ in colour."""
    directory = tmp_path_factory.mktemp("images")
    for name, colour in (("dark", 40), ("light", 190)):
        (directory / name).mkdir()
        for i in range(16):
            noise = np.random.default_rng(i).integers(-40, 40, (40, 48, 3))
            Image.fromarray((noise + colour).clip(0, 255).astype(np.uint8)).save(directory / name / f"{i:02}.png")
    return directory


def run(folder, tmp_path, *settings, name="model", **options):
    workspace = find_workspace(tmp_path / "work", create=True)
    return vitembed.pretrain(
        folder,
        config="smoke",
        overrides=[*TINY, *settings],
        workspace=workspace,
        name=name,
        progress=False,
        **options,
    )


def weights(directory):
    return (Path(directory) / "encoder.safetensors").read_bytes()


def lines(result):
    return [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_the_same_bit_for_bit_whoever_looks(folder, tmp_path):
    # An average that is exported, so that what is looked at is not what is trained.
    extra = ["objective.teacher=true", "optim.export_ema=0.9"]
    watched = run(folder, tmp_path, *extra, name="watched")
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    alone = run(folder, tmp_path, *extra, "trainer.num_pictures=0", "monitor.labels=none", name="alone")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
    assert weights(watched.model_dir) == weights(alone.model_dir)
    same = ("step", "lr", "loss", "align", "spread", "patch", "grad_norm")
    assert [[line[key] for key in same] for line in lines(watched)] == [
        [line[key] for key in same] for line in lines(alone)
    ]
    assert [look["step"] for look in watched.monitor["looks"]] == [0, 8, 16, 24]
    assert {"knn", "linear", "rankme", "view_retrieval", "mean_cosine"} < set(watched.monitor["looks"][0])
    assert alone.monitor["looks"] == []
    assert "Nothing was looked at" in alone.report.read_text()


def test_a_run_with_one_view_is_looked_at_alike(folder, tmp_path):
    one = ["objective.num_views=1", "objective.spread=none", "optim.max_steps=2"]
    result = run(folder, tmp_path, *one, "monitor.labels=none")
    assert [look["step"] for look in result.monitor["looks"]] == [0, 1, 2]
    assert all(0 < look["view_retrieval"] <= 1 for look in result.monitor["looks"])
    assert (result.run_dir / "pictures" / "reconstruction-0000000.png").is_file()
    assert "knn" not in result.monitor["looks"][0]


def test_what_was_looked_at_is_in_metrics_report_and_model_folders(folder, tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "<b>bad.png").write_bytes(b"\x89PNG\r\n\x1a\n no")
    result = run([folder, tmp_path / "extra"], tmp_path, f"monitor.labels={folder}")
    looks, best_step = result.monitor["looks"], result.monitor["best_step"]
    assert best_step == max(looks[1:], key=lambda look: (look["knn"], look["step"]))["step"]
    scores = {look["step"]: look for look in looks}
    for line in lines(result):
        assert line["monitor_step"] == max(step for step in scores if step <= line["step"] or step == 0)
        assert line["knn"] == scores[line["monitor_step"]]["knn"]
        assert line["grad_norm"] > 0
        assert 0 <= line["grad_clipped"] <= 1
    last, best = read_model(result.model_dir), read_model(result.run_dir / "best")
    assert last.provenance["which"] == "last"
    assert last.provenance["scores"] == looks[-1]
    assert best.provenance["which"] == "best"
    assert best.provenance["scores"]["step"] == best_step
    assert (weights(result.run_dir / "best") == weights(result.model_dir)) == (best_step == 24)
    page = result.report.read_text()
    for part in ("complete", "k-NN accuracy", "View retrieval", "before training", "Step 24", "&lt;b&gt;bad.png"):
        assert part in page
    assert "<b>bad.png" not in page
    assert page.count("data:image/") == 2 * len({0, best_step, 24})
    assert "optim.max_steps" in page
    repeated = run([folder, tmp_path / "extra"], tmp_path, f"monitor.labels={folder}")
    assert repeated.monitor == result.monitor


class Broken(Exception):
    """Stands for a machine that fails."""


def break_at(monkeypatch, step):
    """Let the run die at a step, after what comes before in that step."""
    write = RunLog.write

    def writing(self, trainer, module):
        if trainer.global_step == step:
            raise Broken("the machine failed")
        write(self, trainer, module)

    monkeypatch.setattr(RunLog, "write", writing)


@pytest.mark.slow
@pytest.mark.parametrize("step", [12, 17])
def test_a_resumed_run_finds_the_same_best_and_tells_the_whole_story(folder, tmp_path, monkeypatch, step):
    settings = ["monitor.export=best", "optim.base_lr=0.02"]
    whole = run(folder, tmp_path, *settings, name="whole")
    # Saved at step 8 at the latest, where the monitors looked; with step 17 a look at 16 is lost and made again.
    saving = ["trainer.save_every_minutes=0.000001"] if step == 12 else []
    with monkeypatch.context() as patch:
        break_at(patch, step)
        if step == 17:
            keep_first_save(patch, at=8)
        with pytest.raises(Broken):
            run(folder, tmp_path, *settings, *saving, name="broken")
    run_dir = whole.run_dir.parent / "broken"
    assert "Stopped: the machine failed" in (run_dir / "report.html").read_text()
    resumed = run(folder, tmp_path, *settings, name="broken")
    assert resumed.monitor == whole.monitor
    assert weights(resumed.run_dir / "best") == weights(whole.run_dir / "best")
    assert weights(resumed.model_dir) == weights(whole.model_dir) == weights(whole.run_dir / "best")
    assert read_model(resumed.model_dir).provenance["which"] == "best"
    assert [line["step"] for line in lines(resumed)] == list(range(1, 25))
    page = resumed.report.read_text()
    assert "Step 0: before training" in page
    assert "complete" in page
    assert "Stopped" not in page
    assert len(resumed.monitor["looks"]) == 4


def keep_first_save(patch, *, at):
    """Save at one step only."""
    from vitembed.pretrain.keep.saving import Saver

    end = Saver.on_train_batch_end

    def ending(self, trainer, module, *args):
        self.every_seconds = 0.0 if trainer.global_step == at else 1e9
        end(self, trainer, module, *args)

    patch.setattr(Saver, "on_train_batch_end", ending)


def test_fresh_leaves_nothing_of_the_old_run(folder, tmp_path):
    first = run(folder, tmp_path, "optim.max_steps=4")
    again = run(folder, tmp_path, "optim.max_steps=2", fresh=True)
    assert again.run_dir == first.run_dir
    assert [line["step"] for line in lines(again)] == [1, 2]
    assert not list(again.run_dir.glob("pictures/*0000004.png"))
    assert read_model(again.run_dir / "best").provenance["scores"]["step"] <= 2


def test_modules_keep_their_modes():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout()))
    module.train()
    module[1].eval()
    module[1][1].train()
    with undisturbed(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False, False, True]


def test_event_files_hold_what_metrics_hold(folder, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(folder, tmp_path, "optim.max_steps=6", "monitor.tensorboard=true")
    events = EventAccumulator(str(result.run_dir / "tensorboard"))
    events.Reload()
    made = {event.step: event.value for event in events.Scalars("loss/loss")}
    assert made == pytest.approx({line["step"]: line["loss"] for line in lines(result)})
    assert [event.step for event in events.Scalars("encoder/knn")] == [0, 2, 4, 6]
    assert [event.step for event in events.Images("neighbours")] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("budget", "world_size", "looked", "expected"),
    [(100.0, 1, 8.0, True), (100.0, 1, 7.0, False), (None, 1, 8.0, False), (100.0, 2, 8.0, False)],
)
def test_looking_leaves_the_time_to_training(budget, world_size, looked, expected):
    """After 50 s: 8 s are more than 15 %, 7 s are not; runs by steps and joint runs look when it is due."""
    clock = Clock(max_steps=None, budget_seconds=budget, spent_before=50.0)
    assert Monitors.costs_too_much(SimpleNamespace(seconds=looked), clock, world_size) is expected
