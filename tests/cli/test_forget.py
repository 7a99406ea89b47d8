"""Folders that are away, and those to be forgotten, from the command line."""

from __future__ import annotations

import json
import os
import shutil

import pytest

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
