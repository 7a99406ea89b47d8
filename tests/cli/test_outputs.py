"""Every command that writes refuses, before any work, a name or a file that is not its own; nothing is lost."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image

COMMANDS = {
    "search --html": (["search", "photos/discs/discs_0.png", "--html"], "out.html"),
    "search --explain page": (["search", "photos/discs/discs_0.png", "--explain"], "out.html"),
    "search --explain picture": (["search", "photos/discs/discs_0.png", "--explain"], "out.png"),
    "dupes --html": (["dupes", "--html"], "out.html"),
    "map -o": (["map", "-o"], "out.html"),
    "embed -o npy": (["embed", "photos", "-o"], "out.npy"),
    "embed -o csv": (["embed", "photos", "-o"], "out.csv"),
    "embed -o parquet": (["embed", "photos", "-o"], "out.parquet"),
    "probe --html": (["probe", "photos", "--html"], "out.html"),
    "probe --save": (["probe", "photos", "--save"], "out.safetensors"),
    "finetune --html": (["finetune", "photos", "--html"], "out.html"),
    "label --sheet page": (["label", "photos", "--classes", "a,b", "--sheet"], "out.html"),
    "label --sheet table": (["label", "photos", "--classes", "a,b", "--sheet"], "out.csv"),
    "label --save": (["label", "photos", "--classes", "a,b", "--save"], "out.safetensors"),
    "export timm": (["export", "--to", "timm", "--force", "-o"], "out.safetensors"),
    "export onnx": (["export", "--to", "onnx", "--force", "-o"], "out.onnx"),
    **{
        f"{command} --report": ([command, "photos", *more, "--report"], "out.jsonl")
        for command, more in {
            "index": [],
            "pretrain": [],
            "finetune": [],
            "probe": [],
            "classify": ["--probe", "p.safetensors"],
            "embed": ["-o", "v.npz"],
            "label": ["--classes", "a,b", "--sheet", "s.csv"],
        }.items()
    },
}
NAMES_THE_FOLDER = {"export timm", "export onnx"}  # they make missing folders


def tree(folder):
    return {
        os.path.relpath(os.path.join(top, name), folder): os.stat(os.path.join(top, name)).st_mtime_ns
        for top, _, names in os.walk(folder)
        for name in names
    }


@pytest.fixture
def place(workspace, photo_folder, vitembed, monkeypatch):
    """Whatever costs work is forbidden: a refusal must come before it."""
    from vitembed.images import decode
    from vitembed.model import encoder

    def forbidden(*_, **__):
        raise AssertionError("work was done before the refusal")

    monkeypatch.setattr(decode, "decode", forbidden)
    monkeypatch.setattr(encoder.Encoder, "embed", forbidden)
    return workspace


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_ours_is_left(command, place, vitembed):
    words, name = COMMANDS[command]
    picture = place / "photos" / "discs" / "discs_1.png"
    made = {
        "foreign": lambda path: path.write_bytes(b"path,label\nmine,by hand\n"),
        "picture": lambda path: shutil.copyfile(picture, path),
        "link to a picture": lambda path: path.symlink_to(picture),
        "folder": lambda path: path.mkdir(),
    }
    for what, make in made.items():
        make(place / name)
        before = tree(place)
        said = vitembed(*words, name, code=1).stderr
        assert said.startswith("Error: "), said
        assert said.count("\n") == 1, said
        assert {"foreign": "was not written by vitembed", "folder": "is a folder"}.get(what, "is a picture") in said
        assert tree(place) == before
        if (place / name).is_dir() and not (place / name).is_symlink():
            (place / name).rmdir()
        else:
            (place / name).unlink()
    if command not in NAMES_THE_FOLDER:
        assert "there is no folder" in vitembed(*words, f"none/{name}", code=1).stderr
    if command != "export timm":  # any other name than .safetensors is that of a folder
        code = 2 if command.startswith(("embed -o", "label --sheet")) else 1
        vitembed(*words, picture.with_suffix(".jpg"), code=code)
        assert not picture.with_suffix(".jpg").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("name", ["", ".", "..", "../../notes", "/ABSOLUTE", "a/b", "a.b"])
def test_a_name_is_no_path(command, name, place, vitembed):
    (place / "notes").mkdir()
    (place / "notes" / "mine.txt").write_text("by hand")
    (place / ".vitembed" / "models" / "other").mkdir(parents=True)
    before = tree(place)
    name = name.replace("/ABSOLUTE", str(place / "notes"))
    said = vitembed(command, "photos", "--name", name, code=1).stderr
    assert "--name" in said
    assert said.count("\n") == 1
    assert tree(place) == before
    assert not (place / ".vitembed" / "runs").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_model_replaces_no_folder_that_is_none(command, place, vitembed):
    theirs = place / ".vitembed" / "models" / "mine"
    theirs.mkdir(parents=True)
    (theirs / "config.json").write_text('{"model_type": "vit"}')  # another project's
    before = tree(place)
    assert "is not replaced" in vitembed(command, "photos", "--name", "mine", code=1).stderr
    assert tree(place) == before


def test_exports_replace_only_exports(place, vitembed):
    (place / "enc.md").write_text("my notes")
    said = vitembed("export", "--to", "timm", "-o", "enc.safetensors", code=1).stderr
    assert "enc.md is there already" in said
    assert (
        "was not written by vitembed"
        in vitembed("export", "--to", "timm", "-o", "enc.safetensors", "--force", code=1).stderr
    )
    assert (place / "enc.md").read_text() == "my notes"
    (place / "n.txt").write_text("mine")
    for to in ("hf", "timm"):
        assert "is no folder" in vitembed("export", "--to", to, "-o", "n.txt", "--force", code=1).stderr
    (place / "theirs").mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (place / "theirs" / name).write_text("{}")
    before = tree(place)
    for to in ("hf", "timm"):
        assert "is no export of vitembed" in vitembed("export", "--to", to, "-o", "theirs", "--force", code=1).stderr
    assert tree(place) == before
    assert not [path.name for path in place.iterdir() if path.name.startswith(".") and path.name != ".vitembed"]
    vitembed("export", "--to", "hf", "-o", "enc")
    (place / "link").symlink_to("enc")
    vitembed("export", "--to", "hf", "-o", "link", "--force")
    assert (place / "link").is_symlink()


def test_the_demo_takes_only_its_own_folder_and_keeps_what_is_the_users(tmp_path):
    from vitembed.demo.tour import _prepare
    from vitembed.errors import DataError

    out = tmp_path / "out"
    for made in ("model", "models/mine", "labels", "runs/model", "runs/mine", "index"):
        (out / ".vitembed" / made).mkdir(parents=True)
    (out / "demo.json").write_text('{"colour": "red"}')
    before = tree(out)
    with pytest.raises(DataError, match="not from an earlier demo"):
        _prepare(out)
    assert tree(out) == before
    (out / "demo.json").write_text('{"made_by": "vitembed demo"}\n')
    _prepare(out)
    assert sorted(os.listdir(out / ".vitembed")) == ["labels", "models", "runs"]
    assert os.listdir(out / ".vitembed" / "runs") == ["mine"]
    Image.new("RGB", (4, 4)).save(tmp_path / "file.png")
    with pytest.raises(DataError, match="is no folder"):
        _prepare(tmp_path / "file.png")
