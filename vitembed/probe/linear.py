"""Linear probe: multinomial logistic regression on frozen vectors, as a scikit-learn classifier."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from vitembed.probe.choose import Choice, choose_c, content_keys
from vitembed.probe.inputs import device_name, labels_of, vectors_of
from vitembed.probe.logistic import LogisticProblem, principal_axes, threads_for

C_PATH: tuple[float, ...] = tuple(10.0 ** (e / 2) for e in range(-12, 7))
"""Default path: half decades from 1e-6 to 1e3."""
DINOV2_C_PATH: tuple[float, ...] = tuple(float(C) for C in 10.0 ** np.linspace(-6, 5, 45))
"""The 45 values of DINOv2's ``eval/log_regression.py`` (Oquab et al. 2023, arXiv:2304.07193)."""


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Logistic regression on standardised vectors, with the penalty chosen on held-out rows.

    Same model and same meaning of ``C`` as ``make_pipeline(StandardScaler(), LogisticRegression(C=C))``, solved in
    float64. Rows with equal content are never on both sides of a hold-out.

    Args:
        C: Inverse penalty, > 0: ``C * sum of losses + |W|^2 / 2``. None chooses it from ``Cs``.
        Cs: Sequence of values to choose from; None is ``C_PATH``. ``DINOV2_C_PATH`` is DINOv2's. The path ends early
            once ``C`` is one and a half decades past the best one.
        class_weight: As in scikit-learn: None, ``"balanced"``, or a weight for each label that is not to have 1.
        standardize: Divide each feature by its standard deviation in the fitted rows; they are centred in any case.
        tol: Ends the solver; the mean loss is then within about ``tol ** 2`` of its minimum. By default probabilities
            are right to 3 digits or more; 1e-6 gives 5 and takes two to ten times the iterations.
        max_iter: Most iterations of a solve; a ``ConvergenceWarning`` when they do not suffice.
        random_state: Decides which rows are held out; nothing else is random.
        device: ``"auto"`` (CUDA when there, else CPU) or any torch device. Always float64, but on ``mps``, which has
            only float32.

    Attributes:
        classes_: Labels, sorted.
        coef_: ``[num_classes, d]`` (``[1, d]`` when there are two), for the vectors as they are given.
        intercept_: ``[num_classes]`` (or ``[1]``).
        mean_: ``[d]`` of the fitted rows.
        scale_: ``[d]``; 1 for constant features. ``coef_ * scale_`` is what the penalty saw.
        C_: The ``C`` in force.
        path_: ``PathPoint(C, log_loss, accuracy)`` for each value tried; empty when ``C`` was given.
        n_iter_: Iterations of the final solve.
    """

    def __init__(
        self,
        C: Any = None,
        *,
        Cs: Any = None,
        class_weight: Any = None,
        standardize: Any = True,
        tol: Any = 1e-4,
        max_iter: Any = 1000,
        random_state: Any = 0,
        device: Any = "auto",
    ) -> None:
        # Any: scikit-learn asks that the constructor takes whatever comes and that ``fit`` judges it.
        self.C = C
        self.Cs = Cs
        self.class_weight = class_weight
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> LinearProbe:
        """Fit on vectors ``[n, d]`` and labels ``[n]``, or on ``Embeddings`` that carry labels.

        Raises:
            ValueError: If the data is not what scikit-learn takes, holds one class only, or a setting is out of range.
            DataError: If ``X`` is ``Embeddings`` without labels and no ``y`` is given.
        """
        Cs = self._checked_settings()
        X, y = validate_data(self, vectors_of(X), labels_of(X, y), dtype=np.float64)
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if (weights == 0).any():  # a weight of 0 is a row that is not there, also for classes_ and the hold-out
            X, y, weights = X[weights > 0], y[weights > 0], weights[weights > 0]
        self.classes_, targets = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least 2 classes, the labels hold {len(self.classes_)} class")
        self.mean_, self.scale_ = _moments(X, weights, scaled=self.standardize)
        weights = weights * _class_weights(self.class_weight, self.classes_, targets, weights)[targets]

        with threads_for(X.size * len(self.classes_)):
            params = self._solve(X, targets, weights, Cs)
        if params.shape[1] > 1:
            # Softmax does not see a shift of all logits: take the one with sum 0, the least penalised.
            params -= params.mean(axis=1, keepdims=True)
        self.coef_ = np.ascontiguousarray(params[:-1].T / self.scale_)
        self.intercept_ = params[-1] - self.coef_ @ self.mean_
        return self

    def _solve(
        self, X: np.ndarray, targets: np.ndarray, weights: np.ndarray, Cs: list[float]
    ) -> Float[np.ndarray, "d_plus_1 k"]:
        """Weights on the standardised features and, in the last row, the intercept; sets ``C_, path_, n_iter_``."""
        device = torch.device(device_name(self.device))
        dtype = torch.float32 if device.type == "mps" else torch.float64
        scaled, shares = (
            torch.from_numpy(array).to(device, dtype) for array in ((X - self.mean_) / self.scale_, weights)
        )
        axes = principal_axes(scaled, shares)
        labels = torch.from_numpy(targets.astype(np.int64)).to(device)
        problem = LogisticProblem(axes.inputs, axes.spectrum, labels, shares, len(self.classes_))
        if self.C is None:
            seed = int(check_random_state(self.random_state).randint(2**31))
            choice = choose_c(problem, content_keys(X, seed), Cs, max_iter=self.max_iter)
        else:
            choice = Choice(float(self.C), [], None)
        self.C_, self.path_ = choice.C, choice.path
        solution = problem.solve(self.C_, start=choice.start, tol=self.tol, max_iter=self.max_iter)
        if not solution.converged:
            warnings.warn(
                f"the solver stopped after {solution.num_iterations} iterations before tol={self.tol:g} was reached: "
                "raise max_iter or lower C",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.n_iter_ = max(1, solution.num_iterations)
        weight, intercept = axes.to_features(solution.params[:-1]), solution.params[-1:]
        return torch.cat([weight, intercept]).double().cpu().numpy()

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"] | Float[np.ndarray, "n c"]:
        """Logits ``[n, num_classes]``; with two classes ``[n]``, positive for the second."""
        check_is_fitted(self)
        X = validate_data(self, vectors_of(X), dtype=np.float64, reset=False)
        logits: np.ndarray = X @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """Probability of each class, in the order of ``classes_``; rows sum to 1."""
        prob: np.ndarray = np.exp(self.predict_log_proba(X))
        return prob

    def predict_log_proba(self, X: Any) -> Float[np.ndarray, "n c"]:
        """Logarithm of ``predict_proba``, also where that would round to 0."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return np.stack([-np.logaddexp(0.0, logits), -np.logaddexp(0.0, -logits)], axis=1)
        logits = logits - logits.max(axis=1, keepdims=True)
        log_prob: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return log_prob

    def predict(self, X: Any) -> np.ndarray:
        """Most probable label of each row."""
        logits = self.decision_function(X)
        labels: np.ndarray = self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)]
        return labels

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy in 0..1 on vectors and labels, or on ``Embeddings`` that carry labels."""
        return float(super().score(X, labels_of(X, y), sample_weight))

    def _checked_settings(self) -> list[float]:
        """Check every setting and give the path of C."""
        if self.C is not None and not 0 < self.C < np.inf:
            raise ValueError(f"C={self.C!r}: expected a number > 0, or None to choose it")
        Cs = [float(C) for C in (C_PATH if self.Cs is None else self.Cs)]
        if not Cs or not all(0 < C < np.inf for C in Cs):
            raise ValueError(f"Cs={self.Cs!r}: expected one or more numbers > 0")
        if not self.max_iter >= 1 or not self.tol >= 0:
            raise ValueError(f"max_iter={self.max_iter!r}, tol={self.tol!r}: expected max_iter >= 1 and tol >= 0")
        if isinstance(self.class_weight, str) and self.class_weight != "balanced":
            raise ValueError(f"class_weight={self.class_weight!r}: expected None, 'balanced' or a dict")
        return Cs


def _moments(X: np.ndarray, weights: np.ndarray, *, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each feature; 1 for those that do not vary beyond rounding."""
    mean = np.average(X, axis=0, weights=weights)
    if not scaled:
        return mean, np.ones_like(mean)
    variance = np.average((X - mean) ** 2, axis=0, weights=weights)
    rounding = (len(X) * np.finfo(np.float64).eps * np.abs(mean)) ** 2
    return mean, np.where(variance <= rounding, 1.0, np.sqrt(variance))


def _class_weights(
    class_weight: Mapping[Any, Any] | str | None, classes: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Give a factor for each class; ``balanced`` gives every class the same total weight."""
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, str):
        totals = np.bincount(targets, weights=weights, minlength=len(classes))
        return np.asarray(weights.sum() / (len(classes) * totals))
    unknown = set(class_weight) - set(classes.tolist())
    if unknown:
        raise ValueError(f"class_weight names {sorted(unknown)!r}, which are not among the labels {classes.tolist()!r}")
    return np.array([class_weight.get(label, 1.0) for label in classes.tolist()], dtype=np.float64)
