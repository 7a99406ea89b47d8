"""Planted leaks and wrong labels are found, curves and thresholds are those of a plain loop."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from vitembed.embeddings import Embeddings
from vitembed.errors import ConfigError, DataError
from vitembed.probe.evaluation.abstain import calibrate, is_sure
from vitembed.probe.evaluation.compare import compare
from vitembed.probe.evaluation.few_shot import few_shot_curve
from vitembed.probe.evaluation.label_errors import confident_disagreement, find_label_errors
from vitembed.probe.evaluation.leakage import copy_groups, leaks_across
from vitembed.probe.evaluation.mistakes import surest_mistakes
from vitembed.probe.evaluation.study import study
from vitembed.probe.report import evaluate


def clusters(n=240, d=12, classes=3, noise=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size=n)
    centres = 2 * np.random.default_rng(99).standard_normal((classes, d))
    return (centres[labels] + noise * rng.standard_normal((n, d))).astype(np.float32), labels


# leaks


def test_planted_leaks_are_found_with_their_partner():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 24)) + 10
    vectors[[150, 170]] = vectors[[3, 7]] + 0.01 * rng.standard_normal((2, 24))
    leaks = leaks_across(vectors, np.arange(100), np.arange(100, 200), device="cpu")
    assert [(leak.test_row, leak.train_row) for leak in leaks] == [(150, 3), (170, 7)]
    assert all(leak.similarity >= 0.995 for leak in leaks)


def test_copy_groups_are_the_connected_pairs_of_brute_force(monkeypatch):
    monkeypatch.setattr("vitembed.probe.evaluation.leakage._ROWS", 16)
    monkeypatch.setattr("vitembed.probe.evaluation.leakage._COLUMNS", 32)
    rng = np.random.default_rng(0)
    base = rng.standard_normal((30, 16))
    vectors = base[rng.integers(0, 30, size=90)] + 0.09 * rng.standard_normal((90, 16))
    unit = vectors - vectors.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    number = np.arange(90)
    near = unit @ unit.T >= 0.995
    assert 20 < np.triu(near, 1).sum() < 200  # some, and not all, of the pairs
    for _ in range(90):
        number = np.where(near, number[None, :], 90).min(axis=1)
    found = copy_groups(vectors, device="cpu")
    assert np.array_equal(found[:, None] == found, number[:, None] == number)
    joined = copy_groups(vectors, device="cpu", groups=np.arange(90) // 45)
    assert len(np.unique(joined[:45])) == 1


def test_copies_with_another_label_are_told():
    vectors, labels = clusters(n=100)
    split = np.arange(103) >= 100
    given = np.r_[labels, labels[0], labels[1], (labels[2] + 1) % 3]
    notes = evaluate(np.r_[vectors, vectors[:3]], given, split=split).notes
    assert notes[-1].startswith("1 of these copies are labelled otherwise than their original")


def test_copies_can_be_kept_on_one_side():
    vectors, labels = clusters()
    vectors, labels = np.repeat(vectors, 2, axis=0), np.repeat(labels, 2)  # every image twice
    assert evaluate(vectors, labels).num_near_duplicates > 50
    report = evaluate(vectors, labels, group_copies=True)
    assert report.num_near_duplicates == 0
    assert "480 images in 240 groups of near duplicates were kept on one side" in report.notes[0]
    with pytest.raises(ConfigError, match="this data comes with its own"):
        evaluate(vectors, labels, split=np.arange(480) % 2 == 0, group_copies=True)


# wrong labels


def test_planted_label_errors_are_found_and_few_others():
    vectors, labels = clusters(n=300)
    wrong = np.random.default_rng(5).choice(300, size=20, replace=False)
    given = labels.copy()
    given[wrong] = (labels[wrong] + 1) % 3
    found = find_label_errors(vectors, given, C=1.0, device="cpu")
    rows = [doubt.row for doubt in found]
    assert len(set(rows) & set(wrong.tolist())) >= 14
    assert len(set(rows) - set(wrong.tolist())) <= 3
    assert all(doubt.suggested == labels[doubt.row] for doubt in found if doubt.row in wrong)
    margins = [doubt.probability - doubt.label_probability for doubt in found]
    assert margins == sorted(margins, reverse=True)


def test_a_wrong_label_is_not_confirmed_by_its_copies():
    vectors, labels = clusters(n=300)
    vectors[1:4], labels[1:4] = vectors[0], labels[0]
    given = labels.copy()
    given[:4] = (labels[0] + 1) % 3
    assert {0, 1, 2, 3} <= {doubt.row for doubt in find_label_errors(vectors, given, C=1000.0, device="cpu")}


def test_a_probe_that_knows_nothing_accuses_nobody():
    rng = np.random.default_rng(0)
    found = find_label_errors(
        rng.standard_normal((300, 12)).astype(np.float32), rng.integers(0, 4, 300), C=1.0, device="cpu"
    )
    assert len(found) <= 5


def test_the_rule_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, size=200)
    logits = rng.standard_normal((200, 4)) + 2.5 * np.eye(4)[targets]
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    bars = [prob[targets == c, c].mean() for c in range(4)]
    trusted = calibrate(prob.max(axis=1), prob.argmax(axis=1) == targets, target_precision=0.7).threshold
    expected = set()
    for row in range(200):
        reached = [c for c in range(4) if prob[row, c] >= bars[c]]
        best = max(reached, key=lambda c: prob[row, c]) if reached else targets[row]
        if best != targets[row] and prob[row, best] > prob[row, targets[row]] and prob[row].max() >= trusted:
            expected.add((row, int(best)))
    assert expected
    assert {(doubt.row, doubt.suggested) for doubt in confident_disagreement(prob, targets)} == expected
    prob[0] = np.nan  # nobody judged it
    assert all(doubt.row != 0 for doubt in confident_disagreement(prob, targets))


# few shots


def test_few_shot_curve_rises_and_says_who_has_too_few():
    vectors, labels = clusters(n=400, noise=3.0)
    labels[labels == 2] = np.where(np.arange((labels == 2).sum()) < 5, 2, 0)  # a class of five
    points = few_shot_curve(vectors[:300], labels[:300], vectors[300:], labels[300:], num_draws=3, device="cpu")
    assert [point.shots for point in points] == [1, 2, 4, 8, 16, 32, 64]
    have = min(5, (labels[:300] == 2).sum())
    assert [point.num_short for point in points] == [int(have < shots) for shots in (1, 2, 4, 8, 16, 32, 64)]
    assert points[-1].accuracy > points[0].accuracy + 0.1
    assert all(len(point.accuracies) == 3 for point in points)
    again = few_shot_curve(vectors[:300], labels[:300], vectors[300:], labels[300:], num_draws=3, device="cpu")
    assert [point.accuracies for point in again] == [point.accuracies for point in points]


def test_no_test_label_reaches_the_few_shot_probes():
    vectors, labels = clusters(n=200)
    points = few_shot_curve(vectors[:100], labels[:100], vectors[100:], labels[100:], num_draws=1, device="cpu")
    shuffled = np.random.default_rng(0).permutation(labels[100:])
    blind = few_shot_curve(vectors[:100], labels[:100], vectors[100:], shuffled, num_draws=1, device="cpu")
    assert points[-1].accuracy > 0.8
    assert blind[-1].accuracy < 0.5


# abstaining


def test_threshold_is_the_lowest_with_the_precision():
    rng = np.random.default_rng(0)
    confidence = np.round(rng.random(300), 2)  # with ties
    right = rng.random(300) < confidence
    for target in (0.6, 0.8, 0.95):
        rule = calibrate(confidence, right, target_precision=target)
        behind = {t: right[confidence >= t] for t in np.unique(confidence)}
        fit = [t for t, answers in behind.items() if answers.mean() >= target and len(answers) >= 20]
        assert rule.threshold == (min(fit) if fit else None)
        if fit:
            sure = is_sure(confidence, rule.threshold)
            assert rule.precision == pytest.approx(right[sure].mean())
            assert rule.coverage == pytest.approx(sure.mean())
            assert rule.precision_ci95[0] <= rule.precision <= rule.precision_ci95[1]


def test_threshold_at_the_ends():
    assert calibrate(np.array([0.5, 0.9]), np.array([True, True])).threshold == 0.0
    few = np.linspace(1, 0, 100)  # the ten surest are right: too few to believe
    assert calibrate(few, np.arange(100) < 10).threshold is None
    assert calibrate(few, np.arange(100) < 30).threshold == pytest.approx(few[30])
    nothing = calibrate(np.array([0.5, 0.9]), np.array([True, False]), target_precision=0.9)
    assert (nothing.threshold, nothing.coverage) == (None, 0.0)
    assert not is_sure(np.ones(3), None).any()
    with pytest.raises(ConfigError, match=r"precision 1\.5"):
        calibrate(np.ones(1), np.ones(1, dtype=bool), target_precision=1.5)


# the whole


def test_surest_mistakes():
    prob = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]])
    found = surest_mistakes(prob, np.array([1, 0, 1, 0]), np.array([10, 11, 12, 13]))
    assert [(wrong.row, wrong.truth, wrong.predicted) for wrong in found] == [(10, 1, 0), (11, 0, 1), (13, 0, 1)]


def test_study_is_json_with_everything_in_it():
    vectors, labels = clusters(noise=3.0)
    named = np.array(["ant", "bee", "cat"])[labels]
    ids = [f"{i}.png" for i in range(len(labels))]
    found = study(Embeddings(vectors, ids, "f" * 64, named), num_draws=2)
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"few_shot", "abstain", "confusion", "confused", "leaks", "mistakes", "label_errors"} <= set(document)
    test = found.fitted.test
    expected = confusion_matrix(named[test], np.array(["ant", "bee", "cat"])[found.fitted.answers["linear"]])
    assert document["confusion"] == expected.tolist()
    wrong = round((1 - document["linear"]["accuracy"]) * len(test))
    assert len(document["mistakes"]) == wrong == sum(each["count"] for each in document["confused"])
    assert all(each["path"] in ids and each["label"] != each["predicted"] for each in document["mistakes"])
    assert found.to_dict() == study(Embeddings(vectors, ids, "f" * 64, named), num_draws=2).to_dict()


def test_comparing_uses_one_split_for_all():
    vectors, labels = clusters(noise=2.0)
    ids = [str(i) for i in range(len(labels))]
    rng = np.random.default_rng(0)
    good = Embeddings(vectors, ids, "a", labels)
    bad = Embeddings(rng.standard_normal(vectors.shape).astype(np.float32), ids, "b", labels)
    found = compare([("good", good), ("bad", bad)], num_draws=0)
    first, second = found.studies.values()
    assert np.array_equal(first.fitted.is_test, second.fitted.is_test)
    (test,) = found.tests["linear"]
    assert test.difference == pytest.approx(second.report.linear.accuracy - first.report.linear.accuracy)
    assert test.difference < -0.2
    assert test.p_holm < 1e-3
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(DataError, match="not of the same images"):
        compare([("good", good), ("bad", bad[np.arange(100)])])
    with pytest.raises(ConfigError, match="two or more encoders"):
        compare([("good", good), ("good", bad)])
