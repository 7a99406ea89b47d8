"""Scores against NumPy over the stored vectors at length 1; and one file under several names."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from vitembed.collection.collection import Collection
from vitembed.collection.finding.batch import search_batch
from vitembed.collection.search import search
from vitembed.embeddings import Embeddings
from vitembed.errors import DataError


@pytest.fixture
def vectors(tmp_path):
    rows = np.random.default_rng(0).standard_normal((400, 96)).astype(np.float32)
    rows[200:] = rows[:200] + 0.02 * rows[200:]  # near copies, so that scores crowd below 1
    rows[390:] = rows[5]
    with Collection.create(tmp_path / "index", fingerprint="f" * 64, dim=96) as collection:
        collection.update_from(Embeddings(rows, [f"{row:03}" for row in range(400)], "f" * 64))
        yield collection, rows


def stored(rows):
    """What float16 leaves of unit rows, at length 1 again, in float64."""
    rows = rows.astype(np.float64)
    unit = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32).astype(np.float16).astype(np.float64)
    return unit / np.linalg.norm(unit, axis=1, keepdims=True)


@pytest.mark.parametrize("tail", [False, True])
def test_scores_are_cosines(vectors, tail):
    collection, rows = vectors
    if tail:  # the last rows are not in the scan's file
        collection.search(rows[0], k=1)
        rows = np.concatenate([rows[:395], -rows[395:]])
        collection.update_from(Embeddings(rows[395:], [f"{row:03}" for row in range(395, 400)], "f" * 64))
    truth = stored(rows)
    names = np.array([f"{row:03}" for row in range(400)])
    queries = truth[::40].astype(np.float32)
    for query, many in zip(queries, collection.search_many(queries, k=400), strict=True):
        cosines = np.clip(truth @ (query / np.linalg.norm(query.astype(np.float64))), -1, 1).astype(np.float32)
        order = np.lexsort((names, -cosines))
        for hits in (collection.search(query, k=400), many, collection.search(query, k=12)):
            assert [hit.path for hit in hits] == names[order][: len(hits)].tolist()
            np.testing.assert_allclose([hit.score for hit in hits], cosines[order][: len(hits)], rtol=0, atol=1e-7)
            assert hits[0].score == 1.0
            assert max(abs(hit.score) for hit in hits) <= 1


def test_equal_vectors_score_one(vectors):
    collection, _ = vectors
    query = collection.vector("005")
    assert abs(np.linalg.norm(query) - 1) < 1e-6
    same = ["005", *(f"{row:03}" for row in range(390, 400))]
    assert [hit.path for hit in collection.search(query, k=400, min_score=1.0)] == same
    assert collection.search(query, k=3, unique=1.0)[0].num_alike == 10
    np.testing.assert_allclose(np.linalg.norm(collection.embeddings().vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), 1.5, -2.0, float("inf")])
def test_limits_that_no_score_can_meet_are_refused(vectors, value):
    collection, rows = vectors
    with pytest.raises(DataError, match=r"min_score is .*, expected a cosine from -1 to 1"):
        collection.search(rows[0], min_score=value)
    with pytest.raises(DataError, match=r"unique is .*, expected a cosine above 0 and at most 1"):
        collection.search(rows[0], unique=value)
    with pytest.raises(DataError, match="expected a cosine from -1 to 1"):
        next(search_batch(collection, ["000"], lambda: None, min_score=value))
    with pytest.raises(DataError, match="expected a cosine from -1 to 1"):
        search(collection, ["none"], lambda: pytest.fail("a model was loaded"), min_score=value)
    if value != 1.5:
        with pytest.raises(DataError, match="expected numbers above 0"):
            search(collection, ["000"], lambda: None, weights=[value])


def test_very_large_numbers_are_numbers(vectors):
    collection, _ = vectors
    found = search(collection, ["000", "001"], lambda: None, k=10**30, weights=[1e308, 1e308])
    assert len(found.hits) == 398
    assert found.hits[0].score == search(collection, ["000", "001"], lambda: None).hits[0].score


class Unsteady:
    """An encoder whose vectors differ a little from call to call, as those of other batches or devices do."""

    def __init__(self, encoder):
        self._encoder, self._rng = encoder, np.random.default_rng(0)
        self.fingerprint, self.embed_dim = encoder.fingerprint, encoder.embed_dim

    def stream(self, refs, **options):
        for batch in self._encoder.stream(refs, **options):
            noise = self._rng.standard_normal(batch.vectors.shape) * np.abs(batch.vectors).mean()
            batch.vectors = (batch.vectors + 0.01 * noise).astype(np.float32)
            yield batch


def test_identical_bytes_score_one_whoever_embedded_them(photos, make, encoder, tmp_path):
    encoder = Unsteady(encoder)
    shutil.copy(photos / "a" / "01.png", photos / "b" / "copy.png")
    query = shutil.copy(photos / "a" / "01.png", tmp_path / "query.png")
    collection = make()
    collection.update(encoder, [photos])
    same = [str(photos / "a" / "01.png"), str(photos / "b" / "copy.png")]
    for asked, expected in ((query, same), (same[0], same[1:])):
        result = search(collection, [asked], lambda: encoder, min_score=1.0)
        assert [(hit.path, hit.score) for hit in result.hits] == [(path, 1.0) for path in expected]
        (answer,) = search_batch(collection, [str(asked)], lambda: encoder, min_score=1.0)
        assert [(hit.path, hit.score) for hit in answer.hits] == [(path, 1.0) for path in expected]


def test_a_file_with_several_names_is_found_once(photos, make, encoder, tmp_path):
    original = photos / "b" / "00.png"
    album = photos / "a-album"  # comes first by path
    album.mkdir()
    (album / "link.png").symlink_to(original)
    os.link(original, album / "hard.png")
    shutil.copy(original, photos / "b" / "copy.png")
    (tmp_path / "elsewhere").symlink_to(photos)
    collection = make()
    collection.update(encoder, [photos, str(tmp_path / "elsewhere")])
    assert len(collection) == 2 * 33
    copy = str(photos / "b" / "copy.png")

    fresh = shutil.copy(photos / "b" / "02.png", tmp_path / "query.png")
    found = search(collection, [fresh], lambda: encoder, k=100).hits
    assert len(found) == 31
    assert not [hit.path for hit in found if "elsewhere" in hit.path or hit.path.endswith("link.png")]
    assert len(search(collection, [fresh], lambda: encoder, k=20).hits) == 20
    assert len(search(collection, [fresh], lambda: encoder, k=20, unique=0.9999).hits) == 20

    # The query itself is left out under all its names.
    outside = tmp_path / "outside.png"
    os.link(original, outside)
    for name in (original, album / "link.png", outside, tmp_path / "elsewhere" / "a-album" / "hard.png"):
        hits = search(collection, [str(name)], lambda: encoder, k=100).hits
        assert len(hits) == 30
        assert [(hit.path, hit.score) for hit in hits[:1]] == [(copy, 1.0)]
        (answer,) = search_batch(collection, [str(name)], lambda: encoder, k=100)
        assert [hit.path for hit in answer.hits] == [hit.path for hit in hits]
    assert json.dumps(search(collection, [str(fresh)], lambda: encoder).to_dict())
