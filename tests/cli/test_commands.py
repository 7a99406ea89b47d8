"""Each command on real files with a real (tiny, untrained) model."""

from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest

from vitembed.embeddings import Embeddings
from vitembed.workspace import find_workspace

SUFFIXES = ("npy", "npz", "parquet", "csv", "safetensors")


def break_some(folder, number):
    """Images that cannot be read."""
    for n in range(number):
        (folder / f"broken_{n:02}.png").write_bytes(b"")


def facts(result):
    """What a command printed as names and values."""
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in result.stdout.splitlines())


# index and search


def test_index_then_search_from_below(vitembed, workspace, photo_folder, monkeypatch):
    shown = facts(vitembed("index", "photos"))
    assert shown["index"] == f".vitembed{os.sep}index (24 images)"
    assert shown["this run"] == "24 added, 0 changed, 0 moved, 0 deleted, 0 unchanged"
    assert facts(vitembed("index", "photos"))["this run"].endswith("24 unchanged")

    monkeypatch.chdir(photo_folder / "discs")
    result = vitembed("search", "discs_0.png", "-k", "5")
    head, *rows = [line.split() for line in result.stdout.splitlines()]
    assert head == ["rank", "score", "percentile", "path"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5"]
    assert result.stderr == ""
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert "discs_0.png" not in result.stdout  # the query does not find itself
    assert any(row[3].startswith("discs_") for row in rows)  # below the current folder: as short as can be typed


def test_search_agrees_with_numpy_on_embed(vitembed, workspace, photo_folder):
    vitembed("index", "photos")
    vitembed("embed", "photos", "-o", "v.npz")
    embeddings = Embeddings.load("v.npz").normalized()
    query = embeddings.ids.index(str(photo_folder / "squares" / "squares_3.png"))
    cosines = embeddings.vectors @ embeddings.vectors[query]
    order = [row for row in np.argsort(-cosines) if row != query][:6]

    document = json.loads(vitembed("search", "photos/squares/squares_3.png", "-k", "6", "--json").stdout)
    assert list(document) == ["query", "exact", "results"]
    assert document["query"] == ["photos/squares/squares_3.png"]
    assert document["exact"] is True
    assert [hit["rank"] for hit in document["results"]] == [1, 2, 3, 4, 5, 6]
    found = [hit["score"] for hit in document["results"]]
    assert found == pytest.approx(cosines[order].tolist(), abs=2e-3)  # stored as float16
    for hit in document["results"]:
        assert cosines[embeddings.ids.index(hit["path"])] == pytest.approx(hit["score"], abs=2e-3)


def test_search_with_an_image_from_elsewhere(vitembed, workspace, photo_folder, tmp_path):
    vitembed("index", "photos")
    copy = tmp_path / "copy.png"
    shutil.copy(photo_folder / "stripes" / "stripes_1.png", copy)
    best = json.loads(vitembed("search", copy, "-k", "1", "--json").stdout)["results"][0]
    assert best["path"].endswith("stripes_1.png")
    assert best["score"] == pytest.approx(1, abs=2e-3)


def test_search_moves_away(vitembed, workspace, photo_folder):
    vitembed("index", "photos")
    document = json.loads(
        vitembed(
            "search",
            "photos/discs/discs_0.png",
            "photos/discs/discs_1.png",
            "--not",
            "photos/stripes/stripes_0.png",
            "--not",
            "photos/stripes/stripes_1.png",
            "--json",
        ).stdout
    )
    assert document["query"] == ["photos/discs/discs_0.png", "photos/discs/discs_1.png"]
    assert document["not"] == ["photos/stripes/stripes_0.png", "photos/stripes/stripes_1.png"]
    named = {os.path.basename(hit["path"]) for hit in document["results"]}
    assert named.isdisjoint({"discs_0.png", "discs_1.png", "stripes_0.png", "stripes_1.png"})
    assert document["results"][0]["path"].endswith(tuple(f"discs_{n}.png" for n in range(8)))


def test_search_writes_a_contact_sheet(vitembed, workspace, photo_folder):
    vitembed("index", "photos")
    result = vitembed("search", "photos/discs/discs_0.png", "-k", "3", "--html", "sheet.html", "--json")
    assert result.stderr == "contact sheet: sheet.html\n"
    assert len(json.loads(result.stdout)["results"]) == 3
    page = (workspace / "sheet.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 4  # the query and three hits, inside the file


def test_search_mistakes(vitembed, workspace, photo_folder):
    assert "no collection in" in vitembed("search", "photos/discs/discs_0.png", code=1).stderr
    vitembed("index", "photos")
    assert "nowhere.png" in vitembed("search", "nowhere.png", code=1).stderr
    (workspace / "empty.png").write_bytes(b"")
    assert vitembed("search", "empty.png", code=1).stderr.endswith("zero bytes\n")


def test_index_follows_the_folder(vitembed, workspace, photo_folder):
    vitembed("index", "photos")
    (photo_folder / "discs" / "discs_0.png").unlink()
    shutil.copy(photo_folder / "discs" / "discs_1.png", photo_folder / "discs" / "new.png")
    assert facts(vitembed("index", "photos"))["this run"] == "1 added, 0 changed, 0 moved, 1 deleted, 23 unchanged"


def test_index_refuses_another_model_until_rebuilt(vitembed, workspace, photo_folder, other_model_folder):
    vitembed("index", "photos")
    refused = vitembed("index", "photos", "--model", other_model_folder, code=1)
    assert re.search(
        r"Error: the collection in .* is of encoder \w+ \(32-d\), this is encoder \w+ \(48-d\)", refused.stderr
    )
    assert "--rebuild" in refused.stderr
    vitembed("index", "photos", "--model", other_model_folder, "--rebuild")
    # From then on the index remembers its model: for its next update and for queries that it does not hold.
    assert facts(vitembed("index", "photos"))["this run"].endswith("24 unchanged")
    (photo_folder.parent / "new.png").write_bytes((photo_folder / "discs" / "discs_0.png").read_bytes() + b" ")
    assert json.loads(vitembed("search", "new.png", "--json").stdout)["results"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_index_takes_every_format_that_embed_writes(vitembed, workspace, photo_folder, suffix):
    written = facts(vitembed("embed", "photos", "-o", f"v.{suffix}"))
    assert written["vectors"].startswith("24 x 32, cls of ")
    shown = facts(vitembed("index", f"v.{suffix}"))
    assert shown["this run"].startswith("24 added")
    best = json.loads(vitembed("search", "photos/discs/discs_0.png", "-k", "1", "--json").stdout)["results"][0]
    assert os.path.isfile(best["path"])
    # The vectors are those of the workspace's model, so images can be added to them.
    assert facts(vitembed("index", "photos"))["this run"].startswith("0 added, 0 changed")


def test_index_takes_vectors_from_elsewhere(vitembed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("bare.npy", np.eye(5, 8, dtype=np.float32))
    assert facts(vitembed("index", "bare.npy"))["index"].endswith("(5 images)")
    document = json.loads(vitembed("search", "3", "--json").stdout)
    assert sorted(hit["path"] for hit in document["results"]) == ["0", "1", "2", "4"]


def test_named_workspace(vitembed, workspace, photo_folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    vitembed("index", photo_folder, "--workspace", workspace)
    query = photo_folder / "discs" / "discs_0.png"
    by_option = vitembed("search", query, "--workspace", workspace, "--json").stdout
    monkeypatch.setenv("VITEMBED_WORKSPACE", str(workspace))
    assert vitembed("search", query, "--json").stdout == by_option
    assert "24 images" in vitembed("info").stdout


# images that cannot be read


def test_bad_images_are_listed_last(vitembed, workspace, photo_folder):
    break_some(photo_folder, 2)
    result = vitembed("index", "photos", "--report", "bad.jsonl")
    assert result.stderr.splitlines()[-3:] == [
        "2 images skipped:",
        f"  {photo_folder / 'broken_00.png'}: zero bytes",
        f"  {photo_folder / 'broken_01.png'}: zero bytes",
    ]
    reported = [json.loads(line) for line in (workspace / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert reported == [{"path": str(photo_folder / f"broken_0{n}.png"), "reason": "zero bytes"} for n in (0, 1)]
    # They are still bad the next time.
    assert "2 images skipped:" in vitembed("index", "photos", "--strict", code=3).stderr


@pytest.mark.parametrize("command", [["index"], ["embed", "-o", "v.npz"], ["probe"]])
def test_strict_exits_with_3_only_when_some_were_skipped(vitembed, workspace, photo_folder, command):
    vitembed(*command, "photos", "--strict", "--report", "bad.jsonl")
    assert (workspace / "bad.jsonl").read_text() == ""
    break_some(photo_folder / "discs", 1)
    assert "broken_00.png: zero bytes" in vitembed(*command, "photos").stderr
    assert "broken_00.png: zero bytes" in vitembed(*command, "photos", "--strict", code=3).stderr


def test_a_long_list_is_cut(vitembed, workspace, photo_folder):
    break_some(photo_folder, 25)
    lines = vitembed("index", "photos").stderr.splitlines()
    assert sum("zero bytes" in line for line in lines) == 20
    assert lines[-1] == "  ... and 5 more (see --report)"
    assert vitembed("index", "photos", "--report", "bad.jsonl").stderr.endswith("  ... and 5 more (see bad.jsonl)\n")
    assert len((workspace / "bad.jsonl").read_text().splitlines()) == 25


@pytest.mark.parametrize("command", [["index"], ["embed", "-o", "v.npz"]])
def test_nothing_usable(vitembed, workspace, command):
    (workspace / "photos").mkdir()
    vitembed(*command, "photos", code=1)
    break_some(workspace / "photos", 3)
    result = vitembed(*command, "photos", "--strict", code=1)
    assert "Error: no readable image in photos" in result.stderr
    assert not (workspace / "v.npz").exists()


def test_a_report_that_cannot_be_written(vitembed, workspace, photo_folder):
    assert "there is no folder" in vitembed("index", "photos", "--report", "no/where.jsonl", code=1).stderr


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_paths_that_are_not_text(vitembed, workspace, photo_folder):
    odd = os.fsencode(photo_folder / "discs") + b"/\xff\xfe [red] caf\xe9.png"
    os.rename(photo_folder / "discs" / "discs_0.png", odd)
    broken = os.fsencode(photo_folder) + b"/bro\xff\nken.png"
    with open(broken, "wb"):
        pass
    result = vitembed("index", "photos", "--report", "bad.jsonl")
    assert f"  {photo_folder}/bro\\udcff\\nken.png: zero bytes\n" in result.stderr
    assert os.fsencode(json.loads((workspace / "bad.jsonl").read_text())["path"]) == broken

    listed = vitembed("search", "photos/discs/discs_1.png", "-k", "23").stdout
    assert "photos/discs/\\udcff\\udcfe [red] caf\\udce9.png" in listed
    document = json.loads(vitembed("search", "photos/discs/discs_1.png", "-k", "23", "--json").stdout)
    assert odd in [os.fsencode(hit["path"]) for hit in document["results"]]
    asked = json.loads(vitembed("search", os.fsdecode(odd), "--json", "--html", "s.html").stdout)
    assert os.fsencode(asked["query"][0]) == odd


# embed, probe, info


def test_embed_pools(vitembed, workspace, photo_folder):
    for pool, width in (("cls", 32), ("mean", 32), ("cls+mean", 64)):
        vitembed("embed", "photos", "-o", f"{pool}.npz", "--pool", pool)
        assert Embeddings.load(f"{pool}.npz").vectors.shape == (24, width)
    both, cls, mean = (Embeddings.load(f"{pool}.npz") for pool in ("cls+mean", "cls", "mean"))
    np.testing.assert_allclose(both.vectors, np.concatenate([cls.vectors, mean.vectors], axis=1), atol=1e-5)
    assert len({both.fingerprint, cls.fingerprint, mean.fingerprint}) == 3


def test_probe(vitembed, workspace, photo_folder):
    table = vitembed("probe", "photos").stdout.splitlines()
    assert [line.split()[0] for line in table[:4]] == ["probe", "majority", "18-NN", "linear"]
    document = json.loads(vitembed("probe", "photos", "--json").stdout)
    assert (document["num_images"], document["num_classes"]) == (24, 3)
    for name in ("majority", "knn", "linear"):
        low, high = document[name]["ci95"]
        assert 0 <= low <= document[name]["accuracy"] <= high <= 1
    assert document["linear"]["accuracy"] > document["majority"]["accuracy"]  # colours survive random weights


def test_probe_of_a_csv_keeps_labels_with_their_images(vitembed, workspace, photo_folder):
    # Listed in an order that is not that of the paths, with every label swapped for a name that tells.
    rows = sorted(photo_folder.glob("*/*.png"), key=lambda path: path.stem[::-1])
    split = ["test" if path.stem.endswith(("0", "1")) else "train" for path in rows]
    lines = [f"{path},is {path.parent.name},{part}" for path, part in zip(rows, split, strict=True)]
    (workspace / "labels.csv").write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    document = json.loads(vitembed("probe", "labels.csv", "--json").stdout)
    assert document["linear"]["accuracy"] >= 5 / 6
    assert (document["num_train"], document["num_test"]) == (18, 6)


def test_info(vitembed, workspace, photo_folder):
    shown = facts(vitembed("info"))
    assert shown["model"] == f".vitembed{os.sep}model"
    assert shown["index"] == "none yet: run vitembed index"
    vitembed("index", "photos")
    assert facts(vitembed("info"))["index"] == "24 images, 32 numbers each"
    vitembed("embed", "photos", "-o", "v.npz")
    shown = facts(vitembed("info", "v.npz"))
    assert shown["vectors"] == "24 x 32"
    assert shown["fingerprint"] == facts(vitembed("info", ".vitembed/model"))["fingerprint"]


# pretrain


def test_pretrain_takes_settings_and_makes_the_model(vitembed, photo_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photo_folder / "a=b").mkdir()  # exists: a folder of images, not a setting
    shutil.copy(photo_folder / "discs" / "discs_0.png", photo_folder / "a=b" / "copy.png")
    monkeypatch.chdir(photo_folder)
    arguments = ["pretrain", "discs", "stripes", "a=b", "--config", "smoke", "optim.max_steps=2", "seed=7"]
    shown = facts(vitembed(*arguments))
    assert shown["model"] == f".vitembed{os.sep}model"
    assert shown["images"] == "17"
    assert shown["steps"].startswith("2 in ")
    assert (photo_folder / ".vitembed" / "model" / "encoder.safetensors").is_file()
    vitembed("index", "discs")


def test_pretrain_mistakes(vitembed, photo_folder):
    refused = vitembed("pretrain", photo_folder, "--config", "smoke", "optim.max_step=2", code=1)
    assert "max_steps" in refused.stderr
    refused = vitembed("pretrain", photo_folder, "--config", "nanno", code=1)
    assert "Did you mean 'nano'?" in refused.stderr


def test_pretrain_gives_the_library_what_was_typed(vitembed, photo_folder, monkeypatch, tmp_path):
    run = pytest.importorskip("vitembed.pretrain.run")
    asked = {}

    def interrupted(images, **options):
        asked.update(images=images, **options)
        return run.PretrainResult(tmp_path, tmp_path, 24, [], 5, 1.0, False, {})

    monkeypatch.setattr(run, "pretrain", interrupted)
    result = vitembed(
        "pretrain", "x/y.jpg", "model.size=tiny", "@list.txt", "seed=3", "--name", "mine", "--fresh",
        "--time-budget", "1h30m", "--config", "small", "--workspace", tmp_path, code=130
    )  # fmt: skip
    assert result.stderr == "Interrupted; everything is saved. The same command goes on from here.\n"
    assert result.stdout == ""
    assert asked.pop("workspace").root == find_workspace(tmp_path).root
    assert asked == {
        "images": ["x/y.jpg", "@list.txt"],
        "overrides": ["model.size=tiny", "seed=3"],
        "config": "small",
        "name": "mine",
        "fresh": True,
        "resume_on": None,
        "model": None,
        "time_budget": 5400.0,
    }
