"""Kills at the worst moments and at random ones; damaged files; full disks: a run ends as if nothing had happened."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitembed
from vitembed.errors import ConfigError, TrainingError
from vitembed.pretrain.keep import checkpoint_io
from vitembed.pretrain.keep.checkpoint_io import find_checkpoint, read_checkpoint, write_checkpoint
from vitembed.workspace import find_workspace

STEPS = 24
# Whatever keeps state or draws random numbers is on: teacher, averages, stochastic depth, curriculum, crops, monitors.
SETTINGS = [
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.drop_path_rate=0.3",
    "objective.head_hidden_dim=16",
    "objective.head_dim=8",
    "objective.teacher=true",
    "objective.spread=visreg",
    "objective.num_local_views=1",
    "optim.batch_size=8",
    f"optim.max_steps={STEPS}",
    "optim.export_ema=0.9",
    "optim.low_res_share=0.4",
    "trainer.log_every_steps=1",
    "trainer.accelerator=cpu",
    "trainer.num_pictures=3",
    "trainer.save_every_minutes=0",
    "data.holdout=8",
    "data.cache=disk",
    "data.num_workers=0",
]

# Starts the same command again and again in forked children; each is killed at the place it is told, the last is not.
SERVER = """
import json, os, pathlib, random, signal, sys, time
import vitembed
from vitembed._torchvision import import_torchvision
import_torchvision()
import vitembed.pretrain.fit, vitembed.pretrain.watch.report
import vitembed.images.on_demand, vitembed.model.checkpoint
from vitembed.pretrain import run
from vitembed.pretrain.keep import checkpoint_io
from vitembed.workspace import find_workspace

folder, work, places, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:]
metrics = pathlib.Path(work) / ".vitembed/runs/model/metrics.jsonl"

def dying(function, at, before=True, when=lambda *args: True):
    left = [at]
    def call(*args, **kwargs):
        hit = when(*args)
        left[0] -= hit
        if hit and left[0] == 0 and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if hit and left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

def arm(place):
    replaces = pathlib.Path.replace
    if place == "decoding":
        vitembed.images.on_demand.decode_image = dying(vitembed.images.on_demand.decode_image, 9)
    elif place == "half a state":
        checkpoint_io._Remembering.write = dying(checkpoint_io._Remembering.write, 90)
    elif place == "between the two renames":
        pathlib.Path.replace = dying(replaces, 4, when=lambda path, target: path.name == "last.ckpt.new")
    elif place == "state in place":
        checkpoint_io.fsync_directory = dying(checkpoint_io.fsync_directory, 3)
    elif place == "pictures":
        import PIL.Image
        PIL.Image.Image.save = dying(PIL.Image.Image.save, 2)
    elif place == "half the model":
        import vitembed.model.checkpoint as room
        final = lambda weights, path: pathlib.Path(path).parent.parent.name == ".vitembed"
        room.save_file = dying(room.save_file, 1, before=False, when=final)
    elif place == "model there, run.json not":
        run.write_state = dying(run.write_state, 1, when=lambda run_dir, state: state["status"] == "complete")

for place in places:
    child = os.fork()
    if child == 0:
        arm(place)
        result = vitembed.pretrain(folder, config="smoke", overrides=settings, progress=False,
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
    directory = tmp_path_factory.mktemp("images")
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{i:02}.png")
    return directory


def run(folder, work, *settings, **options):
    workspace = find_workspace(work, create=True)
    return vitembed.pretrain(
        folder, config="smoke", overrides=[*SETTINGS, *settings], workspace=workspace, progress=False, **options
    )


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run; not to be written to."""
    return run(folder, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def copied(whole, tmp_path):
    """The same as a run that was interrupted before it was exported; and its workspace."""
    work = tmp_path / "work"
    shutil.copytree(whole.run_dir.parents[2], work)
    run_dir = work / whole.run_dir.relative_to(whole.run_dir.parents[2])
    state = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({**state, "status": "running"}))
    shutil.rmtree(work / ".vitembed" / "model")
    return run_dir, work


def weights(result):
    return (result.model_dir / "encoder.safetensors").read_bytes()


def history(result):
    """What was learned at each step: everything but times, and the one alarm that depends on them."""
    clocks = {"elapsed_seconds", "images_per_second", "data_wait_share", "alarms"}
    found = []
    for line in (result.run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        alarms = [alarm for alarm in values.get("alarms", ()) if alarm["code"] != "waits_for_images"]
        found.append({key: value for key, value in values.items() if key not in clocks} | {"alarms": alarms})
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_a_run_killed_at_the_worst_moments_ends_in_the_same_bits(folder, whole, tmp_path):
    chance = random.Random(3)
    places = ["decoding", chance.uniform(0.0, 0.3), "half a state", "between the two renames", "pictures"]
    places += [chance.uniform(0.0, 0.2), "state in place", "half the model", "model there, run.json not", "never"]
    command = [sys.executable, "-c", SERVER, str(folder), str(tmp_path / "work"), json.dumps(places), *SETTINGS]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=240, check=True).stdout
    ended = [json.loads(line) for line in printed.splitlines()]
    assert [place for place, _, _ in ended] == places
    # A kill at random may come too late; all others have to strike.
    for place, code, _ in ended[:-1]:
        assert code == -signal.SIGKILL or isinstance(place, float), place
    assert ended[-1][1] == 0
    assert 0 < ended[2][2] < STEPS, "no kill came while it trained"
    resumed = run(folder, tmp_path / "work")
    assert weights(resumed) == weights(whole)
    assert history(resumed) == history(whole)
    best, expected = (load_file(result.run_dir / "best" / "encoder.safetensors") for result in (resumed, whole))
    assert all(torch.equal(best[name], expected[name]) for name in expected)
    assert not list(resumed.run_dir.glob("*.new"))
    assert [path.name for path in resumed.model_dir.parent.glob(".model*")] == []


def test_a_damaged_state_is_passed_over_for_the_one_before(folder, whole, copied, caplog):
    run_dir, work = copied
    path = run_dir / "last.ckpt"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    previous = read_checkpoint(run_dir / "previous.ckpt")
    assert previous["global_step"] == STEPS - 1
    resumed = run(folder, work)
    assert "last.ckpt is damaged: going on from the state before it, previous.ckpt" in caplog.text
    assert weights(resumed) == weights(whole)
    assert history(resumed) == history(whole)
    assert read_checkpoint(path)["global_step"] == STEPS
    assert read_checkpoint(run_dir / "previous.ckpt")["global_step"] == STEPS - 1


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    """One bit in the middle of the largest record; between records there is padding, where it does not matter."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    start = largest.header_offset
    name, extra = (int.from_bytes(data[start + at : start + at + 2], "little") for at in (26, 28))
    middle = start + 30 + name + extra + largest.file_size // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def other_archive(data):
    del data
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(2)}, file)
    return file.getvalue()


@pytest.mark.parametrize("damage", [cut, flipped, other_archive, lambda data: b"", lambda data: bytes(len(data))])
def test_a_damaged_state_without_another_is_one_clear_line(folder, copied, damage):
    run_dir, work = copied
    (run_dir / "previous.ckpt").unlink()
    path = run_dir / "last.ckpt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TrainingError, match=r"the training state .*last.ckpt is damaged .*with --fresh") as error:
        run(folder, work)
    assert "\n" not in str(error.value)
    assert path.is_file()
    assert not (work / ".vitembed" / "model").exists()


def test_a_state_with_code_in_it_is_never_run(folder, copied):
    run_dir, work = copied
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {work}/was-run",))

    for name in ("last.ckpt", "previous.ckpt"):
        (run_dir / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(TrainingError, match="damaged"):
        run(folder, work)
    assert not (work / "was-run").exists()


def test_fresh_starts_anew_and_leaves_nothing_of_the_old_run(folder, copied):
    run_dir, work = copied
    (run_dir / "last.ckpt").write_bytes(b"rubbish")
    (run_dir / "last.ckpt.new").write_bytes(b"half")
    (run_dir / "nonfinite-0000003.json").write_text("{}")
    result = run(folder, work, "optim.max_steps=2", fresh=True)
    assert result.num_steps == 2
    assert [line["step"] for line in history(result)] == [1, 2]
    assert read_checkpoint(run_dir / "previous.ckpt")["global_step"] == 1
    assert not list(run_dir.glob("*.new")) + list(run_dir.glob("nonfinite*"))
    assert not list(run_dir.glob(f"pictures/*{STEPS:07d}.png"))


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ("trainer.save_every_minutes=1", None),
        ("trainer.log_every_steps=2", None),
        ("trainer.devices=1", None),
        ("data.cache=ram", None),
        ("trainer.precision=bf16-mixed", "trainer.precision: auto -> bf16-mixed"),
        ("objective.teacher_momentum=0.9", "objective.teacher_momentum: 0.996 -> 0.9"),
        ("trainer.devices=2", "devices in all: 1 -> 2"),
    ],
)
def test_settings_that_change_what_is_learned_are_refused_and_no_others(folder, copied, changed, refused):
    _, work = copied
    if refused is None:
        assert run(folder, work, changed).completed
    else:
        with pytest.raises(ConfigError, match=f"had other settings \\({refused}.*--fresh"):
            run(folder, work, changed)


@pytest.mark.skipif(sys.platform == "win32", reason="limits file sizes as POSIX does")
def test_a_full_disk_is_one_clear_line_and_the_last_good_state_stays(folder, whole, copied):
    import resource

    run_dir, work = copied
    (run_dir / "last.ckpt").unlink()  # the one before has a step to go
    before = (run_dir / "previous.ckpt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(TrainingError, match=r"the disk is full: the training state .*Make room") as error:
            run(folder, work)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert (run_dir / "previous.ckpt").read_bytes() == before
    assert not list(run_dir.glob("*.new"))
    resumed = run(folder, work)
    assert weights(resumed) == weights(whole)
    assert history(resumed) == history(whole)


def test_no_room_for_metrics_pictures_and_report_ends_no_run(folder, whole, tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Image.Image, "save", refuse)
    monkeypatch.setattr("vitembed.pretrain.watch.report.render", refuse)
    monkeypatch.setattr("vitembed.pretrain.watch.metrics_file.append_line", refuse)
    monkeypatch.setattr("vitembed.pretrain.watch.best.save_model", refuse)
    result = run(folder, tmp_path / "work")
    assert result.completed
    assert weights(result) == weights(whole)
    for name in ("metrics.jsonl", "pictures", "report.html", "best"):
        assert sum(f"{name} is incomplete" in record.getMessage() for record in caplog.records) == 1


def test_no_room_for_the_model_at_the_end_loses_no_training(folder, whole, copied, monkeypatch):
    run_dir, work = copied

    def refuse(weights, path):
        path.write_bytes(b"half")
        raise RuntimeError("No space left on device (os error 28)")  # as safetensors says it

    monkeypatch.setattr("vitembed.model.checkpoint.save_file", refuse)
    with pytest.raises(TrainingError, match="the model cannot be written .*Training has ended and is saved"):
        run(folder, work)
    assert not list(run_dir.parents[1].glob(".model*"))
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert weights(run(folder, work)) == weights(whole)


def test_a_disk_that_is_full_gives_up_the_older_state_first(tmp_path, monkeypatch, caplog):
    state = {"global_step": 1, "state_dict": {"w": torch.zeros(1000)}, "elapsed_seconds": 0.0}
    path = tmp_path / "last.ckpt"
    write_checkpoint(state, path)
    write_checkpoint({**state, "global_step": 2}, path)
    whole = checkpoint_io._Remembering.write

    def write(self, data):
        if (tmp_path / "previous.ckpt").exists():
            raise OSError(28, os.strerror(28))
        return whole(self, data)

    monkeypatch.setattr(checkpoint_io._Remembering, "write", write)
    write_checkpoint({**state, "global_step": 3}, path)
    assert "is given up to make room" in caplog.text
    assert [read_checkpoint(tmp_path / name)["global_step"] for name in ("last.ckpt", "previous.ckpt")] == [3, 2]


def test_a_half_written_state_is_not_looked_at(tmp_path):
    state = {"global_step": 7, "state_dict": {}, "elapsed_seconds": 0.0}
    assert find_checkpoint(tmp_path) is None
    (tmp_path / "last.ckpt.new").write_bytes(b"half")
    assert find_checkpoint(tmp_path) is None
    write_checkpoint(state, tmp_path / "previous.ckpt")  # killed between the two renames
    assert find_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
