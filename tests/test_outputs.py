"""Files that a user names: nothing that is not ours is replaced, links, pipes and modes stay what they are."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from vitembed.embeddings import Embeddings
from vitembed.errors import ConfigError, DataError
from vitembed.outputs import PAGE, REPORT, check_outputs, write_output
from vitembed.probe.labelling.session import LabelSession
from vitembed.probe.saving import SavedProbe

posix = pytest.mark.skipif(os.name == "nt", reason="pipes, links and modes of POSIX")


def picture(kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind)
    return buffer.getvalue()


def vectors(num=3):
    found = np.random.default_rng(num).standard_normal((num, 4)).astype(np.float32)
    return Embeddings(found, [f"{row}.png" for row in range(num)], "f")


def probe():
    return SavedProbe(classes=["a", "b"], coef=np.ones((1, 4)), intercept=np.zeros(1), fingerprint="f", threshold=None)


def sheet(path):
    from vitembed.collection.sheet import SheetImage, SheetRow, write_sheet

    write_sheet(path, "Title", [SheetRow(SheetImage(Image.new("RGB", (4, 4))), [])])


def sheet_picture(path):
    from vitembed.collection.sheet import SheetImage, SheetRow
    from vitembed.collection.sheet_png import sheet_png

    sheet_png(path, "Title", [SheetRow(SheetImage(Image.new("RGB", (4, 4))), [])])


def image_map(path):
    from vitembed.collection.finding.map2d import Cluster, ImageMap
    from vitembed.collection.finding.map_page import write_map

    write_map(path, ImageMap(["a.png"], np.zeros((1, 2)), np.zeros(1, int), [Cluster("a", 0, 1)], "pca", None, 1))


def session():
    return LabelSession(vectors(), ["cat", "dog"])


def label_page(path):
    from vitembed.probe.labelling.sheet_page import write_page_sheet

    write_page_sheet(path, session(), [0, 1])


def label_table(path):
    from vitembed.probe.labelling.sheet_csv import write_csv_sheet

    write_csv_sheet(path, session(), [0, 1])


def exported(to):
    def write(path):
        import torch

        from vitembed.config import ViTConfig
        from vitembed.images.preprocess import Preprocess
        from vitembed.model.encoder import Encoder
        from vitembed.model.export.formats import export
        from vitembed.model.vit import VisionTransformer

        torch.manual_seed(0)
        vit = VisionTransformer(ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=1)).eval()
        export(Encoder(vit, Preprocess(img_size=16), name="enc"), to, path, force=True)

    return write


WRITERS = {
    "sheet.html": sheet,
    "sheet.png": sheet_picture,
    "map.html": image_map,
    "page.htm": label_page,
    "table.csv": label_table,
    "v.npy": lambda path: vectors().save(path),
    "v.npz": lambda path: vectors().save(path),
    "v.csv": lambda path: vectors().save(path),
    "v.parquet": lambda path: vectors().save(path),
    "v.safetensors": lambda path: vectors().save(path),
    "probe.safetensors": lambda path: probe().save(path),
    "enc.safetensors": exported("timm"),
    "enc.onnx": exported("onnx"),
    "bad.jsonl": lambda path: write_output(path, REPORT, '{"path": "a", "reason": "b"}\n'),
}
REFUSED = (DataError, ConfigError)
each = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@each
@pytest.mark.parametrize("what", ["text", "PNG", "page", "probe", "vectors", "weights"])
def test_what_is_not_ours_or_of_another_kind_is_left(folder, name, what):
    path = folder / name
    if what in ("page", "probe", "vectors"):
        other = {"page": "sheet.html", "probe": "probe.safetensors", "vectors": "v.npz"}[what]
        WRITERS[other](folder / other)
        content = (folder / other).read_bytes()
        (folder / other).unlink()
        if name.endswith((".htm", ".html")) and what == "page":
            return  # a page of ours takes the place of a page of ours
        if name == other or (name.startswith("v.") and what == "vectors"):
            return
    elif what == "weights":
        from safetensors.numpy import save

        content = save({"x": np.ones(3)})
    else:
        content = b"path,label\nmine,by hand\n" if what == "text" else picture(what)
    path.write_bytes(content)
    with pytest.raises(REFUSED) as refused:
        WRITERS[name](path)
    assert "name another" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ("is a picture" in str(refused.value)) == (what == "PNG")
    assert path.read_bytes() == content
    assert [file.name for file in folder.iterdir()] == [name]


@each
@posix
def test_ours_is_replaced_and_keeps_its_mode(folder, name):
    path = folder / name
    WRITERS[name](path)
    plain = folder / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    first = path.read_bytes()
    path.chmod(0o640)
    WRITERS[name](path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert len(path.read_bytes()) == len(first)
    path.write_bytes(b"")  # an empty file holds nothing to lose
    WRITERS[name](path)
    assert path.stat().st_size
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


@each
@posix
def test_a_link_is_written_through(folder, name):
    path, real = folder / name, folder / "elsewhere" / f"real{os.path.splitext(name)[1]}"
    real.parent.mkdir()
    path.symlink_to(real)  # to nothing yet
    for _ in range(2):
        WRITERS[name](path)
        assert path.is_symlink()
        assert real.is_file()
        assert not real.is_symlink()
    real.write_bytes(picture())
    with pytest.raises(REFUSED, match="is a picture"):
        WRITERS[name](path)
    assert real.read_bytes() == picture()


@each
@posix
def test_a_pipe_and_a_device_are_written_to(folder, name):
    WRITERS[name](folder / name)
    plain = (folder / name).read_bytes()
    (folder / name).unlink()
    for beside in folder.iterdir():
        beside.unlink()
    os.mkfifo(folder / name)
    got = []
    reader = threading.Thread(target=lambda: got.append((folder / name).read_bytes()))
    reader.start()
    WRITERS[name](folder / name)
    reader.join(timeout=30)
    assert len(got[0]) == len(plain)
    assert stat.S_ISFIFO((folder / name).lstat().st_mode)
    assert {file.suffix for file in folder.iterdir()} <= {os.path.splitext(name)[1], ".md"}


@each
def test_a_folder_and_a_missing_one(folder, name):
    (folder / name).mkdir()
    with pytest.raises(REFUSED, match=r"is a folder|holds|no export"):
        WRITERS[name](folder / name)
    assert list((folder / name).iterdir()) == []
    if not name.startswith("enc"):  # exports make the folder that they go into
        with pytest.raises(DataError, match="there is no folder"):
            WRITERS[name](folder / "none" / name)


@posix
@pytest.mark.parametrize(
    ("name", "kind"), [("/dev/stdout", "file"), ("/dev/fd/1", "pipe"), ("/proc/self/fd/1", "file")]
)
def test_standard_output_goes_on_where_it_is(tmp_path, name, kind):
    if name.startswith("/proc") and not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    program = (
        "import sys; from vitembed.outputs import PAGE, write_output; print('before', flush=True);"
        "write_output(sys.argv[1], PAGE, 'page\\n'); print('after')"
    )
    command = [sys.executable, "-c", program, name]
    if kind == "pipe":
        assert subprocess.run(command, capture_output=True, check=True).stdout == b"before\npage\nafter\n"
        return
    with (tmp_path / "out.txt").open("wb") as file:
        subprocess.run(command, stdout=file, check=True)
    assert (tmp_path / "out.txt").read_bytes() == b"before\npage\nafter\n"


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_node_stays_one(tmp_path):
    node = tmp_path / "node.html"
    try:
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("no device nodes here")
    sheet(node)
    assert stat.S_ISCHR(node.lstat().st_mode)
    assert stat.S_IMODE(node.lstat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("path", "why"), [("r.txt", "ends in .html"), ("r", "ends in .html"), ("", "is a folder"), (".", "is a folder")]
)
def test_names_that_are_none(path, why):
    with pytest.raises(DataError, match=why):
        check_outputs((path, PAGE))


@posix
def test_two_outputs_are_two_files(tmp_path):
    os.symlink(tmp_path / "a.html", tmp_path / "b.html")
    with pytest.raises(DataError, match="cannot be the same file"):
        check_outputs((tmp_path / "a.html", PAGE), (tmp_path / "b.html", PAGE))
    check_outputs((tmp_path / "a.html", PAGE), (None, PAGE), (tmp_path / "c.html", PAGE))


def test_a_page_of_an_earlier_version_is_known_by_its_style(tmp_path):
    sheet(tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert text.count('<meta name="generator" content="vitembed">') == 1
    (tmp_path / "a.html").write_text(text.replace('<meta name="generator" content="vitembed">', ""))
    sheet(tmp_path / "a.html")


def test_a_failure_on_the_way_leaves_the_old_file(tmp_path, monkeypatch):
    probe().save(tmp_path / "p.safetensors")
    before = (tmp_path / "p.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write: No space left on device"):
        probe().save(tmp_path / "p.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_the_file_beside_vectors_is_an_output_too(tmp_path, suffix):
    path, beside = tmp_path / f"v.{suffix}", tmp_path / f"v.{suffix}.json"
    beside.write_text('{"mine": 1}')
    with pytest.raises(DataError, match=rf"v.{suffix}.json is there already"):
        vectors().save(path)
    assert [file.name for file in tmp_path.iterdir()] == [beside.name]
    beside.unlink()
    vectors().save(path)
    vectors(5).save(path)
    assert len(Embeddings.load(path)) == 5
    beside.unlink()  # another program's table may have these columns
    if suffix == "csv":
        with pytest.raises(DataError, match="was not written by vitembed"):
            vectors().save(path)
    (tmp_path / "v.npz.json").write_text("mine")  # belongs to no format of ours, and stays
    vectors().save(tmp_path / "v.npz")
    assert (tmp_path / "v.npz.json").read_text() == "mine"


@posix
def test_vectors_through_a_link_are_read_under_both_names(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "v.npy").symlink_to(tmp_path / "far" / "w.npy")
    vectors().save(tmp_path / "v.npy")
    assert sorted(file.name for file in (tmp_path / "far").iterdir()) == ["w.npy", "w.npy.json"]
    for path in (tmp_path / "v.npy", tmp_path / "far" / "w.npy"):
        assert Embeddings.load(path).ids == vectors().ids


def test_a_sheet_with_answers_that_were_not_taken_is_kept(tmp_path):
    from vitembed.probe.labelling.sheet_csv import take_sheet, write_csv_sheet

    asked, path = session(), tmp_path / "ask.csv"
    write_csv_sheet(path, asked, [0, 1])
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, first.replace(",", ",cat", 1), second]) + "\n")
    filled = path.read_bytes()
    with pytest.raises(DataError, match="holds 1 answer not taken yet"):
        write_csv_sheet(path, asked, [0, 1])
    assert path.read_bytes() == filled
    take_sheet(path, asked)
    write_csv_sheet(path, asked, [1])


@posix
def test_labels_keep_link_and_mode(tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("path,label\n0.png,cat\n1.png,dog\n")
    real.chmod(0o600)
    link.symlink_to(real)
    LabelSession(vectors(), labels_file=link).answer(2, "cat")
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert "2.png,cat" in real.read_text()
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="is no file"):
        LabelSession(vectors(), ["cat", "dog"], labels_file=tmp_path / "pipe.csv")
