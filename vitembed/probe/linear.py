"""Linear probe: multinomial logistic regression on frozen vectors, as a scikit-learn classifier."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from vitembed.embeddings import plain_array
from vitembed.probe.axes import SMALL_PRODUCT, moments, principal_axes, threads_for
from vitembed.probe.choose import MAX_CROSS_VALIDATED, NUM_FOLDS, Choice, choose_c, content_keys, fold_of_rows
from vitembed.probe.inputs import device_name, labels_of, quiet, validated, vectors_of
from vitembed.probe.logistic import LogisticProblem, Sigmoid, Softmax
from vitembed.probe.newton import Solution, Start, solve
from vitembed.probe.targets import Targets, check_class_weight, class_weights, encode

C_PATH: tuple[float, ...] = tuple(10.0 ** (e / 2) for e in range(-12, 7))
"""Default path: half decades from 1e-6 to 1e3."""
DINOV2_C_PATH: tuple[float, ...] = tuple(float(C) for C in 10.0 ** np.linspace(-6, 5, 45))
"""The 45 values of DINOv2's ``eval/log_regression.py`` (Oquab et al. 2023, arXiv:2304.07193)."""
SINGLE_RANGE = (1e-12, 1e12)
"""Mean squares of the inputs between which large problems use float32 where it suffices; else float64 throughout."""
SINGLE_TOL = 2e-4
"""Smallest tolerance that is asked of float32."""


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Logistic regression on standardised vectors, with the penalty chosen on held-out rows.

    Same model and same meaning of ``C`` as ``make_pipeline(StandardScaler(), LogisticRegression(C=C))``, solved in
    float64 (the path, which needs three digits, in float32). Rows with equal content are never on both sides of a
    hold-out. An indicator matrix of labels ``[n, L]`` gives one logistic regression for each label, all with the same
    ``C``, as ``OneVsRestClassifier`` does.

    Args:
        C: Inverse penalty, > 0: ``C * sum of losses + |W|^2 / 2``. None chooses it from ``Cs``.
        Cs: Sequence of values to choose from; None is ``C_PATH``. ``DINOV2_C_PATH`` is DINOv2's. The path ends early
            once ``C`` is one and a half decades past the one of least held-out log loss.
        num_holdouts: How many of five stratified fifths of the rows are held out in turn to choose ``C``: 1 is a
            hold-out, 5 is cross-validation. None is 5 up to 2,000 distinct rows, else 1.
        class_weight: As in ``LogisticRegression``: None, ``"balanced"`` (by the sum of the sample weights of each
            class), or a weight for each label that is not to have 1. With
            an indicator matrix it is for absent (0) and present (1) of each label on its own.
        standardize: Divide each feature by its standard deviation in the fitted rows; they are centred in any case.
        tol: Ends the solver; the mean loss is then within about ``tol ** 2`` of its minimum. By default that is
            4e-8 nats, nearer than scikit-learn's default comes; 1e-6 gives probabilities to 5 digits and takes about
            three times as long.
        max_iter: Most iterations of a solve; a ``ConvergenceWarning`` when they do not suffice.
        random_state: Decides which rows are held out; nothing else is random.
        device: ``"auto"`` (CUDA when there, else CPU) or any torch device. The result is of float64, but on ``mps``,
            which has only float32.

    Attributes:
        classes_: Labels, sorted; the column numbers of an indicator matrix.
        multilabel_: Whether the labels were an indicator matrix.
        coef_: ``[num_classes, d]`` (``[1, d]`` when there are two), for the vectors as they are given.
        intercept_: ``[num_classes]`` (or ``[1]``).
        mean_: ``[d]`` of the fitted rows.
        scale_: ``[d]``; 1 for constant features. ``coef_ * scale_`` is what the penalty saw.
        C_: The ``C`` in force.
        path_: ``PathPoint(C, log_loss, accuracy)`` for each value tried; empty when ``C`` was given. Of an indicator
            matrix: the labels' summed log loss and the share of right cells.
        n_iter_: Iterations of the final solve.
    """

    def __init__(
        self,
        C: Any = None,
        *,
        Cs: Any = None,
        num_holdouts: Any = None,
        class_weight: Any = None,
        standardize: Any = True,
        tol: Any = 2e-4,
        max_iter: Any = 1000,
        random_state: Any = 0,
        device: Any = "auto",
    ) -> None:
        # Any: scikit-learn asks that the constructor takes whatever comes and that ``fit`` judges it.
        self.C = C
        self.Cs = Cs
        self.num_holdouts = num_holdouts
        self.class_weight = class_weight
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> LinearProbe:
        """Fit on vectors ``[n, d]`` and labels ``[n]`` or ``[n, L]``, or on ``Embeddings`` that carry labels.

        Raises:
            ValueError: If the data is not what scikit-learn takes, holds one class only, or a setting is out of range.
            DataError: If ``X`` is ``Embeddings`` without labels and no ``y`` is given.
        """
        Cs = self._checked_settings()
        X, y = validated(self, vectors_of(X), labels_of(X, y), dtype=np.float64, multi_output=True)
        weights = _check_sample_weight(plain_array(sample_weight), X, dtype=np.float64, ensure_non_negative=True)
        if (weights == 0).any():  # a weight of 0 is a row that is not there, also for classes_ and the hold-out
            X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        targets = encode(y)
        self.classes_, self.multilabel_ = targets.classes, targets.indicator is not None
        self.mean_, self.scale_ = moments(X, weights, scaled=self.standardize)
        with threads_for(X.size * len(self.classes_)):
            params = self._solve(X, targets, weights, Cs)
        if params.shape[0] > 1 and not self.multilabel_:
            # Softmax does not see a shift of all logits: take the one with sum 0, the least penalised.
            params -= params.mean(axis=0)
        if targets.constant.any():
            params[targets.constant] = 0.0
            params[targets.constant, -1] = targets.constant_logits(len(X))
        self.coef_ = np.ascontiguousarray(params[:, :-1] / self.scale_)
        self.intercept_ = params[:, -1] - self.coef_ @ self.mean_
        return self

    def _solve(
        self, X: np.ndarray, targets: Targets, weights: np.ndarray, Cs: list[float]
    ) -> Float[np.ndarray, "k d_plus_1"]:
        """Weights on the standardised features and, in the last column, the intercept; sets ``C_, path_, n_iter_``."""
        device = torch.device(device_name(self.device))
        dtype = torch.float32 if device.type == "mps" else torch.float64

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(device, dtype)

        cells = weights * class_weights(self.class_weight, targets, weights)
        row_weights = cells if cells.ndim == 1 else cells.mean(axis=0)
        total = float(row_weights.sum())
        axes = principal_axes(tensor((X - self.mean_) / self.scale_), tensor(row_weights))
        loss: Softmax | Sigmoid
        if targets.present is None:
            labels = torch.from_numpy(targets.codes).to(device)
            loss = Softmax(labels, tensor(cells / total), len(targets.classes))
        else:
            loss = Sigmoid(tensor(targets.present), tensor(np.atleast_2d(cells) / total))
        problem = LogisticProblem.of(axes.inputs, axes.spectrum, loss, total)
        coarse = problem
        low, high = SINGLE_RANGE
        if X.size * len(targets.classes) >= SMALL_PRODUCT and low < axes.spectrum.min() and axes.spectrum.max() < high:
            coarse = problem.to(torch.float32)
        if self.C is None:
            keys = content_keys(X, int(check_random_state(self.random_state).randint(2**31)))
            folds = fold_of_rows(keys, targets.codes)
            num_holdouts = self.num_holdouts
            if num_holdouts is None:
                num_holdouts = NUM_FOLDS if len(np.unique(keys)) <= MAX_CROSS_VALIDATED else 1
            folds[folds >= num_holdouts] = -1
            num_held = len(np.unique(keys[folds >= 0]))
            choice = choose_c(coarse, folds, row_weights, Cs, num_held=num_held, max_iter=self.max_iter)
        else:
            choice = Choice(float(self.C), [], None)
        self.C_, self.path_ = choice.C, choice.path
        solution = self._refit(problem, coarse, choice)
        if not solution.converged:
            warnings.warn(
                f"the solver stopped after {solution.num_iterations} iterations before tol={self.tol:g} was reached: "
                "raise max_iter or lower C",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.n_iter_ = max(1, solution.num_iterations)
        weight, intercept = axes.to_features(solution.params[:, :-1]), solution.params[:, -1:]
        return torch.cat([weight, intercept], dim=1).double().cpu().numpy()

    def _refit(self, problem: LogisticProblem, coarse: LogisticProblem, choice: Choice) -> Solution:
        """Solve in float32, twice as fast, as far as that can see; then go on in float64."""
        start = None if choice.start is None else Start(choice.start)
        if coarse is problem:
            return solve(problem, choice.C, start=start, tol=self.tol, max_iter=self.max_iter)
        near = solve(coarse, choice.C, start=start, tol=max(self.tol, SINGLE_TOL), max_iter=self.max_iter)
        left = max(1, self.max_iter - near.num_iterations)
        solution = solve(problem, choice.C, start=Start(near.params), tol=self.tol, max_iter=left)
        return replace(solution, num_iterations=solution.num_iterations + near.num_iterations)

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"] | Float[np.ndarray, "n c"]:
        """Logits ``[n, num_classes]``; with two classes ``[n]``, positive for the second."""
        check_is_fitted(self)
        X = validated(self, vectors_of(X), dtype=np.float64, reset=False)
        logits: np.ndarray = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 and not self.multilabel_ else logits

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """Probability of each class, in the order of ``classes_``: rows sum to 1, but not of an indicator matrix."""
        prob: np.ndarray = np.exp(self.predict_log_proba(X))
        return prob

    def predict_log_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """Logarithm of ``predict_proba``, also where that would round to 0."""
        logits = self.decision_function(X)
        if self.multilabel_:
            each: np.ndarray = -np.logaddexp(0.0, -logits)
            return each
        if logits.ndim == 1:
            return np.stack([-np.logaddexp(0.0, logits), -np.logaddexp(0.0, -logits)], axis=1)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_prob: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return log_prob

    def predict(self, X: Any) -> np.ndarray:
        """Most probable label of each row; of an indicator matrix 1 for labels over a half, else 0."""
        logits = self.decision_function(X)
        if self.multilabel_:
            return (logits > 0).astype(np.int64)
        labels: np.ndarray = self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)]
        return labels

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy in 0..1 on vectors and labels, or on ``Embeddings`` that carry labels.

        Of an indicator matrix it is the share of rows with every label right, as in scikit-learn.
        """
        with quiet():
            return float(super().score(X, labels_of(X, y), sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _checked_settings(self) -> list[float]:
        """Check every setting and give the path of C."""
        if self.C is not None and not 0 < self.C < np.inf:
            raise ValueError(f"C={self.C!r}: expected a number > 0, or None to choose it")
        Cs = [float(C) for C in (C_PATH if self.Cs is None else self.Cs)]
        if not Cs or not all(0 < C < np.inf for C in Cs):
            raise ValueError(f"Cs={self.Cs!r}: expected one or more numbers > 0")
        if not self.max_iter >= 1 or not self.tol >= 0:
            raise ValueError(f"max_iter={self.max_iter!r}, tol={self.tol!r}: expected max_iter >= 1 and tol >= 0")
        if self.num_holdouts is not None and self.num_holdouts not in range(1, NUM_FOLDS + 1):
            raise ValueError(
                f"num_holdouts={self.num_holdouts!r}: expected None or a whole number from 1 to {NUM_FOLDS}"
            )
        check_class_weight(self.class_weight)
        return Cs
