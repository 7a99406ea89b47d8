"""The k-NN probe against loops over all pairs, and scikit-learn's contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError
from vitembed.probe import knn
from vitembed.probe.knn import KNNProbe


@parametrize_with_checks([KNNProbe(), KNNProbe(k=3, temperature=0.5)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def data(n=150, q=40, d=9, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.integers(0, classes, size=n), rng.standard_normal((q, d))


def votes_by_loop(bank, labels, queries, k, temperature, classes):
    shares = np.zeros((len(queries), len(classes)))
    for i, query in enumerate(queries):
        cosines = [float(query @ row / np.sqrt(query @ query) / np.sqrt(row @ row)) for row in bank]
        nearest = sorted(range(len(bank)), key=lambda j: (-cosines[j], j))[:k]
        for j in nearest:
            shares[i, list(classes).index(labels[j])] += np.exp(cosines[j] / temperature)
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 1.0), (150, 0.2)])
def test_votes_equal_a_loop_over_all_pairs(k, temperature):
    bank, labels, queries = data()
    probe = KNNProbe(k, temperature=temperature).fit(bank, labels)
    expected = votes_by_loop(bank, labels, queries, k, temperature, probe.classes_)
    np.testing.assert_allclose(probe.predict_proba(queries), expected, atol=2e-5)
    assert (probe.predict(queries) == expected.argmax(axis=1)).all()


def test_closed_form_of_two_neighbours():
    # Cosines 1 and 0.6: the votes are a logistic function of their difference over the temperature.
    probe = KNNProbe(2, temperature=0.1).fit([[5.0, 0.0], [3.0, 4.0]], ["near", "a far one"])
    far, near = probe.predict_proba([[2.0, 0.0]])[0]
    assert near == pytest.approx(1 / (1 + np.exp(-0.4 / 0.1)), rel=1e-6)
    assert near + far == pytest.approx(1.0)


def test_neighbours_are_those_of_scikit_learn():
    bank, labels, queries = data(n=400)
    peer = KNeighborsClassifier(7, metric="cosine", algorithm="brute").fit(bank, labels)
    distances, expected = peer.kneighbors(queries)
    similarities, neighbours = KNNProbe(7).fit(bank, labels).kneighbors(queries)
    assert (neighbours == expected).all()
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)


def test_blocks_do_not_change_the_result(monkeypatch):
    bank, labels, queries = data(n=333, q=55)
    probe = KNNProbe(10).fit(bank, labels)
    whole = probe.kneighbors(queries)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 7)
    monkeypatch.setattr(knn, "BANK_BLOCK", 12)  # smaller than k + slack
    parts = probe.kneighbors(queries)
    assert (whole[1] == parts[1]).all()
    assert (whole[0] == parts[0]).all()


def test_k_is_clipped_to_what_is_stored():
    bank, labels, queries = data(n=6, classes=2)
    probe = KNNProbe(20).fit(bank, labels)
    assert probe.kneighbors(queries)[1].shape == (len(queries), 6)
    assert probe.kneighbors(queries, k=2)[1].shape == (len(queries), 2)
    np.testing.assert_allclose(probe.predict_proba(queries).sum(axis=1), 1.0)


def test_equal_similarities_are_ranked_by_row():
    bank = np.tile([[1.0, 0.0], [0.0, 1.0]], (5, 1))
    _, neighbours = KNNProbe(4).fit(bank, np.arange(10)).kneighbors([[2.0, 0.0]])
    assert neighbours.tolist() == [[0, 2, 4, 6]]


@pytest.mark.parametrize("most", [4096, 30])
def test_copies_beyond_what_the_first_candidates_hold_are_ranked_by_row(monkeypatch, most):
    # 150 copies of one row, nearer than the rest: a float32 product cannot say which of them come first.
    rng = np.random.default_rng(0)
    bank = np.r_[rng.standard_normal((50, 5)), np.tile(rng.standard_normal(5), (150, 1))][rng.permutation(200)]
    copy = np.median(bank, axis=0)
    copies = np.flatnonzero((bank == copy).all(axis=1))
    assert len(copies) == 150
    monkeypatch.setattr(knn, "MOST_CANDIDATES", most)
    monkeypatch.setattr(knn, "BANK_BLOCK", 32)
    similarities, neighbours = KNNProbe(7).fit(bank, np.arange(200)).kneighbors([copy, copy * 3.0])
    assert neighbours.tolist() == [copies[:7].tolist()] * 2
    np.testing.assert_allclose(similarities, 1.0, atol=1e-6)


def test_memory_is_bounded_by_the_blocks(monkeypatch):
    seen = []
    plain = torch.Tensor.topk

    def topk(self, *args, **kwargs):
        seen.append(self.numel())
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "topk", topk)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 8)
    monkeypatch.setattr(knn, "BANK_BLOCK", 50)
    bank, labels, queries = data(n=1001, q=40)
    KNNProbe(3).fit(bank, labels).predict(queries)
    assert max(seen) <= 8 * max(50, 2 * (3 + knn.SLACK))
    assert len(seen) >= 5 * 21


def test_dinov2_protocol_is_one_fit_for_each_k():
    bank, labels, queries = data(n=300)
    truth = np.random.default_rng(5).integers(0, 4, size=len(queries))
    accuracies = KNNProbe().fit(bank, labels).accuracy_by_k(queries, truth)
    assert accuracies == {k: KNNProbe(k).fit(bank, labels).score(queries, truth) for k in (10, 20, 100, 200)}
    assert len(set(accuracies.values())) > 1
    with pytest.raises(ValueError, match="expected one label for each of 40 rows"):
        KNNProbe().fit(bank, labels).accuracy_by_k(queries, truth[:3])


def test_length_does_not_matter_and_zero_vectors_are_safe():
    bank, labels, queries = data(n=40)
    scale = 10.0 ** np.random.default_rng(0).uniform(-200, 200, size=(40, 1))
    probe = KNNProbe(5).fit(bank, labels)
    scaled = KNNProbe(5).fit(bank * scale, labels)
    np.testing.assert_allclose(scaled.predict_proba(queries * 1e-30), probe.predict_proba(queries), atol=1e-5)
    similarities, _ = probe.kneighbors(np.zeros((1, 9)))
    assert (similarities == 0).all()


def test_labels_of_any_kind_and_embeddings():
    bank, labels, queries = data()
    names = np.array(["zebra", "ä b", "", "cat"])[labels]
    probe = KNNProbe(1).fit(bank, names)
    assert (probe.predict(bank) == names).all()
    assert KNNProbe(1).fit(bank, labels * 37 - 50).score(bank, labels * 37 - 50) == 1.0
    embeddings = Embeddings(vectors=bank, ids=[str(i) for i in range(len(bank))], fingerprint="f", labels=names)
    own = KNNProbe(1).fit(embeddings)
    assert own.score(embeddings) == 1.0
    assert (own.predict(queries) == probe.predict(queries)).all()
    with pytest.raises(DataError, match="carry no labels"):
        KNNProbe().fit(Embeddings(vectors=bank, ids=embeddings.ids, fingerprint="f"))


def test_works_in_scikit_learn_tools():
    bank, labels, _ = data()
    search = GridSearchCV(make_pipeline(StandardScaler(), KNNProbe()), {"knnprobe__k": [1, 5, 200]}, cv=3)
    assert search.fit(bank, labels).best_params_["knnprobe__k"] in (1, 5, 200)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"k": 0}, "k=0: expected"), ({"k": 2.5}, "k=2.5: expected"), ({"temperature": 0.0}, "temperature=0.0: expected")],
)
def test_settings_out_of_range(settings, message):
    bank, labels, _ = data()
    with pytest.raises(ValueError, match=message):
        KNNProbe(**settings).fit(bank, labels)
