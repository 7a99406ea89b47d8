"""Scores against brute force in plain Python."""

import math

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from vitembed.demo import truth
from vitembed.demo.truth import category_scores, pixel_vectors, retrieval, wilson


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("block", [7, 512])
def test_recall_is_that_of_brute_force(monkeypatch, block):
    monkeypatch.setattr(truth, "_BLOCK", block)
    rng = np.random.default_rng(0)
    gallery = rng.normal(size=(40, 6))
    queries = (gallery + rng.normal(size=gallery.shape) * 0.8) * rng.uniform(0.1, 10, size=(40, 1))
    result = retrieval(queries, gallery, ks=(1, 3, 10))
    for k in (1, 3, 10):
        hits = 0
        for row, query in enumerate(queries.tolist()):
            order = sorted(range(40), key=lambda j: -cosine(query, gallery[j].tolist()))
            hits += row in order[:k]
        assert result[f"recall@{k}"]["value"] == hits / 40
        assert result[f"recall@{k}"]["ci95"] == wilson(hits, 40)
    assert 0 < result["recall@1"]["value"] < result["recall@10"]["value"] < 1
    assert result["num_queries"] == 40


def test_collapsed_vectors_find_nothing():
    ones = np.ones((30, 4), np.float32)
    assert retrieval(ones, ones)["recall@10"]["value"] == 0
    assert retrieval(ones * 0, ones * 0)["recall@10"]["value"] == 0


def test_k_below_one_and_no_rows_are_refused():
    with pytest.raises(ValueError, match="k >= 1"):
        retrieval(np.ones((3, 2)), np.ones((3, 2)), ks=(0,))
    with pytest.raises(ValueError, match="at least one row"):
        retrieval(np.ones((0, 2)), np.ones((0, 2)))


def test_wilson_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for hits, num, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(hits, num) == pytest.approx([low, high], abs=5e-5)


def brute_votes(vectors, labels, groups, domains, k):
    correct = 0
    for i in range(len(vectors)):
        judges = [
            j for j in range(len(vectors)) if groups[j] != groups[i] and (domains is None or domains[j] != domains[i])
        ]
        judges.sort(key=lambda j: -cosine(vectors[i], vectors[j]))
        votes = {}
        for j in judges[:k]:
            number, total = votes.get(labels[j], (0, 0.0))
            votes[labels[j]] = (number + 1, total + cosine(vectors[i], vectors[j]))
        correct += max(votes, key=lambda label: votes[label]) == labels[i]
    return correct / len(vectors)


@pytest.mark.parametrize("with_domains", [False, True])
@pytest.mark.parametrize("block", [11, 512])
def test_neighbour_votes_are_those_of_brute_force(monkeypatch, with_domains, block):
    monkeypatch.setattr(truth, "_BLOCK", block)
    rng = np.random.default_rng(1)
    labels = ["abc"[i] for i in rng.integers(3, size=30)] * 2
    groups = [f"emoji{i}" for i in range(30)] * 2
    domains = ["one"] * 30 + ["two"] * 30
    vectors = rng.normal(size=(60, 5)) + np.array([{"a": 0.5, "b": 0.0, "c": -0.5}[label] for label in labels])[:, None]
    chosen = domains if with_domains else None
    result = category_scores(vectors, labels, groups=groups, domains=chosen, ks=(4, 5), linear=False)
    for k in (4, 5):
        assert result[f"knn{k}"]["accuracy"] == brute_votes(vectors.tolist(), labels, groups, chosen, k)
        low, high = result[f"knn{k}"]["ci95"]
        assert low < result[f"knn{k}"]["accuracy"] < high
    assert result["majority"]["accuracy"] == max(labels.count(label) for label in "abc") / 60
    assert (result["num_images"], result["num_classes"]) == (60, 3)


def test_the_other_drawing_of_a_group_never_votes():
    # Each row's twin is its nearest neighbour and the only one with its label.
    vectors = np.repeat(np.random.default_rng(0).normal(size=(20, 8)), 2, axis=0)
    labels = np.repeat(np.arange(20), 2)
    assert category_scores(vectors, labels, ks=(1,), linear=False)["knn1"]["accuracy"] == 1
    assert category_scores(vectors, labels, groups=labels, ks=(1,), linear=False)["knn1"]["accuracy"] == 0


def test_the_interval_takes_groups_whole():
    # 40 identical rows per group are no more evidence than one.
    correct = np.repeat(np.arange(10) < 5, 40)
    low, high = truth._accuracy(correct, np.repeat(np.arange(10), 40), seed=0)["ci95"]
    assert low <= 0.2
    assert high >= 0.8
    low, high = truth._accuracy(correct, np.arange(400), seed=0)["ci95"]
    assert [low, high] == pytest.approx(wilson(200, 400), abs=0.01)


def test_the_linear_probe_is_judged_on_unseen_groups():
    rng = np.random.default_rng(2)
    labels = np.tile(np.arange(60) % 3, 2)
    groups = np.tile(np.arange(60), 2)
    domains = np.repeat([0, 1], 60)
    signal = np.eye(3)[labels] * 1.5 + rng.normal(size=(120, 3))
    result = category_scores(signal, labels, groups=groups, ks=(5,))
    reference = LogisticRegression().fit(signal, labels).score(signal, labels)  # seen: an upper end
    assert reference - 0.15 < result["linear"]["accuracy"] <= reference + 0.05
    across = category_scores(signal, labels, groups=groups, domains=domains, ks=(5,))
    assert abs(across["linear"]["accuracy"] - result["linear"]["accuracy"]) < 0.15
    # Vectors that tell the group and nothing else are worth nothing once groups are kept whole.
    identity = np.tile(np.eye(60), (2, 1))
    assert category_scores(identity, labels, groups=groups, ks=(5,))["linear"]["accuracy"] < 0.5


def test_lengths_and_k_are_checked():
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        category_scores(np.ones((4, 2)), ["a", "b", "a"], ks=(1,), linear=False)
    with pytest.raises(ValueError, match="a row has 3 rows to be judged by, too few for k=5"):
        category_scores(np.ones((4, 2)), list("abab"), ks=(5,), linear=False)


def test_pixel_vectors_are_centred_and_of_length_one():
    images = np.random.default_rng(0).integers(256, size=(6, 8, 8, 3)).astype(np.uint8)
    by_hand = images.reshape(6, -1).astype(float) - images.reshape(6, -1).mean(axis=0)
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    assert pixel_vectors(images, size=8) == pytest.approx(by_hand, abs=1e-6)
    darker = (images // 2).astype(np.uint8)
    own = pixel_vectors(images, size=8, centre="image")
    assert (own * pixel_vectors(darker, size=8, centre="image")).sum(axis=1) == pytest.approx(np.ones(6), abs=1e-3)
    small = np.asarray(Image.fromarray(images[0]).resize((4, 4), Image.Resampling.BICUBIC), float)
    small -= small.mean(axis=(0, 1))
    assert pixel_vectors(images, size=4, centre="image")[0] == pytest.approx(
        (small / np.linalg.norm(small)).ravel(), abs=1e-6
    )
    assert (pixel_vectors(images[:1], size=8) == 0).all()  # equals the mean of its set
