"""Labelled folders and CSV files: what is read, what is refused, and by which words."""

from __future__ import annotations

import os
import sys

import pytest
from PIL import Image

from vitembed.errors import DataError
from vitembed.probe.labels import read_labelled


def draw(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, format="PNG")
    return path


def rows(found):
    return list(zip((os.path.basename(p) for p in found.paths), found.labels.tolist(), strict=True))


def test_class_folders(tmp_path):
    draw(tmp_path / "cat" / "b.png")
    draw(tmp_path / "cat" / "deep" / "er" / "a.jpg")
    draw(tmp_path / "dog bites" / "c")  # no suffix: content decides
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "cat" / "empty.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "README.md").write_text("x")
    draw(tmp_path / "loose.png")
    draw(tmp_path / ".hidden" / "h.png")
    for waste in ("__MACOSX", "$RECYCLE.BIN", ".ipynb_checkpoints", "lost+found", "#recycle"):
        draw(tmp_path / waste / "m.png")
    (tmp_path / "nothing").mkdir()
    found = read_labelled(tmp_path)
    assert rows(found) == [("b.png", "cat"), ("a.jpg", "cat"), ("c", "dog bites")]
    assert found.split is None
    assert len(found) == 3
    reasons = {os.path.basename(b.path): b.reason for b in found.bad}
    assert reasons == {"broken.jpg": "not an image", "empty.png": "zero bytes", "loose.png": "not in a class folder"}
    assert all(os.path.isabs(p) for p in found.paths)


def test_linked_class_folder_is_a_class(tmp_path):
    draw(tmp_path / "elsewhere" / "a.png")
    draw(tmp_path / "set" / "dog" / "b.png")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert rows(read_labelled(tmp_path / "set")) == [("a.png", "cat"), ("b.png", "dog")]


@pytest.mark.parametrize(
    ("names", "parts"), [(("train", "test"), ["test", "train"]), (("Training", "valid"), ["train", "val"])]
)
def test_train_and_test_folders_are_a_split(tmp_path, names, parts):
    for name in names:
        for label in ("cat", "dog"):
            draw(tmp_path / name / label / "x" / f"{label}.png")
    draw(tmp_path / "annotations" / "mask.png")
    draw(tmp_path / names[0] / "loose.png")
    found = read_labelled(tmp_path)
    assert sorted(set(found.split.tolist())) == sorted(parts)
    assert found.labels.tolist() == ["cat", "dog"] * 2
    assert sorted(b.reason for b in found.bad) == ["not in a class folder", "outside train, val and test"]


def test_a_class_may_be_called_train(tmp_path):
    for label in ("train", "bus", "test"):
        draw(tmp_path / label / "a.png")
    assert read_labelled(tmp_path).labels.tolist() == ["bus", "test", "train"]


def test_csv(tmp_path):
    draw(tmp_path / "img" / "a.png")
    draw(tmp_path / "img" / "comma, in name.png")
    absolute = draw(tmp_path / "c.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "l.csv").write_text(
        "\ufeffsource, Path ,label,SPLIT\n"
        f'x,img/a.png, cat ,train\n\nx,"img/comma, in name.png",dog,Validation\nx,{absolute},007,test\n'
        "x,bad.png,cat,test\nx,gone.png,cat,test\n",
        encoding="utf-8",
    )
    found = read_labelled(tmp_path / "l.csv")
    assert rows(found) == [("a.png", "cat"), ("comma, in name.png", "dog"), ("c.png", "007")]
    assert found.split.tolist() == ["train", "val", "test"]
    assert [os.path.basename(b.path) for b in found.bad] == ["bad.png", "gone.png"]
    assert found.bad[0].reason == "not an image"


def test_csv_without_split(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("path,label\r\na.png,1\r\n")
    found = read_labelled(str(tmp_path / "l.csv"))
    assert found.split is None
    assert found.labels.dtype.kind == "U"


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_names_that_are_not_utf8(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/b\xffd")
    os.mkdir(odd)
    Image.new("RGB", (4, 4)).save(os.path.join(odd, os.fsdecode(b"\xe9.png")))
    draw(tmp_path / "cat" / "a.png")
    found = read_labelled(tmp_path)
    assert all(label.encode("utf-8") for label in found.labels.tolist())
    assert len(found) == 2
    (tmp_path / "l.csv").write_bytes(b"path,label\nb\xffd/\xe9.png,x\ncat/a.png,y\n")
    assert set(read_labelled(tmp_path / "l.csv").paths) == set(found.paths)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must name the columns"),
        ("a.png,cat\n", "the first line must name the columns"),
        ("path|label\na.png|cat\n", "the first line must name the columns"),
        ("path,label\na.png,\n", "line 2: the label is empty"),
        ("path,label\n\n ,cat\n", "line 3: the path is empty"),
        ("path,label\na.png,cat,x\n", "line 2: 3 fields, the header has 2"),
        ("path,label,split\na.png,cat,\n", "line 2: unknown split '', expected train"),
        ("path,label,split\na.png,cat,train\nb.png,cat,dev\n", "line 3: unknown split 'dev'"),
        ("path,label\na.png,cat\n./a.png,dog\n", r"line 3: ./a.png was given on line 2 already"),
        ('path,label\n"a.png,cat\n', "line 2: unexpected end of data"),
        ("path,label\ngone.png,cat\n", "holds no labelled image .*gone.png"),
        ("path,label\n", "holds no labelled image"),
    ],
)
def test_csv_errors(tmp_path, text, message):
    draw(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_labelled(tmp_path / "l.csv")
    assert "\n" not in str(raised.value)


def test_folder_errors(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_labelled(tmp_path / "gone")
    draw(tmp_path / "flat" / "a.png")
    with pytest.raises(DataError, match="no class sub-folders: expected"):
        read_labelled(tmp_path / "flat")
    draw(tmp_path / "unlabelled" / "train" / "a.png")
    draw(tmp_path / "unlabelled" / "test" / "b.png")
    with pytest.raises(DataError, match="no class sub-folder in common"):
        read_labelled(tmp_path / "unlabelled")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no labelled image"):
        read_labelled(tmp_path / "hollow")
    with pytest.raises(DataError, match="is an image: expected class sub-folders"):
        read_labelled(draw(tmp_path / "picture.png"))


def test_skipped_folders_are_no_classes(tmp_path):
    for name in ("cat", "dog", ".ipynb_checkpoints", "$RECYCLE.BIN", "#recycle", "__MACOSX", "@eaDir", "lost+found"):
        draw(tmp_path / name / "a.png")
    assert set(read_labelled(tmp_path).labels.tolist()) == {"cat", "dog"}


def test_classes_that_look_the_same_are_named(tmp_path, caplog):
    for name in ("Sea lion", "sea_lion", "fox"):
        draw(tmp_path / "set" / name / "a.png")
    assert len(set(read_labelled(tmp_path / "set").labels.tolist())) == 3
    assert (
        "classes 'Sea lion' and 'sea_lion' differ only in case, spaces or Unicode form; they count as 2" in caplog.text
    )
    (tmp_path / "l.csv").write_text("path,label\nset/fox/a.png,é\nset/sea_lion/a.png,e\u0301\n", encoding="utf-8")
    caplog.clear()
    read_labelled(tmp_path / "l.csv")
    assert "they count as 2 classes" in caplog.text


def test_paths_count_from_the_folder_of_the_csv(tmp_path, monkeypatch):
    draw(tmp_path / "img" / "a.png")
    draw(tmp_path / "img" / "b.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "l.csv").write_text("path,label\nimg/a.png,cat\nimg/b.png,dog\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match="paths count from the folder of the CSV file, and this one lies below the current"
    ):
        read_labelled("labels/l.csv")
    (tmp_path / "labels" / "l.csv").write_text("path,label\n../img/a.png,cat\n../img/b.png,dog\n")
    assert len(read_labelled("labels/l.csv")) == 2


def test_a_class_whose_images_are_all_gone_is_named(tmp_path):
    draw(tmp_path / "a.png")
    (tmp_path / "l.csv").write_text("path,label\na.png,cat\ngone.png,dog\n")
    with pytest.raises(
        DataError, match=r"of one class, cat: two or more are needed; 1 other file cannot .*gone.png: no such"
    ):
        read_labelled(tmp_path / "l.csv")
