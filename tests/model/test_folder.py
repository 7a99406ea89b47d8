"""A model folder takes the place of a model alone, and what else lies in it is kept."""

from __future__ import annotations

import os
import shutil
import stat

import pytest
import torch

from vitembed import atomic
from vitembed.config import ViTConfig
from vitembed.errors import ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.folder import check_model_folder
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.keep.run_folder import sweep

posix = pytest.mark.skipif(os.name == "nt", reason="links and modes of POSIX")


def save(folder, seed=0):
    torch.manual_seed(seed)
    vit = VisionTransformer(ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=1))
    save_model(folder, vit, Preprocess(img_size=16))
    return read_model(folder).fingerprint


@pytest.mark.parametrize("exchange", [True, False])
def test_what_is_not_ours_in_a_model_folder_is_kept(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(atomic, "exchange", lambda first, second: False)
    model = tmp_path / "mine"
    first = save(model)
    (model / "notes.txt").write_text("by hand")
    (model / "plots" / "deep").mkdir(parents=True)
    (model / "plots" / "deep" / "a.png").write_bytes(b"1")
    (model / "probe.safetensors").write_bytes(b"of the old encoder")
    if os.name != "nt":
        (model / "link").symlink_to("notes.txt")
        model.chmod(0o750)
    assert save(model, 1) != first
    assert (model / "notes.txt").read_text() == "by hand"
    assert (model / "plots" / "deep" / "a.png").read_bytes() == b"1"
    assert not (model / "probe.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    if os.name != "nt":
        assert os.readlink(model / "link") == "notes.txt"
        assert stat.S_IMODE(model.stat().st_mode) == 0o750


@pytest.mark.parametrize("config", [None, "{}", "[]", "", '{"model_type": "vit"}', '{"format": "other"}'])
def test_a_folder_of_someone_else_is_refused(tmp_path, config):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "encoder.safetensors").write_bytes(b"theirs")
    if config is not None:
        (theirs / "config.json").write_text(config)
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    for use in (check_model_folder, save):
        with pytest.raises(ModelError, match="is not replaced"):
            use(theirs)
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_file_is_refused_and_an_empty_folder_taken(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="is no folder"):
        save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    save(tmp_path / "new" / "deep" / "model")


@posix
def test_a_linked_folder_stays_linked(tmp_path):
    (tmp_path / "far").mkdir()
    for target in ("far/old", "far/none"):
        link = tmp_path / f"link{len(target)}"
        if target == "far/old":
            save(tmp_path / target)
        link.symlink_to(tmp_path / target)
        new = save(link, 1)
        assert link.is_symlink()
        assert read_model(tmp_path / target).fingerprint == new
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["none", "old"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a mount point to try")
def test_a_mount_point_is_refused():
    with pytest.raises(ModelError, match=r"mount point|holds files"):
        check_model_folder("/proc")


def test_what_a_killed_process_left_is_mended_and_nothing_else_touched(tmp_path):
    model = tmp_path / "mine"
    first = save(model)
    (model / "notes.txt").write_text("by hand")
    model.rename(tmp_path / ".mine.old-4711")  # killed between two renames
    assert read_model(model).fingerprint == first
    sweep(model)
    assert read_model(model).fingerprint == first
    shutil.copytree(model, tmp_path / ".mine.new-4712")  # killed while the replaced folder was being removed
    (tmp_path / ".mine.new-4712" / "late.txt").write_text("came in between")
    (tmp_path / ".mine.new-4713").mkdir()  # killed while it was being written
    (tmp_path / ".mine.new-4713" / "encoder.safetensors").write_bytes(b"half")
    theirs = [tmp_path / ".mine.new-notes", tmp_path / ".mine.older", tmp_path / "mine.old-1"]
    for folder in theirs:
        folder.mkdir()
        (folder / "encoder.safetensors").write_bytes(b"theirs")
    sweep(model)
    assert read_model(model).fingerprint == first
    assert (model / "notes.txt").read_text() == "by hand"
    assert (model / "late.txt").read_text() == "came in between"
    assert all((folder / "encoder.safetensors").is_file() for folder in theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["mine", *(folder.name for folder in theirs)])


@pytest.mark.parametrize("at", ["write mine", "fsync encoder.safetensors", "rename mine"])
def test_a_failure_on_the_way_leaves_the_old_model(tmp_path, monkeypatch, at):
    from vitembed import faults

    model = tmp_path / "mine"
    first = save(model)
    (model / "notes.txt").write_text("by hand")

    def hook(step):
        if step == at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(faults, "hook", hook)
    with pytest.raises(OSError, match="No space"):
        save(model, 1)
    assert read_model(model).fingerprint == first
    assert (model / "notes.txt").read_text() == "by hand"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
