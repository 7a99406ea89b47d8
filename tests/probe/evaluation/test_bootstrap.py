"""Balanced accuracy, F1 and AUROC against scikit-learn, their intervals against resampling items one by one."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from vitembed.probe.evaluation.bootstrap import auroc, auroc_interval, class_mean_intervals
from vitembed.probe.evaluation.wilson import wilson_interval
from vitembed.probe.scores import score


def answers(num=300, classes=5, right=0.7, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, size=num)
    return np.where(rng.random(num) < right, truth, rng.integers(0, classes, size=num)), truth


def test_intervals_are_those_of_resampled_items():
    predicted, truth = answers()
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(300):
        rows = rng.integers(0, len(truth), size=len(truth))
        draws.append(
            (
                balanced_accuracy_score(truth[rows], predicted[rows]),
                f1_score(truth[rows], predicted[rows], average="macro"),
            )
        )
    expected = np.quantile(draws, [0.025, 0.975], axis=0).T
    found = class_mean_intervals(predicted, truth, 5, rng=rng)
    np.testing.assert_allclose(found, expected, atol=0.015)


def test_groups_of_copies_widen_the_interval():
    predicted, truth = (np.repeat(part, 6) for part in answers(num=60))
    groups = np.repeat(np.arange(60), 6)
    rng = np.random.default_rng(0)
    (low, high), _ = class_mean_intervals(predicted, truth, 5, rng=rng)
    (wide_low, wide_high), _ = class_mean_intervals(predicted, truth, 5, rng=rng, groups=groups)
    # Each image six times is no more information: the interval is about the root of six times as wide.
    assert (wide_high - wide_low) / (high - low) == pytest.approx(6**0.5, rel=0.15)


def test_all_right_is_not_certain_of_class_means_either():
    truth = np.arange(30) % 3
    (low, high), (f1_low, f1_high) = class_mean_intervals(truth, truth, 3, rng=np.random.default_rng(0))
    assert high == f1_high == 1.0
    assert low == f1_low == pytest.approx(wilson_interval(30, 30)[0])


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_that_of_scikit_learn(ties):
    rng = np.random.default_rng(0)
    truth = (rng.random(200) < 0.3).astype(np.int64)
    positive = truth + rng.standard_normal(200)
    positive = np.round(positive) if ties else positive
    assert auroc(positive, truth) == pytest.approx(roc_auc_score(truth, positive))
    draws = []
    for _ in range(300):
        rows = rng.integers(0, 200, size=200)
        draws.append(roc_auc_score(truth[rows], positive[rows]))
    found = auroc_interval(positive, truth, rng=rng)
    np.testing.assert_allclose(found, np.quantile(draws, [0.025, 0.975]), atol=0.015)


def test_auroc_where_there_is_nothing_to_rank_or_no_doubt():
    assert auroc(np.arange(4.0), np.zeros(4, dtype=np.int64)) is None
    truth = np.arange(40) % 2
    low, high = auroc_interval(truth.astype(float), truth, rng=np.random.default_rng(0))
    assert (low, high) == (pytest.approx(wilson_interval(20, 20)[0]), 1.0)


def test_scores_of_two_classes_hold_auroc():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, size=100)
    positive = np.clip(0.3 + 0.4 * truth + 0.2 * rng.standard_normal(100), 0, 1)
    found = score((positive > 0.5).astype(np.int64), truth, 2, rng=rng, positive=positive).to_dict()
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, positive))
    for name in ("balanced_accuracy", "macro_f1", "auroc"):
        low, high = found[f"{name}_ci95"]
        assert 0 <= low <= found[name] <= high <= 1
    assert "auroc" not in score(truth, truth, 2, rng=rng).to_dict()
