"""Whether a name is one of images, vectors or labels is told by what is there, never by its suffix."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from vitembed.embeddings import Embeddings


def test_folders_and_images_with_the_suffix_of_vectors(vitembed, workspace, photo_folder):
    photo_folder.rename("album.npz")
    assert "24" in vitembed("index", "album.npz").stdout
    vitembed("embed", "album.npz", "-o", "V.NPY")
    assert len(Embeddings.load("V.NPY")) == 24
    assert "24 x 32" in vitembed("info", "V.NPY").stdout
    assert json.loads(vitembed("probe", "album.npz", "--json", "--few-shot", 0).stdout)["num_images"] == 24
    shutil.copy(next((workspace / "album.npz").rglob("*.png")), "picture.csv")
    assert "1" in vitembed("index", "picture.csv").stdout
    (workspace / "x.csv").mkdir()
    assert "no readable image" in vitembed("index", "x.csv", code=1).stderr


def test_vectors_under_any_name(vitembed, workspace):
    vectors = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    Embeddings(vectors, [f"/x/{row}.jpg" for row in range(5)], "").save("v.parquet")
    for number, name in enumerate(("vectors", "V.PARQUET", "really.npy")):
        shutil.copy("v.parquet", name)
        assert "5" in vitembed("index", name, "--workspace", f"w{number}").stdout
        assert "5 x 8" in vitembed("info", name).stdout
    assert "holds vectors (parquet), no images: expected class" in vitembed("probe", "vectors", code=1).stderr


def test_a_row_number_is_no_dimension(vitembed, workspace):
    vectors = np.random.default_rng(0).standard_normal((6, 4))
    rows = [f"{row},{row}.jpg," + ",".join(f"{value:.6f}" for value in vectors[row]) for row in range(6)]
    (workspace / "v.csv").write_text("\n".join([",image_path,0,1,2,3", *rows]))
    said = vitembed("index", "v.csv", "--workspace", "w")
    assert "column left out, not part of the vector: ''; ids are 'image_path'" in said.stderr
    assert "6 x 4" in vitembed("info", "v.csv").stdout


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def test_probe_says_what_is_wrong_with_the_folders(vitembed, workspace):
    for number in range(4):
        draw(workspace / "wrapped" / "set" / "ab"[number % 2] / f"{number}.png", number)
        draw(workspace / "flat" / f"{number}.png", number)
        draw(workspace / "one" / "cat" / f"{number}.png", number)
    (workspace / "empty").mkdir()
    draw(workspace / "one" / "loose.png", 9)
    for folder, words in (
        ("wrapped", "are of one class, set: two or more are needed; it has sub-folders of its own (a, b)"),
        ("flat", "flat has 4 images and no class sub-folders: expected class sub-folders"),
        ("one", "all 4 images of one are of one class, cat: two or more are needed; 1 image lies beside the folder"),
        ("empty", "empty is empty: expected class sub-folders"),
    ):
        assert words in vitembed("probe", folder, code=1).stderr


def test_many_classes_of_few_images_bring_no_warning_of_a_library(vitembed, workspace):
    for number in range(24):
        draw(workspace / "few" / f"class {number % 12}" / f"{number}.png", number)
    (workspace / "few" / "hollow").mkdir()
    (workspace / "few" / "broken").mkdir()
    (workspace / "few" / "broken" / "x.png").write_bytes(b"no image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = vitembed("probe", "few", "--few-shot", 0)
    assert "2 class folders have no readable image and are no class: broken, hollow" in said.stderr


@pytest.mark.parametrize("grouped", [False, True])
def test_one_image_in_two_classes_is_a_copy_of_itself(vitembed, workspace, grouped):
    draw(workspace / "one.png", 0)
    for number in range(24):
        (workspace / "same" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy("one.png", workspace / "same" / "ab"[number % 2] / f"{number}.png")
    if grouped:
        assert "all images are one group" in vitembed("probe", "same", "--group-copies", code=1).stderr
        return
    document = json.loads(vitembed("probe", "same", "--few-shot", 0, "--json").stdout)
    assert document["num_near_duplicates"] == document["num_test"] == 6
    (contradicted,) = document["contradictions"]
    assert {row["label"] for row in contradicted} == {"a", "b"}
    assert len(contradicted) == 24
    assert any("1 image is there several times with different labels (24 files" in note for note in document["notes"])
