"""What is asked of FAISS where it sees a GPU, with a stand-in for the card."""

from __future__ import annotations

from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from vitembed import Collection, Embeddings
from vitembed.collection.ann import Scan, gpu, train
from vitembed.embeddings import unit_rows


@pytest.fixture
def card(monkeypatch):
    """A FAISS that sees one GPU and notes what is sent to it."""
    sent = []

    def knn_gpu(resources, queries, vectors, k, metric):
        assert resources == "resources"
        assert queries.flags.c_contiguous
        assert queries.dtype == vectors.dtype == np.float32
        sent.append(("knn", len(queries), len(vectors)))
        return faiss.knn(queries, vectors, k, metric=metric)

    stand_in = SimpleNamespace(
        get_num_gpus=lambda: 1, StandardGpuResources=lambda: "resources", knn_gpu=knn_gpu, knn=pytest.fail
    )
    monkeypatch.setattr(gpu, "faiss", stand_in)
    gpu._resources.cache_clear()
    yield sent
    gpu._resources.cache_clear()


def test_truth_is_compared_on_the_card(card):
    rng = np.random.default_rng(0)
    queries, vectors = rng.standard_normal((5, 8)), rng.standard_normal((90, 8)).astype(np.float16)
    scores, rows = gpu.knn(queries, vectors, 7)
    products = queries.astype(np.float32) @ vectors.astype(np.float32).T
    np.testing.assert_array_equal(rows, np.argsort(-products, axis=1)[:, :7])
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :7], rtol=1e-5)
    assert card == [("knn", 5, 90)]


@pytest.fixture
def scan():
    """1,000 unit vectors of 8 dimensions as float16, every third id."""
    vectors = unit_rows(np.random.default_rng(1).standard_normal((1000, 8))).astype(np.float16)
    return Scan.build([(np.arange(0, 3000, 3), vectors)], 8, "state")


NOTHING = np.zeros(0, np.int64)


@pytest.mark.parametrize("block", [1, 1000, 12_345, 1 << 28])
@pytest.mark.parametrize("k", [1, 20, 300])
def test_many_queries_are_compared_on_the_card_block_by_block(card, scan, monkeypatch, block, k):
    """With the results of the processor, whatever is passed over or looked at alone."""
    queries = unit_rows(np.random.default_rng(2).standard_normal((20, 8)))
    choices = [(NOTHING, None), (np.arange(0, 1500, 3), None), (NOTHING, np.array([3, 6, *range(999, 2997, 3)]))]
    monkeypatch.setattr(gpu, "BLOCK_BYTES", max(block, 4 * 8 * 20))
    for without, only in choices:
        by_card = scan.search(queries, k, without, only)
        assert card
        card.clear()
        with monkeypatch.context() as none:
            none.setattr(gpu, "num_gpus", lambda: 0)
            scores, ids = scan.search(queries, k, without, only)
        assert not card
        np.testing.assert_allclose(by_card[0], scores, atol=1e-6)
        np.testing.assert_array_equal(by_card[1], ids)


def test_few_queries_or_many_neighbours_stay_where_the_vectors_are(card, scan):
    queries = unit_rows(np.random.default_rng(2).standard_normal((gpu.MIN_QUERIES - 1, 8)))
    scan.search(queries, 3, NOTHING)
    assert gpu.pays(gpu.MIN_QUERIES, gpu.MAX_K)
    assert not gpu.pays(gpu.MIN_QUERIES, gpu.MAX_K + 1)
    assert card == []


def test_a_full_card_is_said_and_the_processor_answers(card, scan, monkeypatch, caplog):
    queries = unit_rows(np.random.default_rng(2).standard_normal((20, 8)))

    def full(*args, **kwargs):
        raise RuntimeError("Error in virtual void* allocMemory:\ncudaMalloc error out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(gpu.faiss, "knn_gpu", full)
        _, ids = scan.search(queries, 3, NOTHING)
    assert "cudaMalloc error out of memory" in caplog.text
    np.testing.assert_array_equal(ids, scan.search(queries, 3, NOTHING)[1])


def test_a_batch_of_queries_gives_the_same_hits_with_a_card(card, tmp_path, monkeypatch):
    vectors = np.random.default_rng(3).standard_normal((200, 8))
    with Collection.create(tmp_path, fingerprint="f" * 64, dim=8) as collection:
        collection.update_from(Embeddings(vectors, [f"id{i}" for i in range(200)], "f" * 64))
        collection.delete(["id7", "id100"])
        found = collection.search_many(vectors[:40], k=5)
        assert card
        monkeypatch.setattr(gpu, "num_gpus", lambda: 0)
        assert found == collection.search_many(vectors[:40], k=5)


def test_centroids_are_trained_on_the_card(card, monkeypatch):
    asked = []

    class Kmeans:
        def __init__(self, dim, k, **options):
            asked.append(options["gpu"])
            self.centroids = np.zeros((k, dim), np.float32)

        def train(self, points):
            pass

    monkeypatch.setattr(train, "faiss", SimpleNamespace(Kmeans=Kmeans))
    assert train.train_centroids(np.zeros((200, 8), np.float32), 16).shape == (16, 8)
    assert asked == [True]


def test_without_a_card_or_a_wheel_for_it(monkeypatch):
    monkeypatch.setattr(gpu, "faiss", SimpleNamespace())
    assert gpu.num_gpus() == 0


@pytest.mark.gpu
def test_the_real_card_agrees_with_the_processor():
    if not gpu.num_gpus():
        pytest.skip("FAISS sees no GPU")
    rng = np.random.default_rng(0)
    queries, vectors = (rng.standard_normal((size, 32)).astype(np.float32) for size in (40, 5_000))
    scores, rows = gpu.knn(queries, vectors, 20)
    expected, expected_rows = faiss.knn(queries, vectors, 20, metric=faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert (rows == expected_rows).mean() > 0.99
