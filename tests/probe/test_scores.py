"""Scores against scikit-learn's, intervals against the binomial truth, splits against their promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from vitembed.errors import DataError
from vitembed.probe.scores import accuracy_interval, score
from vitembed.probe.split import given_split, grouped_split, stratified_split


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, size=200)
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 7, size=200))  # class 6 is never true
    found = score(predicted, truth, 9, rng=rng)
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert found.balanced_accuracy == pytest.approx(np.mean([(predicted[truth == c] == c).mean() for c in range(6)]))
    assert found.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro", zero_division=0))
    assert found.ci95[0] < found.accuracy < found.ci95[1]
    same = score(np.minimum(predicted, 5), truth, 9, rng=rng)
    assert same.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, np.minimum(predicted, 5)))


@pytest.mark.parametrize("num", [15, 30, 100, 400])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.9, 0.97])
def test_interval_covers_the_binomial_truth(num, share):
    # Exact coverage: the chance of each count times whether its interval holds the true share.
    rng = np.random.default_rng(0)
    chance = binom.pmf(np.arange(num + 1), num, share)
    coverage = 0.0
    for count in np.flatnonzero(chance > 1e-6):
        low, high = accuracy_interval(np.arange(num) < count, rng=rng)
        coverage += chance[count] * (low <= share <= high)
    assert 0.92 <= coverage <= 0.999


def test_interval_equals_resampling_items():
    right = np.arange(300) < 210
    rng = np.random.default_rng(1)
    draws = right[rng.integers(0, 300, size=(20000, 300))].mean(axis=1)
    assert accuracy_interval(right, rng=rng) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.008)


def test_all_right_is_not_certain():
    low, high = accuracy_interval(np.ones(30, dtype=bool), rng=np.random.default_rng(0))
    assert high == 1.0
    assert low == pytest.approx(0.8865, abs=1e-3)  # Wilson: 30 / (30 + 1.96^2)
    assert accuracy_interval(np.zeros(30, dtype=bool), rng=np.random.default_rng(0))[0] == 0.0


def test_group_intervals_cover_where_item_intervals_do_not():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    covered = {"items": 0, "groups": 0}
    for _ in range(150):
        right = np.repeat(rng.random(60) < 0.7, 10)  # a group is right or wrong as one
        for name, given in (("items", None), ("groups", groups)):
            low, high = accuracy_interval(right, rng=rng, groups=given)
            covered[name] += low <= 0.7 <= high
    assert covered["groups"] >= 0.89 * 150
    assert covered["items"] < 0.6 * 150


def test_one_item_per_group_is_no_grouping():
    right = np.arange(200) < 120
    plain = accuracy_interval(right, rng=np.random.default_rng(0))
    grouped = accuracy_interval(right, rng=np.random.default_rng(0), groups=np.arange(200) * 3)
    assert grouped == pytest.approx(plain, abs=0.012)


def test_stratified_split():
    targets = np.repeat(np.arange(5), [100, 40, 3, 2, 1])
    is_test = stratified_split(targets, test_share=0.25, rng=np.random.default_rng(0))
    assert np.bincount(targets[is_test], minlength=5).tolist() == [25, 10, 1, 1, 0]
    again = stratified_split(targets, test_share=0.25, rng=np.random.default_rng(0))
    assert (is_test == again).all()
    other = stratified_split(targets, test_share=0.25, rng=np.random.default_rng(1))
    assert (is_test != other).any()
    most = stratified_split(targets, test_share=0.99, rng=np.random.default_rng(0))
    assert np.bincount(targets[~most], minlength=5).tolist() == [1, 1, 1, 1, 1]


def test_grouped_split_keeps_groups_whole():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, size=400)
    targets = rng.integers(0, 3, size=400)
    is_test = grouped_split(targets, groups, test_share=0.25, seed=0)
    assert not set(groups[is_test]) & set(groups[~is_test])
    assert 0.15 < is_test.mean() < 0.35
    with pytest.raises(DataError, match="2 groups cannot be split into 4 parts"):
        grouped_split(targets, groups % 2, test_share=0.25, seed=0)


def test_given_split():
    assert given_split(["train", "Test", "val"], 3)[0].tolist() == [False, True, False]
    assert given_split(["train", "Test", "val"], 3)[1] == ["1 val images joined train: the probes are tested on test"]
    assert given_split(["training", "validation"], 2)[0].tolist() == [False, True]
    assert given_split(np.array([True, False]), 2)[0].tolist() == [True, False]
    with pytest.raises(DataError, match="unknown split 'dev'"):
        given_split(["train", "dev"], 2)
    with pytest.raises(DataError, match="expected one entry for each of 3"):
        given_split(["train", "test"], 3)
    with pytest.raises(DataError, match="2 train and 0 test images"):
        given_split(["train", "train"], 2)
