"""Paired tests against the binomial formula, statsmodels' Holm by hand, and simulated truth."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from vitembed.probe.evaluation.paired import compare_all, holm, mcnemar


@pytest.mark.parametrize(("b", "c"), [(0, 0), (3, 3), (0, 6), (2, 11), (10, 25)])
def test_mcnemar_is_the_two_sided_binomial(b, c):
    num = b + c
    tail = sum(comb(num, i) for i in range(min(b, c) + 1)) / 2**num
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_differences_and_their_direction():
    first = np.array([True] * 60 + [False] * 40)
    second = np.array([True] * 58 + [False] * 2 + [True] * 20 + [False] * 20)
    (test,) = compare_all([("a", first), ("b", second)], seed=0)
    assert (test.first, test.second, test.only_first, test.only_second) == ("a", "b", 2, 20)
    assert test.difference == pytest.approx(0.18)
    assert test.ci95[0] > 0.08
    assert test.ci95[1] < 0.28
    assert test.p == test.p_holm == pytest.approx(mcnemar(2, 20))
    assert [(t.first, t.second) for t in compare_all([("a", first), ("b", second), ("c", first)], seed=0)] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]


def test_equal_encoders_are_seldom_called_different_also_in_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    false_alarms = {"items": 0, "groups": 0}
    for _ in range(40):
        first, second = (np.repeat(rng.random(40) < 0.6, 5) for _ in range(2))  # a group is right or wrong as one
        right = [("a", first), ("b", second)]
        false_alarms["items"] += compare_all(right, seed=0)[0].p < 0.05
        false_alarms["groups"] += compare_all(right, seed=0, groups=groups)[0].p < 0.05
    assert false_alarms["groups"] <= 6
    assert false_alarms["items"] > 10  # the very mistake that groups are for
