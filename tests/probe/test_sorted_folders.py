"""Sorted folders: originals stay, nothing is replaced, and no label leads out of the folder."""

from __future__ import annotations

import os

import pytest

from vitembed.errors import DataError
from vitembed.probe.sorted_folders import UNSURE, SortedFolders


@pytest.fixture
def source(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, content in (("a.png", b"one"), ("deep/a.png", b"two"), ("b", b"three")):
        (tmp_path / "in" / name).write_bytes(content)
    return tmp_path / "in"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("link", [False, True])
def test_files_of_one_name_lie_side_by_side_and_again_changes_nothing(tmp_path, source, link):
    before = content(source)
    for _ in range(2):
        folders = SortedFolders(tmp_path / "out", ["cat", "dog"], link=link, inputs=[source])
        folders.add(str(source / "a.png"), "cat")
        folders.add(str(source / "deep" / "a.png"), "cat")
        folders.add(str(source / "b"), None)
    assert content(tmp_path / "out") == {
        os.path.join("cat", "a.png"): b"one",
        os.path.join("cat", "a-2.png"): b"two",
        os.path.join(UNSURE, "b"): b"three",
    }
    assert content(source) == before
    assert all(path.is_symlink() is link for path in (tmp_path / "out").rglob("*") if path.is_file())


def test_nothing_is_ever_replaced(tmp_path, source):
    (tmp_path / "out" / "cat").mkdir(parents=True)
    (tmp_path / "out" / "cat" / "a.png").write_bytes(b"yours")
    (tmp_path / "out" / "cat" / "a-2.png").symlink_to(tmp_path / "nowhere")
    placed = SortedFolders(tmp_path / "out", ["cat"]).add(str(source / "a.png"), "cat")
    assert placed.name == "a-3.png"
    assert (tmp_path / "out" / "cat" / "a.png").read_bytes() == b"yours"
    assert not (tmp_path / "nowhere").exists()


def test_without_hard_links_it_is_a_rename_onto_nothing(tmp_path, source, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(1, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    folders = SortedFolders(tmp_path / "out", ["cat"])
    folders.add(str(source / "a.png"), "cat")
    folders.add(str(source / "deep" / "a.png"), "cat")
    assert sorted(content(tmp_path / "out").values()) == [b"one", b"two"]


def test_no_label_leads_out_of_the_folder(tmp_path):
    labels = ["../up", "..", ".", "", "/etc", "a/b", "A/B", UNSURE, "x" * 500, "nul\0", "\ud800", 7]
    folders = SortedFolders(tmp_path / "out", labels)
    places = [folders.folder(label) for label in [*labels, None]]
    assert all(place.parent == tmp_path / "out" and not place.name.startswith(".") for place in places)
    assert len({place.name.casefold() for place in places}) == len(places)
    for place in places:
        place.mkdir(parents=True)


def test_one_line_where_it_cannot_be(tmp_path, source):
    with pytest.raises(DataError, match="lies in .* choose a folder outside"):
        SortedFolders(source / "sorted", ["cat"], inputs=[source])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="is no folder: name one for the sorted images"):
        SortedFolders(tmp_path / "file", ["cat"]).add(str(source / "a.png"), "cat")
    with pytest.raises(DataError, match="gone.png"):
        SortedFolders(tmp_path / "out", ["cat"]).add(str(source / "gone.png"), "cat")
    assert content(tmp_path / "out") == {}
