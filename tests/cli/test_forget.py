"""Folders that are away, and those to be forgotten, from the command line."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from vitembed.collection.collection import Collection
from vitembed.embeddings import Embeddings

pytestmark = pytest.mark.usefixtures("photo_folder")


def test_away_forgotten_and_back(workspace, photo_folder, vitembed):
    folder = os.path.relpath(photo_folder, workspace)
    vitembed("index", folder)
    query = sorted(path for path in photo_folder.rglob("*") if path.is_file())[0]
    shutil.copy(query, workspace / "query.png")
    shutil.copytree(photo_folder, workspace / "more")
    vitembed("index", "more")
    shutil.move(photo_folder, workspace / "away")
    done = vitembed("index", folder, "more", code=1)
    assert f"offline: {folder}: no such file or folder" in done.stderr
    assert ", 24 unchanged, 24 offline\n" in done.stdout
    assert f"{folder} (24 images, offline)\n" in vitembed("info").stdout

    found = json.loads(vitembed("search", "query.png", "-k", 3, "--json", "--where", f"path ~ '{folder}/*'").stdout)
    assert [hit["missing"] for hit in found["results"]] == [True] * 3
    found = json.loads(vitembed("search", "query.png", "-k", 3, "--json", "--where", "path ~ 'more/*'").stdout)
    assert not any("missing" in hit for hit in found["results"])
    vitembed("search", "query.png", "-k", 50, "--html", "sheet.html")
    assert "(file is missing)" in (workspace / "sheet.html").read_text()
    assert "(file is missing)" in vitembed("search", "query.png", "-k", 50).stdout

    gone = os.path.relpath(query, workspace)  # by its stored vector
    assert json.loads(vitembed("search", gone, "-k", 1, "--json").stdout)["results"][0]["score"] > 0.999

    done = vitembed("forget", folder, "nowhere", code=1)
    assert done.stdout.startswith(f"forgotten: {folder} (")
    assert done.stderr.strip() == "not in the index: nowhere"
    assert "offline" not in vitembed("index", "more").stdout
    shutil.move(workspace / "away", photo_folder)
    assert "speed" not in vitembed("index", folder).stdout  # nothing went through the model
    vitembed("index", folder, "--vacuum")


def test_an_unset_variable_is_not_the_current_folder(workspace, photo_folder, vitembed):
    """``forget "$UNSET"`` must not forget everything below the current folder, nor ``index`` take it in."""
    vitembed("index", "", code=1)
    assert "none yet" in vitembed("info").stdout  # what was refused leaves no half collection
    missing = vitembed("index", "one", "two", code=1).stderr
    assert missing.startswith("Error: no such file or folder: ")
    assert "one, " in missing
    assert "two\n" in missing
    make_collection(workspace, photo_folder)
    assert "got an empty path" in vitembed("forget", "", code=1).stderr
    assert "got an empty path" in vitembed("embed", "photos", "", "-o", "x.npz", code=1).stderr
    with Collection.open(workspace / ".vitembed" / "index") as collection:
        assert len(collection) == 1


def make_collection(workspace, folder):
    """A collection of one image, without a model."""
    (path, *_) = sorted(str(path) for path in folder.rglob("*.*"))
    embeddings = Embeddings(np.ones((1, 32), np.float32), [path], "beef" * 16)
    index = workspace / ".vitembed" / "index"
    with Collection.create(index, fingerprint="beef" * 16, dim=32) as collection:
        collection.update_from(embeddings)
    return index


def test_an_unfinished_rebuild_is_named_and_can_be_dropped(workspace, photo_folder, vitembed):
    index = make_collection(workspace, photo_folder)
    with Collection.create(index, fingerprint="f00d" * 16, dim=8, rebuild=True) as beside, beside._catalog.write():
        beside._catalog.insert("/x.png", size=1, mtime_ns=1, vector=np.ones(8, np.float32))  # and then it was killed
    with Collection.open(index) as collection:
        assert (len(collection), collection.unfinished_rebuild()) == (1, 1)
    assert "--rebuild, 1 image so far" in vitembed("info").stdout
    vitembed("forget", photo_folder, "--vacuum")
    assert "unfinished" not in vitembed("info").stdout
    assert not (index / "rebuild.sqlite").exists()


def test_a_model_that_cannot_embed_leaves_nothing(workspace, photo_folder, vitembed, other_model_folder, monkeypatch):
    from vitembed.model.encoder import Encoder

    def fail(self, pixels):
        raise RuntimeError("expected 1 channel")

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "tokens", fail)
        with pytest.raises(RuntimeError):
            vitembed("index", photo_folder, "--model", other_model_folder)
    assert "no collection" in vitembed("search", next(photo_folder.rglob("*.*")), code=1).stderr
    vitembed("index", photo_folder)
    before = vitembed("info").stdout
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "tokens", fail)
        with pytest.raises(RuntimeError):
            vitembed("index", photo_folder, "--model", other_model_folder, "--rebuild")
    assert vitembed("info").stdout == before
    vitembed("index", photo_folder, "--model", other_model_folder, "--rebuild")
