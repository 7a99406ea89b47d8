"""The report on data whose answer is known."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from sklearn.metrics import recall_score

from vitembed.embeddings import Embeddings
from vitembed.errors import ConfigError, DataError
from vitembed.probe.knn import KNNProbe
from vitembed.probe.linear import LinearProbe
from vitembed.probe.report import evaluate


def clusters(n=400, d=16, classes=4, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size=n)
    centres = rng.standard_normal((classes, d))
    return (centres[labels] + noise * rng.standard_normal((n, d))).astype(np.float32), labels


def test_separable_classes_are_told_apart():
    vectors, labels = clusters()
    report = evaluate(vectors, np.array(["ant", "bee", "cat", "dog"])[labels])
    assert (report.num_images, report.num_classes) == (400, 4)
    assert report.num_train + report.num_test == 400
    assert report.num_test == pytest.approx(100, abs=2)
    assert report.knn.accuracy == report.linear.accuracy == 1.0
    assert report.linear.ci95[0] > 0.95
    assert report.majority.accuracy < 0.4
    assert report.majority.balanced_accuracy == 0.25
    assert [row.label for row in report.classes] == ["ant", "bee", "cat", "dog"]
    assert all(row.linear_recall == row.linear_precision == row.knn_recall == 1.0 for row in report.classes)
    assert report.notes == []


def test_random_labels_give_no_more_than_the_majority():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((800, 16)).astype(np.float32)
    labels = (rng.random(800) < 0.3).astype(int)
    report = evaluate(vectors, labels)
    low, high = report.linear.ci95
    assert low <= report.majority.accuracy <= high
    assert low <= 0.7 <= high
    assert report.linear.balanced_accuracy == pytest.approx(0.5, abs=0.1)


def test_the_numbers_are_those_of_the_probes_on_the_split():
    vectors, labels = clusters(noise=2.0)
    is_test = np.random.default_rng(1).random(400) < 0.4
    report = evaluate(vectors, labels * 10 - 7, split=is_test)
    truth = labels[is_test]
    linear = LinearProbe().fit(vectors[~is_test], labels[~is_test])
    knn = KNNProbe().fit(vectors[~is_test], labels[~is_test])
    assert report.linear.accuracy == pytest.approx(linear.score(vectors[is_test], truth))
    assert report.knn.accuracy == pytest.approx(knn.score(vectors[is_test], truth))
    assert report.C == linear.C_
    recall = recall_score(truth, linear.predict(vectors[is_test]), average=None)
    assert [row.linear_recall for row in report.classes] == pytest.approx(recall.tolist())
    assert [row.label for row in report.classes] == [-7, 3, 13, 23]
    assert [row.num_test for row in report.classes] == np.bincount(truth).tolist()
    named = np.where(is_test, "test", "train")
    assert evaluate(vectors, labels * 10 - 7, split=named).to_dict() == report.to_dict()


def test_dict_is_the_documented_json():
    vectors, labels = clusters(noise=2.0)
    found = json.loads(json.dumps(evaluate(vectors, labels).to_dict(), allow_nan=False))
    assert list(found)[:5] == ["num_images", "num_classes", "majority", "knn", "linear"]
    for method in ("majority", "knn", "linear"):
        assert {"accuracy", "ci95", "balanced_accuracy", "macro_f1"} <= set(found[method])
        low, high = found[method]["ci95"]
        assert 0 <= low <= found[method]["accuracy"] <= high <= 1


def test_same_seed_same_report():
    vectors, labels = clusters(noise=2.0)
    assert evaluate(vectors, labels, seed=3).to_dict() == evaluate(vectors, labels, seed=3).to_dict()
    assert evaluate(vectors, labels, seed=3).to_dict() != evaluate(vectors, labels, seed=4).to_dict()


def test_embeddings_bring_their_labels():
    vectors, labels = clusters()
    ids = [str(i) for i in range(len(labels))]
    embeddings = Embeddings(vectors=vectors, ids=ids, fingerprint="f", labels=labels)
    assert evaluate(embeddings).to_dict() == evaluate(vectors, labels.tolist()).to_dict()
    with pytest.raises(DataError, match="carry no labels"):
        evaluate(Embeddings(vectors=vectors, ids=ids, fingerprint="f"))


def test_near_duplicates_across_the_split_are_counted():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 32)) + 20.0  # a large common part, as many encoders have
    labels = rng.integers(0, 2, size=300)
    copies = vectors[:40] + 0.01 * rng.standard_normal((40, 32))
    split = ["train"] * 300 + ["test"] * 100
    others = rng.standard_normal((60, 32)) + 20.0
    report = evaluate(
        np.r_[vectors, copies, others], np.r_[labels, labels[:40], rng.integers(0, 2, size=60)], split=split
    )
    assert report.num_near_duplicates == 40
    assert "40 of 100 test images have a near duplicate among the training images" in report.notes[0]
    assert "without them k-NN is" in report.notes[0]


def test_groups_stay_on_one_side_and_straddling_is_told():
    vectors, labels = clusters(noise=1.0)
    groups = np.array([f"film {i}" for i in np.arange(400) // 8])
    assert evaluate(vectors, labels, groups=groups).notes == []
    told = evaluate(vectors, labels, groups=groups, split=np.arange(400) % 2 == 0).notes
    assert "50 groups have images on both sides" in told[0]


def test_classes_of_one_image_are_kept_for_training_and_told():
    vectors, labels = clusters(classes=3)
    labels[:2] = [7, 8]
    report = evaluate(vectors, labels)
    assert report.notes == ["2 of 5 classes are never tested: no test images (7, 8)"]
    assert (report.classes[3].num_train, report.classes[3].num_test) == (1, 0)
    assert report.classes[3].linear_recall is None
    unseen = evaluate(vectors, labels, split=np.isin(np.arange(400), [0, 1, 5, 6, 7]))
    assert "2 of 5 classes are never right: no training images (7, 8)" in unseen.notes


def test_labels_as_people_have_them():
    vectors, labels = clusters(classes=2)
    expected = evaluate(vectors, labels).linear.accuracy
    for given in (labels.astype(bool), np.array(["a", "b"], dtype=object)[labels], labels.astype(np.uint8)):
        assert evaluate(vectors, given).linear.accuracy == expected
    assert evaluate(vectors.astype(np.float16).tolist(), labels.tolist()).num_images == 400


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (["a"] * 6, {}, "at least 2 classes, the labels hold 1: 'a'"),
        (list("abcdef"), {}, "each of the 6 classes has one image"),
        (list("ab"), {}, "2 labels for 6 vectors"),
        ([0.5] * 6, {}, "labels have type float64"),
        ([None, "a", "a", "b", "b", "b"], {}, "labels have type object"),
        ([[1]] * 6, {}, r"labels have shape \[6, 1\]"),
        (None, {}, "needs a label for each image"),
        (list("aaabbb"), {"split": ["train"] * 3 + ["test"] * 3}, "training images are of 1 class"),
        (list("aaabbb"), {"split": ["train"] * 6}, "6 train and 0 test"),
        (list("aaabbb"), {"groups": [1, 2]}, "groups have shape"),
    ],
)
def test_what_cannot_be_probed(labels, settings, message):
    vectors = np.random.default_rng(0).standard_normal((6, 3))
    with pytest.raises(DataError, match=message) as raised:
        evaluate(vectors, labels, **settings)
    assert "\n" not in str(raised.value)


def test_unusable_vectors_and_settings():
    labels = [0, 0, 1, 1]
    with pytest.raises(DataError, match="NaN or infinity"):
        evaluate(np.array([[0.0], [1.0], [np.nan], [1.0]]), labels)
    with pytest.raises(DataError, match=r"shape \[4\]"):
        evaluate(np.zeros(4), labels)
    with pytest.raises(ConfigError, match=r"test_share=1\.5"):
        evaluate(np.zeros((4, 2)), labels, test_share=1.5)


def test_four_images_are_enough():
    report = evaluate(np.array([[0.0, 1.0], [0.1, 1.0], [5.0, 0.0], [5.1, 0.0]]), ["a", "a", "b", "b"])
    assert report.num_test == 2
    assert report.linear.ci95[0] < 0.5


@pytest.mark.slow
def test_5000_by_384_in_less_than_10_seconds():
    vectors, labels = clusters(n=5000, d=384, classes=10, noise=3.0)
    begin = time.perf_counter()
    evaluate(vectors, labels)
    assert time.perf_counter() - begin < 10
