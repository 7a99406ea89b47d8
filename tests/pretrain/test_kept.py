"""What was trained is never lost: finished models, interrupted runs, and runs whose images have changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from vitembed_cli.main import app

import vitembed
from vitembed.errors import ConfigError, DataError, ModelError
from vitembed.model.kept import keep_finished, named_model
from vitembed.model.late import stated_fingerprint
from vitembed.pretrain.keep.image_list import changes_since, read_image_list, write_image_list
from vitembed.pretrain.keep.run_folder import note_threads, write_state
from vitembed.workspace import find_workspace

TINY = [
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "objective.head_hidden_dim=16",
    "objective.head_dim=8",
    "optim.batch_size=8",
    "trainer.log_every_steps=1",
    "trainer.num_pictures=1",
    "trainer.accelerator=cpu",
    "data.holdout=8",
    "data.num_workers=0",
]


def noise(path, seed, size=(40, 32)):
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    for number in range(12):
        noise(directory / f"{number:02}.bmp", number)
    return directory


@pytest.fixture
def place(tmp_path):
    return find_workspace(tmp_path / "work", create=True)


def run(folder, place, *settings, **options):
    return vitembed.pretrain(
        folder, config="smoke", overrides=[*TINY, *settings], workspace=place, progress=False, **options
    )


def stop_at(step, run_it, monkeypatch, module="vitembed.pretrain.module.PretrainModule"):
    """Run something that gets SIGTERM at a step of its training."""
    import importlib

    room, _, name = module.rpartition(".")
    kind = getattr(importlib.import_module(room), name)
    real = kind.training_step

    def interrupting(self, batch, batch_idx):
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, batch_idx)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "training_step", interrupting)
        stopped = run_it()
    assert not stopped.completed
    return stopped


def command(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_finished_model_is_kept(folder, place, monkeypatch):
    first = run(folder, place, "optim.max_steps=2")
    before, mark = files(first.model_dir), stated_fingerprint(first.model_dir)
    kept_as = f"model@{mark[:12]}"
    where = ("--workspace", place.root)
    # Another run is a question, and changes nothing.
    ways = rf".*--model model --name OTHER.*--fresh .*{kept_as}.*--name OTHER"
    with pytest.raises(ConfigError, match=r"finished already.*time_budget_seconds: None -> 60" + ways):
        run(folder, place, time_budget=60.0)
    with pytest.raises(ConfigError, match=r"finished already.*\(optim.max_steps: 2 -> 3\)" + ways):
        run(folder, place, "optim.max_steps=3")
    noise(folder / "more.bmp", 99)
    with pytest.raises(ConfigError, match=r"images: 1 added"):
        run(folder, place, "optim.max_steps=2")
    assert files(first.model_dir) == before
    # The same settings again find it finished; a user says --fresh.
    second = run(folder, place, "optim.max_steps=3", fresh=True)
    kept = place.dir / "models" / kept_as
    assert files(kept) == before
    assert stated_fingerprint(second.model_dir) not in (None, mark)
    old_run = place.runs_dir / kept_as
    assert json.loads((old_run / "run.json").read_text())["fingerprint"] == mark
    assert len((old_run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (old_run / "last.ckpt").is_file()
    # Both have names.
    listed = {entry["name"] for entry in json.loads(command("models", "--json", *where).stdout)}
    assert {"model", kept_as} <= listed
    monkeypatch.chdir(place.root)
    new = stated_fingerprint(second.model_dir)
    assert vitembed.load(kept_as, device="cpu").fingerprint == mark
    assert vitembed.load(f"model@{new[:12]}", device="cpu").fingerprint == new
    assert named_model(f"model@{new[:11]}", place) is None


def test_the_same_weights_again_are_not_kept_twice_nor_where_the_export_fails(folder, place):
    first = run(folder, place, "optim.max_steps=2", name="twice")
    again = run(folder, place, "optim.max_steps=2", name="twice", fresh=True)
    assert files(again.model_dir)["encoder.safetensors"] == files(first.model_dir)["encoder.safetensors"]
    assert [path.name for path in (place.dir / "models").iterdir()] == ["twice"]
    with pytest.raises(ZeroDivisionError), keep_finished(again.model_dir, place):
        _ = 1 // (len(list((place.dir / "models").glob("twice*"))) - 2)  # at no moment is it in neither place
    assert [path.name for path in (place.dir / "models").iterdir()] == ["twice"]
    # A finished run whose model was lost exports it again from its training state.
    shutil.rmtree(again.model_dir)
    run(folder, place, "optim.max_steps=2", name="twice")
    assert stated_fingerprint(again.model_dir) is not None


def test_an_interrupted_run_finishes_on_its_own_images_or_goes_on_with_those_of_today(folder, place, monkeypatch):
    steps = "optim.max_steps=4"
    whole = run(folder, place, steps, name="whole")
    assert whole.completed
    stop_at(2, lambda: run(folder, place, steps, name="cut"), monkeypatch)
    shutil.copytree(place.runs_dir / "cut", place.runs_dir / "copy")
    shutil.copytree(place.runs_dir / "cut", place.runs_dir / "third")
    noise(folder / "05a.bmp", 50)
    ways = r"1 added \(first: .*05a.bmp\)\..*on the 12 images.*--resume-on recorded.*--resume-on new.*--fresh.*@interr"
    with pytest.raises(ConfigError, match=ways):
        run(folder, place, steps, name="cut")
    finished = run(folder, place, steps, name="cut", resume_on="recorded")
    assert finished.num_images == 12
    assert files(finished.model_dir)["encoder.safetensors"] == files(whole.model_dir)["encoder.safetensors"]
    (folder / "00.bmp").unlink()
    with pytest.raises(ConfigError, match=r"1 added, 1 removed .*cannot be finished on them\). Either continue"):
        run(folder, place, steps, name="copy")
    with pytest.raises(ConfigError, match=r"gone or changed since the run began, 1 of its 12 images .*00.bmp"):
        run(folder, place, steps, name="copy", resume_on="recorded")
    onward = run(folder, place, steps, name="copy", resume_on="new")
    assert (onward.completed, onward.num_steps, onward.num_images) == (True, 4, 12)
    steps_seen = [json.loads(line)["step"] for line in (onward.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps_seen == list(range(1, 5))
    # Starting again keeps the training state under another name, and says which.
    run(folder, place, "optim.max_steps=1", name="third", fresh=True)
    assert (place.runs_dir / "third@interrupted" / "last.ckpt").is_file()
    for wrong, words in (({"resume_on": "new"}, "holds none"), ({"resume_on": "old"}, "recorded, new")):
        with pytest.raises(ConfigError, match=words):
            run(folder, place, "optim.max_steps=1", name="third", **wrong)


def test_other_pictures_of_the_same_size_are_other_images_and_copies_are_the_same(folder, place, monkeypatch):
    steps = "optim.max_steps=3"
    stop_at(1, lambda: run(folder, place, steps), monkeypatch)
    kept = {path: (path.read_bytes(), path.stat()) for path in folder.iterdir()}
    for number, (path, (data, status)) in enumerate(sorted(kept.items())[:6]):
        noise(path, 100 + number)
        assert path.stat().st_size == len(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync and unzip set times
    with pytest.raises(ConfigError, match=r"have changed: 6 changed .*cannot be finished on them"):
        run(folder, place, steps)
    for path, (data, _) in kept.items():  # as cp -r and git checkout do: the same content, other times
        path.unlink()
        path.write_bytes(data)
        os.utime(path, (1, 1))
    assert run(folder, place, steps).completed


def test_content_is_compared_where_times_differ(tmp_path):
    from vitembed.images.source import ImageRef

    small, large = tmp_path / "small\udcff.bmp", tmp_path / "large.bin"
    small.write_bytes(bytes(1000))
    large.write_bytes(bytes(3 << 20))
    refs = [ImageRef(str(small)), ImageRef(str(large)), ImageRef(str(tmp_path / "gone"))]
    write_image_list(tmp_path, refs, [["a", None, "g"]] * 3)
    listed = read_image_list(tmp_path)
    assert [image.path for image in listed] == [ref.path for ref in refs]
    assert listed[0].facts == ["a", None, "g"]
    assert not changes_since(listed, refs)
    for path in (small, large):
        os.utime(path, (1, 1))
    assert not changes_since(listed, refs)
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with small.open("r+b") as file:
        file.seek(500)
        file.write(b"x")
    assert changes_since(listed, refs).changed == [str(small), str(large)]
    for damage in ("", "{}", "[]", "garbage", "\n".join((tmp_path / "images.jsonl").read_text().splitlines()[:-1])):
        (tmp_path / "images.jsonl").write_text(damage)
        assert read_image_list(tmp_path) is None


def test_fine_tuning_finishes_on_recorded_labels_and_keeps_finished_models(tmp_path, place, monkeypatch):
    parent = tmp_path / "parent"
    import torch

    from vitembed.config import ViTConfig
    from vitembed.images.preprocess import Preprocess
    from vitembed.model.checkpoint import save_model
    from vitembed.model.vit import VisionTransformer

    torch.manual_seed(0)
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    save_model(parent, VisionTransformer(config), Preprocess(img_size=16))
    for number in range(16):
        directory = tmp_path / "labelled" / "ab"[number % 2]
        directory.mkdir(parents=True, exist_ok=True)
        noise(directory / f"{number}.png", number, (16, 16))

    def tune(*settings, **options):
        given = ["optim.batch_size=4", "trainer.accelerator=cpu", "data.num_workers=0", *settings]
        labelled = tmp_path / "labelled"
        return vitembed.finetune(
            labelled, model=parent, overrides=given, workspace=place, progress=False, name="tuned", **options
        )

    steps = "optim.max_steps=3"
    module = "vitembed.pretrain.supervised.module.FinetuneModule"
    stop_at(1, lambda: tune(steps), monkeypatch, module)
    noise(tmp_path / "labelled" / "a" / "new.png", 77, (16, 16))
    with pytest.raises(ConfigError, match=r"1 added .*--resume-on recorded; or start again"):
        tune(steps)
    with pytest.raises(ConfigError, match=r"--resume-on new is not for this run: .*would be tested"):
        tune(steps, resume_on="new")
    done = tune(steps, resume_on="recorded")
    assert (done.completed, done.num_steps) == (True, 3)
    mark, before = stated_fingerprint(done.model_dir), files(done.model_dir)
    with pytest.raises(ConfigError, match=r"finished already.*optim.max_steps: 3 -> 1"):
        tune("optim.max_steps=1")
    with pytest.raises(ConfigError, match=r"finished already"):  # a pretraining run of that name
        run(tmp_path / "labelled", place, "optim.max_steps=1", name="tuned")
    tune("optim.max_steps=1", fresh=True)
    assert files(place.dir / "models" / f"tuned@{mark[:12]}") == before
    # A classifier finds the encoder that it was trained with.
    probe = place.dir / "models" / f"tuned@{mark[:12]}" / "probe.safetensors"
    command("classify", tmp_path / "labelled", "--probe", probe, "--workspace", place.root)


def test_nothing_to_tell_apart_is_said_at_the_start(folder, place, tmp_path):
    with pytest.raises(ConfigError, match=r"img_size 32 is one patch of model.patch_size 32.*smaller model.patch_size"):
        run(folder, place, "model.patch_size=32")
    same = tmp_path / "same"
    same.mkdir()
    for number in range(9):
        noise(same / f"{number}.png", 1)
    with pytest.raises(DataError, match=r"all 9 images are the same picture, such as .*0\.png"):
        run(same, place)


def test_a_part_with_other_threads_says_that_bits_may_differ(tmp_path, caplog):
    write_state(
        tmp_path, {"status": "running", "config": {"optim": {"batch_size": 8}}, "data_key": "k", "num_images": 9}
    )
    with caplog.at_level("INFO", logger="vitembed"):
        note_threads(tmp_path, 2)
        note_threads(tmp_path, 2)
        assert not caplog.text
        note_threads(tmp_path, 1)
    assert "computes with 1 thread, the one before with 2" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["num_threads"] == 1


def test_a_model_that_is_nowhere_is_refused_by_name(place, monkeypatch):
    monkeypatch.chdir(place.root)
    with pytest.raises(ModelError, match="no model at"):
        vitembed.load("model@0123456789ab")
