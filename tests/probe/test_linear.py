"""The linear probe against scikit-learn: its contract, and the same numbers at the same C."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError
from vitembed.probe.choose import PathPoint, _best_point, content_keys, fold_of_rows
from vitembed.probe.linear import C_PATH, DINOV2_C_PATH, LinearProbe


@parametrize_with_checks([LinearProbe(), LinearProbe(C=1.0, class_weight="balanced")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def blobs(n=300, d=12, classes=4, seed=0, spread=1.5):
    """Overlapping classes in correlated features of very different scales."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size=n)
    labels[:classes] = np.arange(classes)
    mix = rng.standard_normal((d, d)) * 10.0 ** rng.uniform(-2, 2, size=d)
    vectors = (rng.standard_normal((classes, d))[labels] + spread * rng.standard_normal((n, d))) @ mix + 3.0
    return vectors, labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("C", [1e-4, 0.05, 1.0, 100.0])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("weighted", [False, True])
def test_same_coefficients_as_scikit_learn(classes, C, class_weight, weighted):
    vectors, labels = blobs(classes=classes)
    weight = np.random.default_rng(1).uniform(0.1, 3.0, size=len(labels)) if weighted else None
    scaler = StandardScaler().fit(vectors, sample_weight=weight)
    peer = LogisticRegression(C=C, class_weight=class_weight, tol=1e-10, max_iter=10000)
    peer.fit(scaler.transform(vectors), labels, sample_weight=weight)
    probe = LinearProbe(C=C, class_weight=class_weight, tol=1e-7).fit(vectors, labels, sample_weight=weight)
    np.testing.assert_allclose(probe.coef_ * probe.scale_, peer.coef_, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(probe.predict_proba(vectors), peer.predict_proba(scaler.transform(vectors)), atol=1e-5)
    np.testing.assert_allclose(
        probe.decision_function(vectors), peer.decision_function(scaler.transform(vectors)), atol=1e-4
    )
    assert (probe.predict(vectors) == peer.predict(scaler.transform(vectors))).all()


def test_same_as_scikit_learn_with_more_features_than_rows():
    vectors, labels = blobs(n=30, d=80, classes=3)
    scaled = StandardScaler().fit_transform(vectors)
    peer = LogisticRegression(C=0.1, tol=1e-10, max_iter=10000).fit(scaled, labels)
    probe = LinearProbe(C=0.1, tol=1e-7).fit(vectors, labels)
    np.testing.assert_allclose(probe.coef_ * probe.scale_, peer.coef_, atol=1e-5)


def test_without_standardizing_it_is_plain_logistic_regression():
    vectors, labels = blobs(n=200, d=5, classes=3)
    vectors = vectors / np.abs(vectors).max()
    peer = LogisticRegression(C=2.0, tol=1e-10, max_iter=10000).fit(vectors, labels)
    probe = LinearProbe(C=2.0, standardize=False, tol=1e-7).fit(vectors, labels)
    np.testing.assert_allclose(probe.coef_, peer.coef_, atol=1e-5)
    np.testing.assert_allclose(probe.intercept_, peer.intercept_, atol=1e-5)


def test_gradient_vanishes_at_the_solution():
    vectors, labels = blobs(classes=3)
    probe = LinearProbe(C=0.5, tol=1e-7).fit(vectors, labels)
    scaled = (vectors - probe.mean_) / probe.scale_
    residual = probe.predict_proba(vectors) - np.eye(3)[labels]
    gradient = 0.5 * residual.T @ scaled + probe.coef_ * probe.scale_
    assert np.abs(gradient).max() < 1e-3  # of a sum over 300 rows
    assert np.abs(residual.sum(axis=0)).max() < 1e-3


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
def test_as_it_comes_it_is_nearer_the_optimum_than_scikit_learn_as_it_comes(C):
    digits, labels = load_digits(return_X_y=True)
    scaled = StandardScaler().fit_transform(digits)
    exact = LogisticRegression(C=C, tol=1e-9, max_iter=10000).fit(scaled, labels).predict_proba(scaled)
    peer = LogisticRegression(C=C, max_iter=10000).fit(scaled, labels).predict_proba(scaled)
    ours = LinearProbe(C=C).fit(digits, labels).predict_proba(digits)
    assert np.abs(ours - exact).max() < 1e-3
    assert np.abs(ours - exact).max() < np.abs(peer - exact).max()


@pytest.mark.parametrize("C", [0.02, 1.0, 50.0])
@pytest.mark.parametrize("class_weight", [None, "balanced", {1: 4.0}])
def test_indicator_matrix_is_one_regression_for_each_label(C, class_weight):
    vectors, labels = make_multilabel_classification(n_samples=150, n_features=8, n_classes=4, random_state=0)
    weight = np.random.default_rng(1).uniform(0.1, 3.0, size=150)
    probe = LinearProbe(C=C, class_weight=class_weight, tol=1e-7).fit(vectors, labels, sample_weight=weight)
    assert probe.multilabel_
    assert probe.classes_.tolist() == [0, 1, 2, 3]
    scaled = (vectors - probe.mean_) / probe.scale_
    for label in range(4):
        peer = LogisticRegression(C=C, class_weight=class_weight, tol=1e-10, max_iter=10000)
        peer.fit(scaled, labels[:, label], sample_weight=weight)
        np.testing.assert_allclose(probe.coef_[label] * probe.scale_, peer.coef_[0], atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(probe.predict_proba(vectors)[:, label], peer.predict_proba(scaled)[:, 1], atol=1e-5)
        assert (probe.predict(vectors)[:, label] == peer.predict(scaled)).all()
    right = (probe.predict(vectors) == labels).all(axis=1).mean()
    assert probe.score(vectors, labels) == pytest.approx(right)


def test_indicator_matrix_chooses_one_c_for_all_labels():
    vectors, labels = make_multilabel_classification(n_samples=300, n_features=10, n_classes=3, random_state=3)
    probe = LinearProbe().fit(vectors[:200], labels[:200])
    assert probe.C_ in {point.C for point in probe.path_}
    assert len(probe.path_) > 5
    cells = (probe.predict(vectors[200:]) == labels[200:]).mean()
    assert cells > max(labels.mean(axis=0).max(), 1 - labels.mean(axis=0).min()) - 0.05
    pair = LinearProbe(C=1.0).fit(vectors, labels[:, :2])  # two labels are not two classes
    assert pair.decision_function(vectors).shape == (300, 2)
    assert pair.predict(vectors).shape == (300, 2)


def test_labels_that_are_everywhere_or_nowhere_are_constants():
    vectors, labels = make_multilabel_classification(n_samples=60, n_features=5, n_classes=3, random_state=0)
    labels[:, 0], labels[:, 2] = 0, 1
    with pytest.warns(UserWarning, match=r"2 of 3 labels are on every row or on none \(columns 0, 2\)"):
        probe = LinearProbe(C=1.0).fit(vectors, labels)
    assert (probe.predict(vectors)[:, [0, 2]] == [0, 1]).all()
    np.testing.assert_allclose(probe.predict_proba(vectors)[:, 0], 0.5 / 61)
    alone = LinearProbe(C=1.0, tol=1e-7).fit(vectors, labels[:, 1])
    np.testing.assert_allclose(probe.predict_proba(vectors)[:, 1], alone.predict_proba(vectors)[:, 1], atol=1e-3)


def test_hold_out_or_cross_validation():
    vectors, labels = blobs()
    one = LinearProbe(num_holdouts=1, Cs=[0.01, 1.0]).fit(vectors, labels)
    held = fold_of_rows(content_keys(vectors, int(np.random.RandomState(0).randint(2**31))), labels) == 0
    for point in one.path_:
        plain = LinearProbe(C=point.C, tol=1e-6).fit(vectors[~held], labels[~held])
        log_prob = plain.predict_log_proba(vectors[held])
        # The path standardises by all rows, the plain fit by its own: near, not equal.
        assert point.log_loss == pytest.approx(-log_prob[np.arange(held.sum()), labels[held]].mean(), abs=0.01)
        assert point.accuracy == pytest.approx(plain.score(vectors[held], labels[held]), abs=0.02)
    five = LinearProbe(num_holdouts=5, Cs=[0.01, 1.0]).fit(vectors, labels)
    assert [p.log_loss for p in five.path_] == [
        p.log_loss for p in LinearProbe(Cs=[0.01, 1.0]).fit(vectors, labels).path_
    ]
    assert five.path_ != one.path_


def test_single_precision_where_the_problem_is_large_changes_nothing_that_counts(monkeypatch):
    vectors, labels = blobs(n=400, classes=5)
    plain = LinearProbe(tol=1e-5).fit(vectors, labels)
    monkeypatch.setattr("vitembed.probe.linear.SMALL_PRODUCT", 1)
    single = LinearProbe(tol=1e-5).fit(vectors, labels)
    assert single.C_ == plain.C_
    np.testing.assert_allclose(single.predict_proba(vectors), plain.predict_proba(vectors), atol=1e-4)
    tiny = LinearProbe(tol=1e-5, standardize=False, C=1.0).fit(vectors * 1e-20, labels)
    assert np.isfinite(tiny.coef_).all()


def test_constant_and_huge_features_are_safe():
    vectors, labels = blobs(n=120, d=6, classes=3)
    base = LinearProbe(C=1.0).fit(vectors, labels)
    padded = np.c_[vectors, np.full(len(vectors), 7.1), np.zeros(len(vectors)), np.full(len(vectors), 1e12)]
    probe = LinearProbe(C=1.0).fit(padded, labels)
    assert np.isfinite(probe.coef_).all()
    np.testing.assert_allclose(probe.predict_proba(padded), base.predict_proba(vectors), atol=1e-5)


@pytest.mark.parametrize("names", [["cat", "dog", "fish"], [-7, 3, 1000], ["ä b", "", "z"]])
def test_labels_of_any_kind(names):
    vectors, labels = blobs(classes=3, spread=0.2)
    named = np.array(names)[labels]
    probe = LinearProbe(C=1.0).fit(vectors, named)
    assert sorted(probe.classes_) == sorted(names)
    assert probe.predict(vectors).dtype == named.dtype
    assert probe.score(vectors, named) > 0.95


def test_chosen_c_is_near_the_best_of_scikit_learn():
    digits, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:600], order[600:]
    probe = LinearProbe().fit(digits[train], labels[train])
    peers = [
        make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000)).fit(digits[train], labels[train])
        for C in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    ]
    assert probe.score(digits[test], labels[test]) >= max(m.score(digits[test], labels[test]) for m in peers) - 0.01
    assert [point.C for point in probe.path_] == sorted(point.C for point in probe.path_)
    chosen = next(point for point in probe.path_ if point.C == probe.C_)
    assert chosen.accuracy >= max(point.accuracy for point in probe.path_) - 0.005
    assert set(C_PATH) >= {point.C for point in probe.path_}
    # The refit is on all rows, from wherever it starts.
    again = LinearProbe(C=probe.C_, tol=1e-7).fit(digits[train], labels[train])
    np.testing.assert_allclose(again.predict_proba(digits), probe.predict_proba(digits), atol=2e-3)


def test_dinov2_path():
    assert len(DINOV2_C_PATH) == 45
    assert DINOV2_C_PATH[0] == pytest.approx(1e-6)
    assert DINOV2_C_PATH[-1] == pytest.approx(1e5)
    vectors, labels = blobs()
    probe = LinearProbe(Cs=DINOV2_C_PATH).fit(vectors, labels)
    assert probe.C_ in DINOV2_C_PATH


def test_random_labels_choose_a_strong_penalty():
    rng = np.random.default_rng(0)
    vectors, labels = rng.standard_normal((400, 30)), rng.integers(0, 2, size=400)
    assert LinearProbe().fit(vectors, labels).C_ <= 1e-3


def test_accuracy_decides_and_log_loss_breaks_near_ties():
    path = [
        PathPoint(0.1, 0.9, 0.70),
        PathPoint(1.0, 0.5, 0.80),
        PathPoint(10.0, 0.6, 0.83),
        PathPoint(99.0, 0.597, 0.83),
    ]
    assert _best_point(path, 10000) == 2  # 0.03 is many standard errors; the log losses are equal within the margin
    assert _best_point(path, 8) == 1  # 0.03 is noise


def test_held_out_folds_are_stratified_and_never_split_copies():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((200, 4))
    labels = np.r_[np.zeros(150, int), np.ones(49, int), 2]
    copies = np.r_[vectors, vectors[:60], vectors[:60]]
    folds = fold_of_rows(content_keys(copies, 0), np.r_[labels, labels[:60], labels[:60]])
    assert (folds[:60] == folds[200:260]).all()
    assert (folds[:60] == folds[260:]).all()
    single = fold_of_rows(content_keys(vectors, 0), labels)
    assert np.bincount(single[:150]).tolist() == [30] * 5
    assert sorted(np.bincount(single[150:199]).tolist()) == [9, 10, 10, 10, 10]
    assert single[199] == -1
    order = rng.permutation(200)
    assert (fold_of_rows(content_keys(vectors[order], 0), labels[order]) == single[order]).all()
    assert (content_keys(np.zeros((1, 4)), 0) == content_keys(np.full((1, 4), -0.0), 0)).all()
    assert len(np.unique(content_keys(vectors.round(1), 0))) == len(np.unique(vectors.round(1) + 0.0, axis=0))


def test_one_row_per_class_still_fits():
    probe = LinearProbe().fit(np.eye(3), ["a", "b", "c"])
    assert probe.path_ == []
    assert probe.predict(np.eye(3)).tolist() == ["a", "b", "c"]


def test_works_in_scikit_learn_tools():
    vectors, labels = blobs()
    pipeline = make_pipeline(Normalizer(), LinearProbe(C=1.0))
    assert cross_val_score(pipeline, vectors, labels, cv=3).mean() > 0.3
    search = GridSearchCV(LinearProbe(), {"C": [0.01, 1.0], "class_weight": [None, "balanced"]}, cv=3)
    assert search.fit(vectors, labels).best_params_["C"] in (0.01, 1.0)
    assert clone(LinearProbe(C=3.0)).get_params()["C"] == 3.0


def test_embeddings_bring_their_labels():
    vectors, labels = blobs()
    ids = [str(i) for i in range(len(labels))]
    embeddings = Embeddings(vectors=vectors, ids=ids, fingerprint="f", labels=labels)
    probe = LinearProbe(C=1.0).fit(embeddings)
    assert probe.score(embeddings) == probe.score(embeddings.vectors, labels)
    assert (probe.predict(embeddings) == probe.predict(embeddings.vectors)).all()
    bare = Embeddings(vectors=vectors, ids=ids, fingerprint="f")
    assert LinearProbe(C=1.0).fit(bare, labels).score(bare, labels) > 0.5
    with pytest.raises(DataError, match="carry no labels"):
        LinearProbe().fit(bare)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"C": 0.0}, "C=0.0: expected a number > 0"),
        ({"C": float("nan")}, "C=nan"),
        ({"Cs": []}, "expected one or more numbers"),
        ({"class_weight": "equal"}, "class_weight='equal'"),
        ({"class_weight": {"x": 2.0}}, "class_weight names"),
        ({"max_iter": 0}, "max_iter >= 1"),
        ({"num_holdouts": 6}, "num_holdouts=6: expected None"),
    ],
)
def test_settings_out_of_range(settings, message):
    vectors, labels = blobs(n=40)
    with pytest.raises(ValueError, match=message):
        LinearProbe(**settings).fit(vectors, labels)


def test_a_matrix_that_is_no_indicator_is_refused():
    vectors, labels = blobs(n=40)
    with pytest.raises(ValueError, match=r"shape \[40, 2\]: expected one a row, or a matrix of zeros and ones"):
        LinearProbe().fit(vectors, np.stack([labels, labels[::-1]], axis=1))


def test_too_few_iterations_warn():
    vectors, labels = blobs()
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        LinearProbe(C=100.0, max_iter=2).fit(vectors, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearProbe().fit(vectors, labels)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0}])
@pytest.mark.parametrize("weighted", [False, True])
def test_same_as_logistic_regression_with_class_and_sample_weights(num_classes, class_weight, weighted):
    rng = np.random.default_rng(3)
    labels = rng.choice(num_classes, size=90, p=[0.6, 0.3, 0.1] if num_classes == 3 else [0.8, 0.2])
    vectors = rng.standard_normal((90, 6)) + labels[:, None]
    weights = rng.uniform(0.2, 3.0, size=90) if weighted else None
    scaler = StandardScaler().fit(vectors, sample_weight=weights)
    peer = LogisticRegression(C=0.5, class_weight=class_weight, tol=1e-9, max_iter=10_000)
    peer.fit(scaler.transform(vectors), labels, sample_weight=weights)
    probe = LinearProbe(C=0.5, class_weight=class_weight, tol=1e-7).fit(vectors, labels, sample_weight=weights)
    expected = peer.predict_proba(scaler.transform(vectors))
    np.testing.assert_allclose(probe.predict_proba(vectors), expected, atol=1e-5)
