"""A run from folder to model: resumed bit for bit, planned to time, stopped with one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import vitembed
from vitembed.config import PretrainConfig
from vitembed.errors import ConfigError, DataError, TrainingError, VitembedError
from vitembed.images.cache import ImageCache
from vitembed.images.source import ImageRef
from vitembed.lock import exclusive
from vitembed.pretrain.batches import BatchStream
from vitembed.pretrain.schedule import Clock, lr_factor
from vitembed.recipes import load_config
from vitembed.workspace import find_workspace

TINY = [
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "objective.head_hidden_dim=16",
    "objective.head_dim=8",
    "optim.batch_size=8",
    "trainer.log_every_steps=1",
    "trainer.accelerator=cpu",
    "data.holdout=8",
]


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{i:02}.png")
    return directory


def run(folder, tmp_path, *settings, **options):
    return vitembed.pretrain(
        folder,
        config="smoke",
        overrides=[*TINY, *settings],
        workspace=find_workspace(tmp_path / "work", create=True),
        progress=False,
        **options,
    )


def weights(result):
    return (result.model_dir / "encoder.safetensors").read_bytes()


def lines(result):
    return [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_model_that_embeds_and_all_that_was_promised(folder, tmp_path):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    (folder / "empty.png").write_bytes(b"")
    result = run(folder, tmp_path, "optim.max_steps=6")
    assert result.completed
    assert result.num_steps == 6
    assert result.num_images == 24
    assert sorted(os.path.basename(problem.path) for problem in result.bad) == ["broken.jpg", "empty.png"]
    assert [line["step"] for line in lines(result)] == [1, 2, 3, 4, 5, 6]
    assert {"align", "spread", "patch", "loss", "lr", "images_per_second", "data_wait_share"} <= set(lines(result)[0])
    assert 0 <= lines(result)[-1]["view_retrieval"] <= 1
    pictures = {path.name for path in (result.run_dir / "pictures").iterdir()}
    assert {"neighbours-0000006.png", "reconstruction-0000006.png"} <= pictures
    for name in pictures:
        assert Image.open(result.run_dir / "pictures" / name).size[0] > 100
    encoder = vitembed.load(result.model_dir, device="cpu")
    assert encoder.embed(sorted(folder.glob("0*.png"))).vectors.shape == (10, 16)
    assert encoder.provenance["num_images"] == 24
    state = json.loads((result.run_dir / "run.json").read_text())
    assert state["status"] == "complete"
    assert state["config"]["optim"]["max_steps"] == 6


def test_same_seed_same_bits_and_another_seed_others(folder, tmp_path):
    first = weights(run(folder, tmp_path, "optim.max_steps=4", name="a"))
    assert weights(run(folder, tmp_path, "optim.max_steps=4", name="b")) == first
    assert weights(run(folder, tmp_path, "optim.max_steps=4", "seed=1", name="c")) != first


def test_a_complete_run_is_not_repeated_and_fresh_repeats_it(folder, tmp_path):
    first = run(folder, tmp_path, "optim.max_steps=2")
    stamp = (first.model_dir / "encoder.safetensors").stat().st_mtime_ns
    again = run(folder, tmp_path, "optim.max_steps=2")
    assert again.completed
    assert again.num_steps == 2
    assert (first.model_dir / "encoder.safetensors").stat().st_mtime_ns == stamp
    run(folder, tmp_path, "optim.max_steps=2", fresh=True)
    assert (first.model_dir / "encoder.safetensors").stat().st_mtime_ns > stamp


SCRIPT = """
import sys, vitembed
from pathlib import Path
from vitembed.workspace import find_workspace
result = vitembed.pretrain(sys.argv[1], config="smoke", overrides=sys.argv[4:], progress=False, name=sys.argv[3],
                           workspace=find_workspace(Path(sys.argv[2]), create=True))
print(result.completed, result.num_steps)
"""


def interrupted(folder, tmp_path, settings, number):
    """Start the run in a process of its own and send it a signal after some steps."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "work"), "killed", *settings]
    metrics = tmp_path / "work" / ".vitembed" / "runs" / "killed" / "metrics.jsonl"
    before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= before + 5:
            break
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=120)[0], process.returncode


@pytest.mark.parametrize(
    "number",
    [*(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(folder, tmp_path, number):
    # Long enough to be still running when the signal comes; a save at every step, for SIGKILL.
    settings = [*TINY, "optim.max_steps=150", "trainer.save_every_minutes=0.0005", "model.drop_path_rate=0.2"]
    settings += ["trainer.num_pictures=1"]
    printed, code = interrupted(folder, tmp_path, settings, number)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 0
        assert printed.startswith("False "), "it ended before the signal came"
    rest = ["optim.max_steps=150", "trainer.save_every_minutes=0.0005", "model.drop_path_rate=0.2"]
    rest += ["trainer.num_pictures=1"]
    resumed = run(folder, tmp_path, *rest, name="killed")
    assert resumed.completed
    assert [line["step"] for line in lines(resumed)] == list(range(1, 151))
    whole = run(folder, tmp_path, *rest, name="whole")
    assert weights(resumed) == weights(whole)


def test_a_run_that_died_before_the_export_only_exports(folder, tmp_path):
    result = run(folder, tmp_path, "optim.max_steps=3")
    expected = weights(result)
    state = json.loads((result.run_dir / "run.json").read_text())
    (result.run_dir / "run.json").write_text(json.dumps({**state, "status": "running"}))
    (result.model_dir / "encoder.safetensors").unlink()
    again = run(folder, tmp_path, "optim.max_steps=3")
    assert again.completed
    assert again.num_steps == 3
    assert weights(again) == expected


def test_a_run_that_another_process_trains_is_left_alone(folder, tmp_path):
    run_dir = tmp_path / "work" / ".vitembed" / "runs" / "model"
    run_dir.mkdir(parents=True)
    with exclusive(run_dir / "run.lock"), pytest.raises(VitembedError, match=f"written by process {os.getpid()} on"):
        run(folder, tmp_path, "optim.max_steps=3")


def test_an_interrupted_run_refuses_other_settings_and_other_images(folder, tmp_path):
    result = run(folder, tmp_path, "optim.max_steps=3")
    state = json.loads((result.run_dir / "run.json").read_text())
    (result.run_dir / "run.json").write_text(json.dumps({**state, "status": "running"}))
    with pytest.raises(ConfigError, match=r"had other settings \(optim.base_lr: 0.002 -> 0.001\).*--fresh"):
        run(folder, tmp_path, "optim.max_steps=3", "optim.base_lr=1e-3")
    next(folder.iterdir()).unlink()
    with pytest.raises(ConfigError, match=r"1 removed .*--resume-on new.*--fresh"):
        run(folder, tmp_path, "optim.max_steps=3")
    (result.run_dir / "images.jsonl").write_text("{}")  # as of a run of an earlier version, which has none
    with pytest.raises(ConfigError, match=r"24 then, 23 now.*--resume-on new.*--fresh"):
        run(folder, tmp_path, "optim.max_steps=3")
    assert run(folder, tmp_path, "optim.max_steps=3", fresh=True).completed


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(folder, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf|-inf) at step .*Lower optim.base_lr"):
        run(folder, tmp_path, "optim.max_steps=50", "optim.base_lr=1e30", "optim.grad_clip=1e30")
    work = tmp_path / "work" / ".vitembed"
    assert not (work / "model").exists()
    assert not (work / "runs" / "model" / "last.ckpt").exists()


def test_a_time_budget_ends_the_run_in_time_with_the_rate_at_its_end(folder, tmp_path):
    result = run(folder, tmp_path, "optim.max_steps=null", time_budget=12.0)
    assert result.completed
    assert result.seconds > 3
    assert lines(result)[-1]["progress"] == 1.0
    peak = 2e-3 * 8 / 256
    assert max(line["lr"] for line in lines(result)) > 0.8 * peak
    assert lines(result)[-1]["lr"] < 0.1 * peak


def test_a_budget_that_cannot_be_kept_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"a time budget of .* is too short"):
        run(folder, tmp_path, time_budget=0.5)


def test_too_few_images_is_one_clear_line(folder, tmp_path):
    for path in sorted(folder.iterdir())[5:]:
        path.unlink()
    (folder / "notes.txt").write_text("none of these")
    (folder / "empty.jpg").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"5 images in .*needs at least 8.* Left out: 1 file .*empty.jpg: zero bytes.*1 file of other"
    ):
        run(folder, tmp_path)
    (folder / "empty.jpg").unlink()
    for i in range(10):
        (folder / f"bad{i}.png").write_bytes((folder / "00.png").read_bytes()[:300])
    with pytest.raises(
        DataError, match=r"only 5 of 15 images are readable.*needs at least 8.*10 files .*bad0.png: truncated"
    ):
        run(folder, tmp_path)


def numbered(n):
    """A cache whose rows show their number."""
    images = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1).repeat(3, axis=3)
    return ImageCache(images, np.ones(n, np.float32), [ImageRef(str(i)) for i in range(n)], [])


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_image_comes_once_an_epoch_and_batches_follow_from_the_step(world_size):
    cache = numbered(50)
    streams = [BatchStream(cache, batch_size=8, seed=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    steps = 50 // (8 * world_size)
    assert streams[0].steps_per_epoch == steps
    seen = [row for step in range(steps) for stream in streams for row in stream.rows(step)]
    assert len(seen) == len(set(seen)) == steps * 8 * world_size
    assert not np.array_equal(streams[0].rows(0), streams[0].rows(steps))
    streams[0].first_step = lambda: 4
    iterator = iter(streams[0])
    for step in range(4, 12):
        assert next(iterator)["images"][:, 0, 0, 0].tolist() == streams[0].rows(step).tolist()
    iterator.close()


def test_the_schedule_rises_and_falls_as_the_formula_says():
    assert lr_factor(0.025, warmup_share=0.05, min_ratio=0.0) == pytest.approx(0.5)
    assert lr_factor(0.05, warmup_share=0.05, min_ratio=0.0) == pytest.approx(1.0)
    assert lr_factor(0.525, warmup_share=0.05, min_ratio=0.2) == pytest.approx(0.6)
    assert lr_factor(1.0, warmup_share=0.05, min_ratio=0.2) == pytest.approx(0.2)
    assert lr_factor(0.0, warmup_share=0.0, min_ratio=0.0) == pytest.approx(1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for step in range(100):
        assert lr_factor(step / 100, warmup_share=0.0, min_ratio=0.0) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    clock = Clock(max_steps=100, budget_seconds=50.0, spent_before=20.0)
    assert clock.progress(10) == pytest.approx(0.4)
    assert clock.progress(60) == pytest.approx(0.6)


@pytest.mark.parametrize("name", ["nano", "small", "base", "mae", "plain", "continue", "smoke", "emoji"])
def test_every_recipe_loads_builds_and_says_what_it_is(name):
    from vitembed.model.vit import VisionTransformer
    from vitembed.pretrain.objective import MaskedViews
    from vitembed.recipes import packaged_configs, read_recipe

    config = load_config(PretrainConfig, name)
    with torch.device("meta"):
        MaskedViews(VisionTransformer(config.model.vit()), config.objective)
    assert set(packaged_configs()) == {"nano", "small", "base", "mae", "plain", "continue", "smoke", "emoji"}
    head = read_recipe(name).splitlines()
    assert head[0].startswith("# ")
    assert any(line.startswith("# Command: vitembed pretrain") for line in head)
    assert any(line.startswith("# Source: ") for line in head)
