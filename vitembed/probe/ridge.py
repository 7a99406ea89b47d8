"""Ridge probe: least squares on frozen vectors in closed form, for an answer at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor

from vitembed.embeddings import plain_array
from vitembed.probe.axes import Axes, moments, principal_axes, threads_for
from vitembed.probe.choose import content_keys
from vitembed.probe.inputs import device_name, labels_of, quiet, validated, vectors_of
from vitembed.probe.targets import Targets, check_class_weight, class_weights, encode

ALPHAS: tuple[float, ...] = tuple(10.0 ** (e / 2) for e in range(-4, 15))
"""Default penalties: half decades from 1e-2 to 1e7."""


@dataclass(frozen=True)
class RidgePoint:
    """One penalty and what it gave on rows left out one at a time."""

    alpha: float
    squared_error: float
    """Mean over rows and outputs of the squared distance from the targets -1 and 1."""
    accuracy: float


class RidgeProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Least squares on targets -1 and 1, the penalty chosen by leaving out each row in turn, without refitting.

    Same model as ``make_pipeline(StandardScaler(), RidgeClassifierCV(alphas))``. One eigenvalue decomposition of the
    ``d x d`` (or ``n x n``) matrix serves every penalty and every left-out row: no iterations, nothing random. Copies
    of a row are left out together, which scikit-learn does not do. Its numbers are no probabilities; for these take
    ``LinearProbe``.

    Args:
        alpha: Penalty, > 0: ``sum of squared errors + alpha * |W|^2``. None chooses it from ``alphas``.
        alphas: Sequence of values to choose from; None is ``ALPHAS``.
        class_weight: As in ``RidgeClassifier``: None, ``"balanced"`` (by the number of rows of each class, whatever
            their sample weights), or a weight for each label that is not to have 1.
        standardize: Divide each feature by its standard deviation in the fitted rows; they are centred in any case.
        device: ``"auto"`` (CUDA when there, else CPU) or any torch device. float64, but on ``mps``.

    Attributes:
        classes_: Labels, sorted; the column numbers of an indicator matrix.
        multilabel_: Whether the labels were an indicator matrix ``[n, L]``.
        coef_: ``[num_classes, d]`` (``[1, d]`` when there are two), for the vectors as they are given.
        intercept_: ``[num_classes]`` (or ``[1]``).
        alpha_: The penalty in force.
        path_: ``RidgePoint(alpha, squared_error, accuracy)`` of each penalty, also of one that was given.

    Source: Rifkin & Lippert 2007, MIT-CSAIL-TR-2007-025, section 3.3 (left-out errors from the hat matrix).
    """

    def __init__(
        self,
        alpha: Any = None,
        *,
        alphas: Any = None,
        class_weight: Any = None,
        standardize: Any = True,
        device: Any = "auto",
    ) -> None:
        # Any: scikit-learn asks that the constructor takes whatever comes and that ``fit`` judges it.
        self.alpha = alpha
        self.alphas = alphas
        self.class_weight = class_weight
        self.standardize = standardize
        self.device = device

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> RidgeProbe:
        """Fit on vectors ``[n, d]`` and labels ``[n]`` or ``[n, L]``, or on ``Embeddings`` that carry labels.

        Raises:
            ValueError: If the data is not what scikit-learn takes, holds one class only, or a setting is out of range.
            DataError: If ``X`` is ``Embeddings`` without labels and no ``y`` is given.
        """
        alphas = self._checked_settings()
        X, y = validated(self, vectors_of(X), labels_of(X, y), dtype=np.float64, multi_output=True)
        weights = _check_sample_weight(plain_array(sample_weight), X, dtype=np.float64, ensure_non_negative=True)
        targets = encode(y)
        factors = self._factors(targets)
        if (weights == 0).any():  # a weight of 0 is a row that is not there, also for classes_
            kept = weights > 0
            X, weights, factors, targets = X[kept], weights[kept], factors[kept], encode(y[kept])
        mean, scale = moments(X, weights, scaled=self.standardize)
        self.classes_, self.multilabel_ = targets.classes, targets.indicator is not None
        weights = weights * factors
        signs = _signs(targets)
        centre = np.average(X, axis=0, weights=weights)  # with class weights this is not the mean that scaled the rows
        device = torch.device(device_name(self.device))
        dtype = torch.float32 if device.type == "mps" else torch.float64

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, dtype)

        # Copies of a row are one row with their joint weight, and left out together: a copy would give the answer away.
        _, first, copy_of = np.unique(content_keys(X, 0), return_index=True, return_inverse=True)
        joint = np.bincount(copy_of, weights=weights)
        with threads_for(X.size * X.shape[1]):
            axes = principal_axes(tensor((X[first] - centre) / scale), tensor(joint), max_gram=max(X.shape))
            rows = _Rows(tensor(signs), tensor(weights), torch.from_numpy(copy_of).to(device), tensor(joint))
            fits = [_left_out(axes, rows, alpha) for alpha in alphas]
        self.path_ = [point for point, _ in fits]
        best = min(range(len(fits)), key=lambda i: self.path_[i].squared_error)
        self.alpha_ = self.path_[best].alpha
        weight = axes.to_features(fits[best][1].T).double().cpu().numpy()
        self.mean_, self.scale_ = mean, scale
        self.coef_ = np.ascontiguousarray(weight / scale)
        self.intercept_ = np.average(signs, axis=0, weights=weights) - self.coef_ @ centre
        return self

    def decision_function(self, X: Any) -> Float[np.ndarray, " n"] | Float[np.ndarray, "n c"]:
        """What least squares gives, about -1 to 1: ``[n, num_classes]``; with two classes ``[n]`` for the second."""
        check_is_fitted(self)
        X = validated(self, vectors_of(X), dtype=np.float64, reset=False)
        values: np.ndarray = X @ self.coef_.T + self.intercept_
        return values[:, 0] if len(self.classes_) == 2 and not self.multilabel_ else values

    def predict(self, X: Any) -> np.ndarray:
        """Label of the largest value of each row; of an indicator matrix 1 for values over 0, else 0."""
        values = self.decision_function(X)
        if self.multilabel_:
            return (values > 0).astype(np.int64)
        labels: np.ndarray = self.classes_[(values > 0).astype(int) if values.ndim == 1 else values.argmax(axis=1)]
        return labels

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy in 0..1 on vectors and labels, or on ``Embeddings`` that carry labels."""
        with quiet():
            return float(super().score(X, labels_of(X, y), sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def _factors(self, targets: Targets) -> Float[np.ndarray, " n"]:
        """What class weights make of each row. As in ``RidgeClassifier``, sample weights do not count for balance.

        Labels of an indicator matrix share one solution: their factors are multiplied.
        """
        if targets.indicator is not None and isinstance(self.class_weight, Mapping):
            raise ValueError(
                "class_weight: labels of an indicator matrix can be 'balanced', but not weighted by a dict"
            )
        factors = class_weights(self.class_weight, targets, np.ones(len(targets.codes)))
        return factors if factors.ndim == 1 else factors.prod(axis=0)

    def _checked_settings(self) -> list[float]:
        """Check the settings and give the penalties to try."""
        if self.alpha is not None and not 0 < self.alpha < np.inf:
            raise ValueError(f"alpha={self.alpha!r}: expected a number > 0, or None to choose it")
        alphas = [float(alpha) for alpha in (ALPHAS if self.alphas is None else self.alphas)]
        if not alphas or not all(0 < alpha < np.inf for alpha in alphas):
            raise ValueError(f"alphas={self.alphas!r}: expected one or more numbers > 0")
        check_class_weight(self.class_weight)
        return alphas if self.alpha is None else [float(self.alpha)]


def _signs(targets: Targets) -> Float[np.ndarray, "n k"]:
    """1 for the class of a row (or a label that is there), -1 for others."""
    present = targets.present
    if present is None:
        present = (targets.codes == np.arange(len(targets.classes))[:, None]).astype(np.float64)
    return np.ascontiguousarray(2.0 * present.T - 1.0)


@dataclass(frozen=True)
class _Rows:
    signs: Float[Tensor, "n k"]
    weights: Float[Tensor, " n"]
    copy_of: Int[Tensor, " n"]
    """Place of each row among the ``m`` distinct ones."""
    joint: Float[Tensor, " m"]


def _left_out(axes: Axes, rows: _Rows, alpha: float) -> tuple[RidgePoint, Float[Tensor, "r k"]]:
    """Solve one penalty; the errors are of each row when all but it are fitted, from its place in the hat matrix."""
    signs, weights, joint = rows.signs, rows.weights, rows.joint
    total = weights.sum()
    mean = (weights[:, None] * signs).sum(dim=0) / total
    sums = signs.new_zeros(len(joint), signs.shape[1]).index_add(0, rows.copy_of, weights[:, None] * signs)
    shrink = 1.0 / (total * axes.spectrum + alpha)
    weight = shrink[:, None] * (axes.inputs.T @ (sums - joint[:, None] * mean))
    leverage = joint * (1.0 / total + axes.inputs.square() @ shrink)
    wanted = sums / joint.clamp_min(torch.finfo(weights.dtype).tiny)[:, None]  # 0: a class of weight 0
    # A row that alone decides its own fit (leverage 1) leaves nothing to foretell it from.
    room = (1.0 - leverage).clamp_min(torch.finfo(weights.dtype).eps)[:, None]
    foretold = (wanted - (wanted - axes.inputs @ weight - mean) / room)[rows.copy_of]
    share = weights / total
    if signs.shape[1] == 1 or not bool((signs.sum(dim=1) == 2 - signs.shape[1]).all()):
        right = ((foretold > 0) == (signs > 0)).to(share.dtype).mean(dim=1)
    else:
        right = (foretold.argmax(dim=1) == signs.argmax(dim=1)).to(share.dtype)
    squared_error = float((share[:, None] * (signs - foretold).square()).sum() / signs.shape[1])
    return RidgePoint(float(alpha), squared_error, float((share * right).sum())), weight
