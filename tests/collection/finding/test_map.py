"""The map: PCA against scikit-learn's, clusters that are there, and a page that holds what it shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from vitembed.collection.collection import Collection
from vitembed.collection.finding.map2d import make_map
from vitembed.collection.finding.map_page import write_map
from vitembed.embeddings import Embeddings
from vitembed.errors import ConfigError, DataError


@pytest.fixture
def three_kinds(tmp_path):
    """300 vectors around three directions, in folders that say which."""
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(3, 10), 100, axis=0) + 0.1 * rng.standard_normal((300, 10))
    names = [f"/pictures/{'abc'[row // 100]}/{row:03}.jpg" for row in range(300)]
    with Collection.create(tmp_path / "index", fingerprint="f" * 64, dim=10, root="/pictures") as collection:
        collection.update_from(Embeddings(rows.astype(np.float32), names, "f" * 64))
        yield collection


def test_the_plane_is_that_of_pca(three_kinds):
    found = make_map(three_kinds, num_clusters=3)
    stored = three_kinds.embeddings()
    assert found.paths == stored.ids
    truth = PCA(2).fit(stored.vectors)
    expected = truth.transform(stored.vectors)
    for axis in range(2):
        assert abs(np.corrcoef(found.points[:, axis], expected[:, axis])[0, 1]) > 0.9999
    assert found.kept_variance == pytest.approx(truth.explained_variance_ratio_.sum(), abs=1e-4)
    # One scale for both axes: distances on the map are those in the plane.
    ratio = np.ptp(found.points, axis=0) / np.ptp(expected, axis=0)
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-3)
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    again = make_map(three_kinds, num_clusters=3)
    assert np.array_equal(again.points, found.points)
    assert np.array_equal(again.labels, found.labels)


def test_clusters_are_the_kinds_and_are_named_after_them(three_kinds):
    found = make_map(three_kinds, num_clusters=3)
    assert sorted(cluster.name for cluster in found.clusters) == ["a", "b", "c"]
    for number, cluster in enumerate(found.clusters):
        members = [path for path, label in zip(found.paths, found.labels, strict=True) if label == number]
        assert len(members) == cluster.size == 100
        assert all(f"/{cluster.name}/" in path for path in members)
        assert found.paths[cluster.example] in members


def test_samples_filters_and_mistakes(three_kinds, monkeypatch):
    found = make_map(three_kinds, max_points=50, where="folder in (a, b)")
    assert (len(found.paths), found.num_images) == (50, 200)
    assert not any("/c/" in path for path in found.paths)
    with pytest.raises(DataError, match="2 images to lay out: a map needs at least 3"):
        make_map(three_kinds, where="name in (000.jpg, 001.jpg)")
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"pip install 'vitembed\[map\]'"):
        make_map(three_kinds, method="umap")


def test_equal_vectors_and_vectors_of_one_number(tmp_path):
    for rows in (np.ones((10, 4), np.float32), np.array([[1], [-1], [1], [-1]], np.float32)):
        with Collection.create(tmp_path / "i", fingerprint="f", dim=rows.shape[1], rebuild=True) as collection:
            collection.update_from(Embeddings(rows, [f"{row}" for row in range(len(rows))], "f"))
            found = make_map(collection)
            assert found.points.shape == (len(rows), 2)
            assert np.isfinite(found.points).all()


def read(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture
def coloured(tmp_path):
    """Images of one colour each, in a folder whose name tries to end the script."""
    folder = tmp_path / "</script><script>alert(1)</script>"
    colours = [(int(r), 40, 200 - int(r)) for r in np.linspace(0, 200, 30)]
    names = []
    for number, colour in enumerate(colours):
        path = folder / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 30), colour).save(path)
        names.append(str(path))
    (folder / "07.png").unlink()
    with Collection.create(tmp_path / "index", fingerprint="f" * 64, dim=3) as collection:
        collection.update_from(Embeddings(np.array(colours, np.float32), names, "f" * 64))
        yield make_map(collection, num_clusters=3), colours, tmp_path / "map.html"


def test_each_point_shows_its_own_image(coloured):
    found, colours, file = coloured
    notes = write_map(file, found)
    data = read(file.read_text())
    atlases = [Image.open(io.BytesIO(base64.b64decode(text.split(",")[1]))) for text in data["atlases"]]
    assert notes == ["1 image without a picture: the file is missing or cannot be read"]
    assert [path.endswith(f"{row:02}.png") for row, path in enumerate(data["paths"])] == [True] * 30
    for row, cell in enumerate(data["cells"]):
        if row == 7:
            assert cell == -1
            continue
        inside, size = cell % data["side"] ** 2, data["thumb"]
        middle = (inside % data["side"] * size + size // 2, inside // data["side"] * size + size // 2)
        shown = atlases[cell // data["side"] ** 2].getpixel(middle)
        assert np.abs(np.subtract(shown, colours[row])).max() < 12


def test_the_page_runs_its_own_script_alone_and_asks_for_nothing(coloured):
    found, _, file = coloured
    write_map(file, found)
    page = file.read_text()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "alert(1)</script>" not in page
    assert not re.findall(r"(?:src|href)=", page)
    assert "innerHTML" not in page


def test_the_page_keeps_to_its_size(coloured):
    found, _, file = coloured
    write_map(file, found)
    assert read(file.read_text())["thumb"] == 96
    notes = write_map(file, found, max_bytes=5_000)
    data = read(file.read_text())
    assert data["thumb"] == 32
    assert 3 <= sum(cell >= 0 for cell in data["cells"]) < 15
    assert all(data["cells"][cluster["example"]] >= 0 or cluster["example"] == 7 for cluster in data["clusters"])
    assert "to keep the file small" in notes[0]
    with pytest.raises(DataError, match="cannot write"):
        write_map(file.parent / "no" / "where.html", found)
