"""What is asked of FAISS where it sees a GPU, with a stand-in for the card."""

from __future__ import annotations

from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from vitembed.collection.ann import gpu, train


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
