"""Commands that write refuse, before any work, a name or a file that is not their own; links, pipes and modes stay."""

from __future__ import annotations

import os
import shutil
import stat
import threading

import numpy as np
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
WHOLE = ("search --explain picture", "embed -o parquet", "probe --save", "finetune --report")
"""Commands that are tried with all that may be in the way; exports make missing folders."""


def tree(folder):
    return {
        os.path.relpath(os.path.join(top, name), folder): os.stat(os.path.join(top, name)).st_mtime_ns
        for top, _, names in os.walk(folder)
        for name in names
    }


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, model_folder):
    """A workspace with 12 images of two classes."""
    root = tmp_path_factory.mktemp("outputs")
    shutil.copytree(model_folder, root / ".vitembed" / "model")
    rng = np.random.default_rng(0)
    for kind in ("discs", "squares"):
        (root / "photos" / kind).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            Image.fromarray(pixels).save(root / "photos" / kind / f"{kind}_{number}.png")
    return root


@pytest.fixture
def idle(monkeypatch):
    """Whatever costs work is forbidden: a refusal must come before it."""
    from vitembed.images import decode
    from vitembed.model import encoder

    def forbidden(*_, **__):
        raise AssertionError("work was done before the refusal")

    monkeypatch.setattr(decode, "_decode", forbidden)
    monkeypatch.setattr(encoder.Encoder, "embed", forbidden)


@pytest.fixture
def place(drawn, idle, tmp_path, monkeypatch):
    """A copy of it, where nothing may be embedded."""
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_ours_is_left(command, drawn, idle, vitembed, monkeypatch):
    monkeypatch.chdir(drawn)
    words, name = COMMANDS[command]
    picture = drawn / "photos" / "discs" / "discs_1.png"
    made = {
        "foreign": lambda path: path.write_bytes(b"path,label\nmine,by hand\n"),
        "link to a picture": lambda path: path.symlink_to(picture),
    }
    if command in WHOLE:
        made["picture"] = lambda path: shutil.copyfile(picture, path)
        made["folder"] = lambda path: path.mkdir()
    for what, make in made.items():
        make(drawn / name)
        before = tree(drawn)
        said = vitembed(*words, name, code=1).stderr
        assert said.startswith("Error: "), said
        assert said.count("\n") == 1, said
        assert {"foreign": "was not written by vitembed", "folder": "is a folder"}.get(what, "is a picture") in said
        assert tree(drawn) == before
        if what == "folder":
            (drawn / name).rmdir()
        else:
            (drawn / name).unlink()
    if command in WHOLE:
        assert "there is no folder" in vitembed(*words, f"none/{name}", code=1).stderr
    if command != "export timm":  # any other name than .safetensors is that of a folder
        code = 2 if command.startswith(("embed -o", "label --sheet")) else 1
        vitembed(*words, picture.with_suffix(".jpg"), code=code)
        assert not picture.with_suffix(".jpg").exists()


_SAME_WRITER = ("finetune", "search --explain page", "embed -o csv", "embed -o parquet")
WRITES = {
    name: words
    for name, words in COMMANDS.items()
    if name == "embed --report" or not name.startswith(_SAME_WRITER) | name.endswith("--report")
}
WRITES["label --save"] = (["label", "photos", "--answers", "answers.csv", "--save"], "out.safetensors")
PIPED = ("search --html", "embed -o npy", "probe --save", "embed --report")


@pytest.fixture(scope="module")
def written(drawn, tmp_path_factory):
    """The same with an index, labels and a broken image, for commands that come to their end."""
    root = tmp_path_factory.mktemp("written") / "place"
    shutil.copytree(drawn, root)
    (root / "photos" / "discs" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    names = [f"photos/{kind}/{kind}_{number}.png" for kind in ("discs", "squares") for number in range(6)]
    answers = "".join(f"{name},{'a' if 'discs' in name else 'b'}\n" for name in names)
    (root / "answers.csv").write_text(f"path,label\n{answers}")
    (root / ".vitembed" / "labels").mkdir()
    (root / ".vitembed" / "labels" / "photos.csv").write_text(f"path,label\n{root}/{names[0]},a\n{root}/{names[6]},b\n")
    return root


@pytest.mark.skipif(os.name == "nt", reason="pipes, links and modes of POSIX")
@pytest.mark.parametrize("command", WRITES)
def test_links_modes_and_pipes_stay_what_they_are(command, written, vitembed, monkeypatch):
    monkeypatch.chdir(written)
    if not (written / ".vitembed" / "index").exists():
        vitembed("index", "photos")
    words, name = WRITES[command]
    suffix = os.path.splitext(name)[1]
    link, real = written / name, written / f"real{suffix}"
    link.symlink_to(real.name)  # to nothing yet
    said = vitembed(*words, name)
    assert link.is_symlink()
    assert real.is_file(), said.output
    real.chmod(0o600)
    first = real.stat()
    vitembed(*words, name)
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert real.stat().st_ino != first.st_ino  # replaced as a whole
    assert real.stat().st_size
    link.unlink()
    if command in PIPED:
        os.mkfifo(link)
        got = []
        reader = threading.Thread(target=lambda: got.append(link.read_bytes()), daemon=True)
        reader.start()
        vitembed(*words, name)
        reader.join(timeout=30)
        assert got
        assert got[0]
        assert stat.S_ISFIFO(link.lstat().st_mode)
        link.unlink()
    for made in [*written.glob("out.*"), *written.glob("real*"), written / "s.csv"]:
        made.unlink(missing_ok=True)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("name", ["", "..", "../../notes", "/ABSOLUTE", "a" * 300])
def test_a_name_is_no_path(command, name, place, vitembed):
    (place / "notes").mkdir()
    (place / "notes" / "mine.txt").write_text("by hand")
    (place / ".vitembed" / "models" / "other").mkdir(parents=True)
    before = tree(place)
    name = name.replace("/ABSOLUTE", str(place / "notes"))
    said = vitembed(command, "photos", "--name", name, code=1).stderr
    assert "--name" in said
    assert said.count("\n") == 1
    assert len(said) < 400
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
    for more in ((), ("--force",)):  # force is not offered where it is refused
        said = vitembed("export", "--to", "timm", "-o", "enc.safetensors", *more, code=1).stderr
        assert "enc.md is there already and was not written by vitembed" in said
        assert "--force" not in said
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
    from vitembed.demo.tour import _again, _prepare
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
    before = tree(out)
    _prepare(out)
    assert tree(out).keys() == before.keys()
    assert _again(out) == (["--fresh"], ["--rebuild"])
    assert _again(tmp_path) == ([], [])
    Image.new("RGB", (4, 4)).save(tmp_path / "file.png")
    with pytest.raises(DataError, match="is no folder"):
        _prepare(tmp_path / "file.png")
