"""search, dupes and map as they are typed, on real files with a real (tiny, untrained) model."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from vitembed.collection.collection import Collection


@pytest.fixture
def indexed(vitembed, workspace, photo_folder):
    vitembed("index", "photos")
    return workspace


def answer(vitembed, *arguments):
    return json.loads(vitembed("search", *arguments, "--json").stdout)


def names(document):
    return [os.path.basename(hit["path"]) for hit in document["results"]]


QUERY = "photos/discs/discs_0.png"


def test_filters_limits_and_weights(vitembed, indexed):
    found = answer(vitembed, QUERY, "-k", "30", "--where", "folder in (discs, stripes) and not name ~ '*_1.png'")
    assert len(found["results"]) == 13
    assert {name.split("_")[0] for name in names(found)} == {"discs", "stripes"}
    every = answer(vitembed, QUERY, "-k", "30")["results"]
    above = answer(vitembed, QUERY, "-k", "30", "--min-score", every[4]["score"] - 1e-6)["results"]
    assert above == every[:5]
    other = "photos/stripes/stripes_0.png"
    heavy = answer(vitembed, QUERY, other, "--weight", "1", "--weight", "50", "-k", "3")
    assert names(heavy) == [name for name in names(answer(vitembed, other, "-k", "5")) if name != "discs_0.png"][:3]


def test_near_duplicates_are_hidden_and_counted(vitembed, indexed, photo_folder):
    for number in range(3):
        shutil.copy(photo_folder / "stripes" / "stripes_1.png", photo_folder / f"copy_{number}.png")
    vitembed("index", "photos")
    result = vitembed("search", "photos/stripes/stripes_0.png", "--unique-at", "0.9999", "-k", "30")
    listed = [line for line in result.stdout.splitlines() if "copy_" in line or "stripes_1" in line]
    assert len(listed) == 1
    assert " +3 " in listed[0]
    assert result.stderr.startswith("3 near-duplicates hidden")


def test_paths_alone_for_other_programs(vitembed, indexed, photo_folder):
    odd = os.fsencode(photo_folder / "discs") + b"/\xff\n.png"
    os.rename(photo_folder / "discs" / "discs_1.png", odd)
    vitembed("index", "photos")
    listed = vitembed("search", QUERY, "-k", "30", "-0").stdout_bytes
    paths = listed.split(b"\0")
    assert paths.pop() == b""
    assert odd in paths
    assert len(paths) == 23
    assert all(os.path.exists(path) for path in paths)
    assert len(vitembed("search", QUERY, "-k", "3", "--paths", "--where", "name ~ *_2.png").stdout.splitlines()) == 3


def test_a_batch_is_one_line_each(vitembed, indexed):
    (indexed / "list.txt").write_text("photos/discs/discs_0.png\nnowhere.png\nphotos/stripes/stripes_3.png\n")
    result = vitembed("search", "--batch", "list.txt", "-k", "2", code=3)
    first, failed, last = map(json.loads, result.stdout.splitlines())
    assert first["results"] == answer(vitembed, QUERY, "-k", "2")["results"]
    assert last["results"] == answer(vitembed, "photos/stripes/stripes_3.png", "-k", "2")["results"]
    assert failed == {"query": ["nowhere.png"], "error": failed["error"]}
    assert result.stderr == "1 of 3 queries could not be answered: their lines say why\n"
    (indexed / "list.txt").write_text("nowhere.png\n")
    vitembed("search", "--batch", "list.txt", code=1)
    assert "cannot go with QUERY, --crop" in vitembed("search", "x", "--batch", "l", "--crop", "1,1,1,1", code=2).stderr


def test_pictures_never_go_into_a_pipe(vitembed, indexed):
    result = vitembed("search", QUERY, "--show")
    assert "\x1b" not in result.stdout
    assert result.stderr == "--show draws in a terminal alone, and this is none\n"
    assert result.stdout == vitembed("search", QUERY).stdout


def test_crop_and_explanation(vitembed, indexed):
    whole = answer(vitembed, QUERY, "--crop", "0%,0%,100%,100%", "-k", "3")
    assert names(whole) == names(answer(vitembed, QUERY, "-k", "3"))
    assert names(answer(vitembed, QUERY, "--crop", "0,0,20,20", "-k", "23")) != names(
        answer(vitembed, QUERY, "-k", "23")
    )
    result = vitembed("search", QUERY, "-k", "2", "--explain", "why.html")
    assert result.stderr == "why they matched: why.html\n"
    assert (indexed / "why.html").read_text(encoding="utf-8").count("<img") == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--where", "siz > 3"], "--where, at character 1: no such field"),
        (["--crop", "1,2,3"], "crop '1,2,3' is no X,Y,W,H"),
        (["--crop", "0,0,500,500"], "has 48 x 48 px"),
        (["--weight", "1", "--weight", "2"], "got 2 weights for 1 query"),
        (["--unique-at", "2"], "unique is 2.0"),
        (["--explain", "why.gif"], "ends in .html or .png"),
    ],
)
def test_search_mistakes_are_one_line(vitembed, indexed, arguments, message):
    result = vitembed("search", QUERY, *arguments, code=1)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_dupes(vitembed, indexed, photo_folder):
    copy = photo_folder / "stripes" / "copy.png"
    shutil.copy(photo_folder / "discs" / "discs_1.png", copy)
    vitembed("index", "photos")
    found = json.loads(vitembed("dupes", "--exact", "--json").stdout)
    (group,) = found["groups"]
    paths = {group["keep"]["path"], group["others"][0]["path"]}
    assert paths == {str(copy), str(photo_folder / "discs" / "discs_1.png")}
    assert group["others"][0]["exact"]
    assert found["num_extra"] == 1
    table = vitembed("dupes", "--threshold", "0.99999", "--html", "dupes.html")
    assert "same bytes" in table.stdout
    assert "besides those to keep" in table.stderr
    assert (indexed / "dupes.html").is_file()
    assert copy.exists()
    assert "expected a cosine" in vitembed("dupes", "--threshold", "1.5", code=1).stderr


def test_labels_of_a_file_filter_searches_and_maps(vitembed, indexed, tmp_path):
    some = answer(vitembed, QUERY, "-k", "5")
    names = [hit["path"] for hit in some["results"]]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(["path,label", *(f"{name},mine" for name in names)]))
    found = answer(vitembed, QUERY, "-k", "30", "--where", "label = mine", "--labels", str(file))
    assert [hit["path"] for hit in found["results"]] == names
    assert (
        "left out by the filter" in vitembed("search", QUERY, "--where", "label = mine", "--labels", str(file)).stderr
    )
    assert " 5" in vitembed("map", "--where", "label = mine", "--labels", str(file)).stdout
    assert "cannot read" in vitembed("search", QUERY, "--labels", str(tmp_path / "no.csv"), code=1).stderr


def test_map(vitembed, indexed):
    shown = vitembed("map", "--clusters", "3", "--where", "not folder = discs")
    lines = dict(line.split("  ", 1) for line in shown.stdout.splitlines())
    assert lines["map"].strip() == "map.html"
    assert lines["images"].strip() == "16"
    assert (indexed / "map.html").stat().st_size > 10_000
    assert "a map needs at least 3" in vitembed("map", "--where", "name = discs_0.png", code=1).stderr


def test_vectors_from_elsewhere_have_the_same_commands(vitembed, tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    np.save("bare.npy", np.repeat(np.eye(5, 8, dtype=np.float32), 2, axis=0))
    vitembed("index", "bare.npy")
    assert json.loads(vitembed("dupes", "--json").stdout)["num_extra"] == 5
    assert "10 images without a picture" in vitembed("map").stderr
    with Collection.open(tmp_path / ".vitembed" / "index") as collection:
        assert len(collection) == 10
