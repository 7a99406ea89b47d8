"""Labels as the probes' losses want them: one class a row, or an indicator matrix of labels that are there or not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from vitembed.probe.inputs import quiet


@dataclass(frozen=True)
class Targets:
    """Labels of ``n`` rows."""

    classes: np.ndarray
    """Distinct labels, sorted; the column numbers of an indicator matrix."""
    codes: Int64[np.ndarray, " n"]
    """Each row's place in ``classes``; all 0 of an indicator matrix, whose rows are of no one class."""
    indicator: Float[np.ndarray, "k n"] | None
    """1 where a label is there, when the labels were an indicator matrix (transposed here)."""

    @property
    def present(self) -> Float[np.ndarray, "k n"] | None:
        """What each logit on its own says: the indicator matrix, or of two classes the second; None of more."""
        if self.indicator is not None:
            return self.indicator
        return self.codes[None].astype(np.float64) if len(self.classes) == 2 else None

    @property
    def constant(self) -> Bool[np.ndarray, " k"]:
        """Labels of an indicator matrix that every row has, or none: nothing can be learned about them."""
        if self.indicator is None:
            return np.zeros(len(self.classes) if len(self.classes) > 2 else 1, dtype=bool)
        found: np.ndarray = self.indicator.min(axis=1) == self.indicator.max(axis=1)
        return found

    def constant_logits(self, num_rows: int) -> Float[np.ndarray, " m"]:
        """Log odds of the constant labels, never infinite: as if half a row were otherwise (Jeffreys' prior)."""
        assert self.indicator is not None
        sign: np.ndarray = np.where(self.indicator[self.constant, 0] > 0, 1.0, -1.0)
        logits: np.ndarray = sign * np.log(2.0 * num_rows + 1.0)
        return logits


def encode(y: np.ndarray) -> Targets:
    """Read labels ``[n]`` of any kind, or an indicator matrix ``[n, L]`` of zeros and ones.

    Raises:
        ValueError: If they are neither, or hold one class only.
    """
    with quiet():
        check_classification_targets(y)
        kind = type_of_target(y)
    if kind == "multilabel-indicator":
        indicator = np.asarray(y.todense() if hasattr(y, "todense") else y).astype(np.float64).T
        targets = Targets(np.arange(len(indicator)), np.zeros(indicator.shape[1], dtype=np.int64), indicator)
        if targets.constant.any():
            columns = ", ".join(map(str, np.flatnonzero(targets.constant)[:5]))
            warnings.warn(
                f"{int(targets.constant.sum())} of {len(indicator)} labels are on every row or on none "
                f"(columns {columns}): their probability is a constant",
                stacklevel=3,
            )
        return targets
    if kind.endswith("multioutput"):
        raise ValueError(f"labels have shape {list(y.shape)}: expected one a row, or a matrix of zeros and ones")
    classes, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
    if len(classes) < 2:
        held = "1 class" if len(classes) == 1 else "none"
        raise ValueError(f"a classifier needs at least 2 classes, the labels hold {held}")
    return Targets(classes, codes.astype(np.int64), None)


def check_class_weight(class_weight: Any) -> None:
    """Refuse what is no class weight, in one line.

    Raises:
        ValueError: If it is neither None, ``"balanced"`` nor a dict of finite numbers >= 0.
    """
    if class_weight is None or (isinstance(class_weight, str) and class_weight == "balanced"):
        return
    if not isinstance(class_weight, Mapping):
        raise ValueError(
            f"class_weight={class_weight!r}: expected None, 'balanced' or a dict with a weight for each label, such as "
            "{'cat': 2.0}"
        )
    for label, weight in class_weight.items():
        try:
            right = not isinstance(weight, str) and 0 <= float(weight) < np.inf
        except (TypeError, ValueError):
            right = False
        if not right:
            raise ValueError(f"class_weight[{label!r}] is {weight!r}: expected a finite number >= 0")
    if class_weight and all(float(weight) == 0 for weight in class_weight.values()):
        raise ValueError("class_weight: every weight is 0, nothing is left to learn from")


def class_weights(
    class_weight: Mapping[Any, Any] | str | None, targets: Targets, weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"] | Float[np.ndarray, "k n"]:
    """Give a factor for each row, or for each label of each row of an indicator matrix.

    ``balanced`` gives every class the same total weight; of an indicator matrix absence and presence of each label.

    Args:
        class_weight: Checked already.
        targets: Labels.
        weights: What rows count for when classes are balanced: those given, as ``LogisticRegression`` has it, or ones.

    Raises:
        ValueError: If ``class_weight`` names labels that are not there and leaves out others.
    """
    if targets.indicator is None:
        factors: np.ndarray = _factors(class_weight, targets.classes, targets.codes, weights)[targets.codes]
        return factors
    rows = [row.astype(np.int64) for row in targets.indicator]
    return np.stack([_factors(class_weight, np.arange(2), row, weights)[row] for row in rows])


def _factors(
    class_weight: Mapping[Any, Any] | str | None, classes: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, str):
        totals = np.bincount(codes, weights=weights, minlength=len(classes))
        return np.asarray(weights.sum() / (np.count_nonzero(totals) * np.where(totals > 0, totals, 1.0)))
    known = classes.tolist()
    unknown = [label for label in class_weight if label not in known]
    if unknown and any(label not in class_weight for label in known):
        names, labels = (", ".join(map(repr, part[:20])) for part in (unknown, known))
        raise ValueError(f"class_weight names {names}, not among the labels {labels}")
    factors = np.array([class_weight.get(label, 1.0) for label in known], dtype=np.float64)
    if not (factors[np.unique(codes)] > 0).any():
        raise ValueError("class_weight: every label that occurs has weight 0")
    return factors
