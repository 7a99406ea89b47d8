"""Scores without labels, against loops and known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitembed.pretrain.watch.scores import mean_cosine, rankme, standard_error, view_retrieval


def vectors(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_rankme_counts_the_dimensions_in_use():
    assert rankme(torch.eye(6)) == pytest.approx(6, rel=1e-5)
    assert rankme(torch.ones(20, 8)) == pytest.approx(1, abs=1e-3)
    x = vectors(30, 12)
    x[:, 4:] *= 1e-4
    values = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    share = values / values.sum()
    assert rankme(torch.from_numpy(x)) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert 3 < rankme(torch.from_numpy(x)) < 4.1


def test_view_retrieval_is_what_a_loop_counts():
    first = vectors(40, 6)
    second = first + 0.8 * vectors(40, 6, seed=1)
    right = 0
    for i in range(40):
        cosines = [
            float(np.dot(first[i], second[j]) / np.linalg.norm(first[i]) / np.linalg.norm(second[j])) for j in range(40)
        ]
        right += int(np.argmax(cosines)) == i
    assert 5 < right < 39
    assert view_retrieval(torch.from_numpy(first), torch.from_numpy(second)) == pytest.approx(right / 40)


def test_view_retrieval_of_vectors_that_are_all_the_same_is_chance():
    same = torch.ones(25, 4)
    assert view_retrieval(same, same) == pytest.approx(1 / 25)
    assert view_retrieval(torch.eye(25), torch.eye(25)) == 1.0


def test_mean_cosine_is_the_mean_over_pairs():
    x = vectors(15, 5) + 1
    cosines = [
        np.dot(x[i], x[j]) / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i in range(15) for j in range(15) if i != j
    ]
    assert mean_cosine(torch.from_numpy(x)) == pytest.approx(float(np.mean(cosines)), rel=1e-5)
    assert mean_cosine(torch.ones(4, 3)) == pytest.approx(1.0)
    assert mean_cosine(torch.eye(4)) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
        mean_cosine(torch.ones(1, 3))


def test_the_standard_error_is_that_of_a_share():
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    draws = np.random.default_rng(0).binomial(200, 0.1, size=20000) / 200
    assert standard_error(0.1, 200) == pytest.approx(float(draws.std()), rel=0.05)
    assert standard_error(0.0, 100) > 0
