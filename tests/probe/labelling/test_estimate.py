"""The expected accuracy, against scikit-learn on the same splits and against the truth that a simulation knows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitembed.probe.labelling.estimate import MIN_RANDOM, expect
from vitembed.probe.labelling.fitting import C
from vitembed.probe.labelling.session import LabelSession


def draw(n, d=8, num_classes=3, apart=1.0, seed=0):
    rng = np.random.default_rng(seed)
    centres = apart * np.random.default_rng(99).standard_normal((num_classes, d))
    labels = rng.integers(0, num_classes, size=n)
    return (centres[labels] + rng.standard_normal((n, d))).astype(np.float32), labels


def test_random_answers_are_judged_by_a_probe_without_them():
    vectors, labels = draw(40)
    drawn = np.arange(40) < MIN_RANDOM  # ten folds of one each
    found = expect(vectors, labels, drawn, confidence=np.zeros(0))
    right = []
    for row in range(MIN_RANDOM):
        others = np.arange(40) != row
        peer = make_pipeline(StandardScaler(), LogisticRegression(C=C)).fit(vectors[others], labels[others])
        right.append(peer.predict(vectors[[row]])[0] == labels[row])
    assert found.accuracy == pytest.approx(np.mean(right))
    assert 0 < found.accuracy < 1
    share, n, z = np.mean(right), MIN_RANDOM, 1.959964
    centre, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(found.ci95, [(centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)])


def test_too_few_random_answers_give_no_number_but_a_warning():
    vectors, labels = draw(60)
    found = expect(vectors, labels, np.arange(60) < MIN_RANDOM - 1, confidence=np.zeros(5))
    assert found.accuracy is None
    assert found.ci95 is None
    assert 0.3 < found.out_of_fold <= 1
    text = " ".join(found.lines())
    assert "too few to tell" in text
    assert "no fair sample" in text
    assert found.to_dict()["num_left"] == 5


def test_one_class_is_bare_of_a_number():
    vectors, _ = draw(30)
    found = expect(vectors, np.zeros(30, dtype=int), np.arange(30) < 5, confidence=np.zeros(0))
    assert found.out_of_fold is None
    assert found.abstain is None


def test_what_more_labels_bring_is_not_claimed_from_few():
    vectors, labels = draw(60, apart=4.0)
    text = " ".join(expect(vectors, labels, np.arange(60) < 12, confidence=np.zeros(0)).lines())
    assert "too near to tell" in text
    vectors, labels = draw(250, apart=4.0)
    found = expect(vectors, labels, np.arange(250) < 200, confidence=np.full(7, 0.99))
    assert "hardly pay any more" in " ".join(found.lines())
    assert found.abstain.threshold is not None
    assert found.num_sure == 7
    vectors, labels = draw(40, d=30, num_classes=4, apart=0.45, seed=3)
    found = expect(vectors, labels, np.ones(40, dtype=bool), confidence=np.zeros(0))
    assert found.with_half < found.accuracy


def test_the_interval_holds_the_truth():
    # A few sessions; benchmarks/label.py counts over many.
    held, off = 0, []
    for seed in range(6):
        vectors, labels = draw(500, apart=0.7, seed=seed)
        names = np.array(["a", "b", "c"])[labels]
        session = LabelSession(vectors, ["a", "b", "c"], seed=seed)
        while session.num_labelled < 75:
            rows = session.ask(25)
            session.answer(rows, names[rows])
        expected = session.expected_accuracy()
        rest = [row for row, label in enumerate(session.labels) if label is None]
        truth = session.probe().score(vectors[rest], names[rest])
        held += expected.ci95[0] <= truth <= expected.ci95[1]
        off.append(expected.accuracy - truth)
    assert held >= 5
    assert abs(np.mean(off)) < 0.1
