"""The ridge probe against scikit-learn's and against fits that leave out each row in turn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError
from vitembed.probe.ridge import ALPHAS, RidgeProbe


@parametrize_with_checks(
    [RidgeProbe(), RidgeProbe(alpha=1.0, class_weight="balanced")],
    # As of RidgeClassifier: rows are counted to balance the classes, whatever their weights.
    expected_failed_checks=lambda probe: (
        {"check_sample_weight_equivalence_on_dense_data": "as RidgeClassifier"} if probe.class_weight else {}
    ),
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def blobs(n=90, d=7, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size=n)
    return rng.standard_normal((classes, d))[labels] + 1.5 * rng.standard_normal((n, d)) + 5.0, labels


@pytest.mark.parametrize(("n", "d"), [(90, 7), (40, 60)])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_same_choice_and_coefficients_as_scikit_learn(n, d, classes, class_weight):
    vectors, labels = blobs(n, d, classes)
    scaled = StandardScaler().fit_transform(vectors)
    peer = RidgeClassifierCV(alphas=ALPHAS, class_weight=class_weight, store_cv_results=True).fit(scaled, labels)
    probe = RidgeProbe(class_weight=class_weight).fit(vectors, labels)
    assert probe.alpha_ == peer.alpha_
    assert ALPHAS[0] < probe.alpha_ < ALPHAS[-1]
    np.testing.assert_allclose(probe.coef_ * probe.scale_, np.atleast_2d(peer.coef_), atol=1e-8)
    np.testing.assert_allclose(probe.decision_function(vectors), peer.decision_function(scaled), atol=1e-8)
    assert (probe.predict(vectors) == peer.predict(scaled)).all()
    if class_weight is None:
        errors = peer.cv_results_.mean(axis=(0, 1))
        np.testing.assert_allclose([point.squared_error for point in probe.path_], errors, rtol=1e-6)


def test_left_out_errors_equal_fits_without_the_row():
    vectors, labels = blobs(n=25)
    weights = np.random.default_rng(1).uniform(0.2, 2.0, size=25)
    probe = RidgeProbe(alpha=3.0, standardize=False).fit(vectors, labels, sample_weight=weights)
    errors, right = [], []
    for i in range(25):
        others = np.arange(25) != i
        one = RidgeClassifier(alpha=3.0).fit(vectors[others], labels[others], sample_weight=weights[others])
        value = one.decision_function(vectors[i : i + 1])[0]
        errors.append(np.mean((np.where(np.arange(3) == labels[i], 1, -1) - value) ** 2))
        right.append(value.argmax() == labels[i])
    (point,) = probe.path_
    assert point.squared_error == pytest.approx(np.average(errors, weights=weights), rel=1e-9)
    assert point.accuracy == pytest.approx(np.average(right, weights=weights), rel=1e-9)


def test_copies_of_a_row_are_left_out_together():
    vectors, labels = blobs(n=40)
    twice = RidgeProbe().fit(np.r_[vectors, vectors], np.r_[labels, labels])
    heavy = RidgeProbe().fit(vectors, labels, sample_weight=np.full(40, 2.0))
    assert twice.alpha_ == heavy.alpha_
    np.testing.assert_allclose(twice.coef_, heavy.coef_, atol=1e-10)


def test_indicator_matrix_is_one_regression_for_each_label():
    vectors, labels = make_multilabel_classification(n_samples=120, n_features=9, n_classes=4, random_state=0)
    peer = RidgeClassifierCV(alphas=ALPHAS).fit(StandardScaler().fit_transform(vectors), labels)
    probe = RidgeProbe().fit(vectors, labels)
    assert probe.alpha_ == peer.alpha_
    np.testing.assert_allclose(probe.coef_ * probe.scale_, np.atleast_2d(peer.coef_), atol=1e-8)
    expected = peer.predict(StandardScaler().fit_transform(vectors))
    assert (probe.predict(vectors) == expected).all()
    assert probe.score(vectors, labels) == pytest.approx((expected == labels).all(axis=1).mean())
    with pytest.raises(ValueError, match="can be 'balanced', but not weighted by a dict"):
        RidgeProbe(class_weight={1: 2.0}).fit(vectors, labels)


@pytest.mark.parametrize("kind", [2, 3, "multilabel"])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0}, {0: 0.0, 1: 2.0}])
@pytest.mark.parametrize("weighted", ["no", "yes", "some are 0"])
def test_same_as_ridge_classifier_with_class_and_sample_weights(kind, class_weight, weighted):
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((90, 6)) + 3
    if kind == "multilabel":
        if isinstance(class_weight, dict):
            pytest.skip("RidgeClassifier takes none")
        labels = (rng.random((90, 3)) < [0.2, 0.5, 0.7]).astype(int)
    else:
        labels = rng.choice(3, size=90, p=[0.6, 0.3, 0.1]) if kind == 3 else rng.choice(2, size=90, p=[0.8, 0.2])
        vectors[:, 0] += labels
    weights = None if weighted == "no" else rng.uniform(0.2, 3.0, size=90)
    if weighted == "some are 0":
        weights = weights * (np.arange(90) % 4 > 0)
    scaler = StandardScaler().fit(vectors, sample_weight=weights)
    peer = RidgeClassifier(alpha=2.0, class_weight=class_weight).fit(
        scaler.transform(vectors), labels, sample_weight=weights
    )
    probe = RidgeProbe(alpha=2.0, class_weight=class_weight).fit(vectors, labels, sample_weight=weights)
    expected = peer.decision_function(scaler.transform(vectors))
    np.testing.assert_allclose(probe.decision_function(vectors), expected, atol=1e-9)


def test_it_is_worth_something_and_takes_embeddings():
    digits, labels = load_digits(return_X_y=True)
    ids = [str(i) for i in range(1000)]
    probe = RidgeProbe().fit(Embeddings(vectors=digits[:1000], ids=ids, fingerprint="f", labels=labels[:1000]))
    assert probe.score(digits[1000:], labels[1000:]) > 0.88
    assert probe.path_[ALPHAS.index(probe.alpha_)].accuracy > 0.9
    with pytest.raises(DataError, match="carry no labels"):
        RidgeProbe().fit(Embeddings(vectors=digits[:1000], ids=ids, fingerprint="f"))


def test_works_in_scikit_learn_tools():
    vectors, labels = blobs()
    assert cross_val_score(make_pipeline(Normalizer(), RidgeProbe()), vectors, labels, cv=3).mean() > 0.4
    search = GridSearchCV(RidgeProbe(), {"alpha": [0.1, 100.0]}, cv=3).fit(vectors, labels)
    assert search.best_params_["alpha"] in (0.1, 100.0)
    assert clone(RidgeProbe(alpha=3.0)).get_params()["alpha"] == 3.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha=0.0: expected a number > 0"),
        ({"alphas": []}, "expected one or more numbers"),
        ({"class_weight": "equal"}, "class_weight='equal'"),
        ({"class_weight": {"x": 2.0}}, "class_weight names 'x', not among the labels 0, 1, 2"),
        ({"class_weight": [0, 1, 2]}, "expected None, 'balanced' or a dict"),
        ({"class_weight": np.array([1.0, 2.0])}, "expected None, 'balanced' or a dict"),
        ({"class_weight": {0: -1}}, r"class_weight\[0\] is -1: expected a finite number >= 0"),
        ({"class_weight": {0: np.nan}}, r"class_weight\[0\] is nan"),
        ({"class_weight": {0: "much"}}, r"class_weight\[0\] is 'much'"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, "every weight is 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    vectors, labels = blobs()
    with pytest.raises(ValueError, match=message):
        RidgeProbe(**settings).fit(vectors, labels)
