"""Weights, crops, limits, near-duplicates hidden, percentiles, batches and threads, each against NumPy."""

from __future__ import annotations

import io
import json
import os
import re
import threading

import numpy as np
import pytest
from PIL import Image

from vitembed.collection.collection import Collection
from vitembed.collection.finding.background import BACKGROUND_FILE, NUM_BINS, Background
from vitembed.collection.finding.batch import Failed, queries_in, read_queries, search_batch
from vitembed.collection.finding.crop import Crop
from vitembed.collection.search import common_threshold, search
from vitembed.embeddings import Embeddings
from vitembed.errors import DataError, ModelError
from vitembed.images.preprocess import Preprocess

DIM = 24


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class MeanColours:
    """An encoder that takes pixels: the mean colour of each of four quarters, less grey."""

    fingerprint = "f" * 64
    preprocess = Preprocess(img_size=16, resize="squash", interpolation="box")

    def embed_arrays(self, images):
        quarters = images.reshape(len(images), 2, 8, 2, 8, 3).mean(axis=(2, 4)).reshape(len(images), -1)
        return np.concatenate([quarters - 127.25, np.zeros((len(images), DIM - 12))], axis=1).astype(np.float32)


@pytest.fixture
def vectors(tmp_path):
    """200 random vectors by name; every tenth is followed by three near-copies of it."""
    rng = np.random.default_rng(3)
    rows = unit(rng.standard_normal((200, DIM)).astype(np.float32))
    for leader in range(0, 200, 10):
        for copy in range(1, 4):
            rows[leader + copy] = unit(rows[leader] + 0.02 * copy * unit(rng.standard_normal(DIM)))
    names = [f"v{row:03}" for row in range(200)]
    with Collection.create(tmp_path / "index", fingerprint="f" * 64, dim=DIM) as collection:
        collection.update_from(Embeddings(rows, names, "f" * 64))
        yield collection


@pytest.fixture
def stored(vectors):
    return vectors.embeddings().vectors


def never():
    raise AssertionError("the encoder was loaded without need")


def test_weights(vectors, stored):
    direction = unit(0.75 * unit(stored[5]) + 0.25 * unit(stored[7]) - unit(stored[9]))
    scores = stored @ direction
    result = search(vectors, ["v005", "v007"], never, weights=[3.0, 1.0], exclude=["v009"], k=5)
    order = [row for row in np.argsort(-scores) if row not in (5, 7, 9)][:5]
    assert [hit.path for hit in result.hits] == [f"v{row:03}" for row in order]
    np.testing.assert_allclose([hit.score for hit in result.hits], scores[order], atol=1e-5)
    for weights in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(DataError, match="for 2 queries: expected one each"):
            search(vectors, ["v005", "v007"], never, weights=weights)
    for weights in ([1.0, 0.0], [1.0, -1.0], [float("nan"), 1.0]):
        with pytest.raises(DataError, match="expected numbers above 0"):
            search(vectors, ["v005", "v007"], never, weights=weights)


def test_min_score(vectors, stored):
    scores = stored @ stored[11]
    hits = search(vectors, ["v011"], never, k=200, min_score=0.3).hits
    assert {hit.path for hit in hits} == {f"v{row:03}" for row in np.flatnonzero(scores >= 0.3) if row != 11}


@pytest.mark.parametrize("k", [1, 5, 40, 200])
@pytest.mark.parametrize("threshold", [0.9, 0.99])
def test_unique_is_a_greedy_loop_over_all(vectors, stored, k, threshold):
    query = np.random.default_rng(k).standard_normal(DIM)
    scores = stored @ unit(query).astype(np.float32)
    kept, alike = [], {}
    for row in np.argsort(-scores):
        better = next((other for other in kept if stored[other] @ stored[row] >= threshold), None)
        if better is not None:
            alike[better] = alike.get(better, 0) + 1
        elif len(kept) < k:
            kept.append(row)
    hits = vectors.search(query, k=k, unique=threshold)
    assert [hit.path for hit in hits] == [f"v{row:03}" for row in kept]
    assert [hit.rank for hit in hits] == list(range(1, len(kept) + 1))
    assert all(0 <= hit.num_alike <= alike.get(row, 0) for hit, row in zip(hits, kept, strict=True))
    if k == 200:
        assert [hit.num_alike for hit in hits] == [alike.get(row, 0) for row in kept]
    with pytest.raises(DataError, match="unique is 1.5"):
        vectors.search(query, unique=1.5)


def test_percentile_is_the_share_of_pairs_that_are_less_alike(vectors, stored):
    pairs = (stored @ stored.T)[np.triu_indices(200, 1)]
    ground = vectors.background()
    assert ground.num_pairs == len(pairs) == 19_900
    for score in (-0.5, 0.0, 0.2, 0.6, 0.9):
        assert ground.percentile(score) == pytest.approx(100 * (pairs < score).mean(), abs=0.1)
    assert (ground.percentile(-1.0), ground.percentile(1.0)) == (0, 100)
    assert ground.quantile(90.0) == pytest.approx(np.quantile(pairs, 0.9), abs=0.002)
    result = search(vectors, ["v011"], never, k=3)
    percentiles = [hit["percentile"] for hit in result.to_dict()["results"]]
    assert percentiles == [pytest.approx(100 * (pairs < hit.score).mean(), abs=0.1) for hit in result.hits]


def test_background_is_a_cache(vectors):
    file = vectors.directory / BACKGROUND_FILE
    first = vectors.background()
    text = file.read_text()
    file.unlink()
    assert np.array_equal(vectors.background().counts, first.counts)  # drawn the same way each time
    assert file.read_text() == text
    document = json.loads(text)
    counts = [count + (place == 3) for place, count in enumerate(document["counts"])]
    for damaged in (
        text[:100],
        "",
        "[]",
        json.dumps(document | {"counts": counts}),
        json.dumps(document | {"first": 9}),
    ):
        file.write_text(damaged)
        assert np.array_equal(vectors.background().counts, first.counts)
        assert file.read_text() == text
    vectors.update_from(Embeddings(np.ones((1, DIM), np.float32), ["new"], "f" * 64))
    assert vectors.background().num_pairs == 201 * 200 // 2


def test_background_of_next_to_nothing(tmp_path):
    with Collection.create(tmp_path / "index", fingerprint="f" * 64, dim=3) as collection:
        assert collection.background().percentile(0.5) is None
        collection.update_from(Embeddings(np.eye(3, dtype=np.float32)[:1], ["a"], "f" * 64))
        assert collection.background().percentile(0.5) is None
        assert "percentile" not in search(collection, [np.ones(3)], never).to_dict()["results"][0]


def test_a_threshold_that_many_pairs_reach_is_named():
    counts = np.zeros(NUM_BINS, np.int64)
    counts[3900], counts[3990] = 900, 100  # a tenth of all pairs at 0.995
    assert re.match(r"10\.0 % of all pairs .* reach a cosine of 0.98", common_threshold(Background(counts), 0.98))
    assert common_threshold(Background(counts), 0.999) is None


@pytest.mark.parametrize(("crop", "box"), [("10,20,30,40", (10, 20, 40, 60)), ("50%,0%,50%,25%", (40, 0, 80, 20))])
def test_a_crop_is_the_same_as_the_cut_image(vectors, tmp_path, crop, box):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    image.save(tmp_path / "whole.png")
    image.crop(box).save(tmp_path / "part.png")
    whole, part = (search(vectors, [tmp_path / name], MeanColours, crop=given, k=5)
                   for name, given in (("whole.png", crop), ("part.png", None)))  # fmt: skip
    assert whole.hits == part.hits
    assert whole.hits != search(vectors, [tmp_path / "whole.png"], MeanColours, k=5).hits
    assert whole.to_dict()["crop"] == crop
    whole.write_sheet(tmp_path / "sheet.html")
    assert (tmp_path / "sheet.html").read_text().count("<img") == 2  # the query and its part


def test_a_crop_turns_with_the_photo(vectors, tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30] = 255  # left half white; after a turn to the right the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    part = np.asarray(Crop.parse("0,0,40,30").load(str(tmp_path / "turned.png"), MeanColours.preprocess.decode_options))
    assert part.shape == (30, 40, 3)
    assert part.min() == 255


@pytest.mark.parametrize("crop", ["1,2,3", "1,2,3,0", "a,b,c,d", "1,2,3,-4", "1%,2,3,4", "", "1,2,3,4,5"])
def test_wrong_crops(vectors, crop):
    with pytest.raises(DataError, match="crop"):
        search(vectors, ["v001"], never, crop=crop)


def test_crops_that_cannot_be_taken(vectors, tmp_path, color_grid):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    with pytest.raises(DataError, match="does not lie within .*red.png, which has 20 x 10 px"):
        search(vectors, [tmp_path / "red.png"], MeanColours, crop="0,0,20,11")
    with pytest.raises(DataError, match="for one query image alone, got 2"):
        search(vectors, [tmp_path / "red.png", "v001"], MeanColours, crop="0,0,5,5")
    with pytest.raises(ModelError, match="cannot take a crop"):
        search(vectors, [tmp_path / "red.png"], lambda: color_grid.ColorGrid(fingerprint="f" * 64), crop="0,0,5,5")


def test_batch_answers_each_query_as_search_does(vectors, tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    queries = ["v001", "v010", "nowhere", str(tmp_path / "red.png"), str(tmp_path / "cut.png"), *["v050"] * 300]
    loaded = []
    answers = list(search_batch(vectors, queries, lambda: loaded.append(1) or MeanColours(), k=4))
    assert len(loaded) == 1
    assert len(answers) == len(queries)
    for query, answer in zip(queries[:10], answers, strict=False):
        if query in ("nowhere", queries[4]):
            assert isinstance(answer, Failed)
            assert answer.query == query
        else:
            assert answer.hits == search(vectors, [query], MeanColours, k=4).hits
            assert answer.queries == [query]
    assert "no such image" in answers[2].problem
    strict = {"k": 4, "where": "name ~ v0*", "unique": 0.9, "min_score": 0.1}
    (answer,) = search_batch(vectors, ["v010"], never, **strict)
    assert answer.hits == search(vectors, ["v010"], never, **strict).hits
    with pytest.raises(DataError, match="--where"):
        list(search_batch(vectors, ["v010"], never, where="nonsense"))


def test_lines_of_a_batch(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfhere.png\r\n\n  \nv001\nb\0d\n\xff\n/abs/x.png")
    lines = list(read_queries(str(tmp_path / "list.txt")))
    assert lines == ["here.png", "v001", "b\0d", os.fsdecode(b"\xff"), "/abs/x.png"]  # relative to the current folder
    with pytest.raises(DataError, match="list of queries .*nowhere.txt"):
        list(read_queries(str(tmp_path / "nowhere.txt")))


def test_a_batch_may_have_nuls_between():
    names = [b"a.png", b"two\nlines.png", b"ends in\r", b"\xff.png"]
    for given in (b"\0".join(names) + b"\0", b"\0".join(names), b"\0" + b"\0\0".join(names)):
        assert list(queries_in(io.BytesIO(given))) == [os.fsdecode(name) for name in names]
    assert list(queries_in(io.BytesIO(b"one name only\0"))) == ["one name only"]
    assert list(queries_in(io.BytesIO(b"a\nb"))) == ["a", "b"]
    assert list(queries_in(io.BytesIO(b""))) == []
    assert queries_in(io.BytesIO("a.png\r\n# comment\r\nb.png\r\n".encode("utf-16"))) == ["a.png", "b.png"]
    with pytest.raises(DataError, match="stdin is not a list of queries"):
        queries_in(io.BytesIO(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"))


def test_a_bad_line_is_that_lines_error(vectors, tmp_path):
    bad = ["b\0d", "n" * 5000, "/" + "d/" * 4000 + "x.png", str(tmp_path), "gone.png", os.fsdecode(b"\xff"), "a\nb"]
    answers = list(search_batch(vectors, ["v001", *bad, "v002"], MeanColours))
    assert [isinstance(answer, Failed) for answer in answers] == [False, *[True] * len(bad), False]
    assert "holds a NUL" in answers[1].problem
    with pytest.raises(DataError, match="holds a NUL"):
        search(vectors, ["b\0d"], never)


def test_many_threads_read_while_one_writes(vectors, stored):
    """Every answer is that of the state before or after a write, never a mixture."""
    query, before = stored[11], vectors.search(stored[11], k=5, where="name ~ v*")
    problems, stop = [], threading.Event()

    def read(collection):
        while not stop.is_set():
            try:
                hits = collection.search(query, k=5, where="name ~ v*")
                assert hits == before
                assert collection.search(query, k=1, unique=0.9)[0].score > 0.999
                assert len(collection.search_many(stored[:3], k=2)) == 3
                assert collection.background().num_pairs in (19_900, 205 * 204 // 2)
                assert collection.vector("v011") is not None
            except BaseException as error:
                problems.append(error)
                return

    with Collection.open(vectors.directory) as other:
        threads = [threading.Thread(target=read, args=(place,)) for place in (vectors, vectors, vectors, other, other)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            rows = np.random.default_rng(0).standard_normal((5, DIM)).astype(np.float32)
            vectors.update_from(Embeddings(rows, [f"w{row}" for row in range(5)], "f" * 64))
            vectors.delete([f"w{row}" for row in range(5)])
        stop.set()
        for thread in threads:
            thread.join()
    assert problems == []
