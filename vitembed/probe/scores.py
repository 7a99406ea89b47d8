"""How right predictions are on a test set, and how sure that number is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vitembed.probe.evaluation.bootstrap import auroc, auroc_interval, class_mean_intervals, class_means
from vitembed.probe.evaluation.wilson import FEW, wilson_interval

NUM_DRAWS = 2000
"""Bootstrap draws behind an interval."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Predictions against the truth on a test set; all in 0..1, each with its 95 % interval."""

    accuracy: float
    ci95: tuple[float, float]
    """Of ``accuracy``; see ``accuracy_interval``."""
    balanced_accuracy: float
    """Mean recall over the classes in the test set."""
    balanced_accuracy_ci95: tuple[float, float]
    macro_f1: float
    """Mean F1 over the classes that occur in the test set or were predicted there."""
    macro_f1_ci95: tuple[float, float]
    auroc: float | None = None
    """Chance that an image of the second class scores above one of the first; None when there are not two classes."""
    auroc_ci95: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; AUROC only where there is one."""
        found = {
            "accuracy": self.accuracy,
            "ci95": list(self.ci95),
            "balanced_accuracy": self.balanced_accuracy,
            "balanced_accuracy_ci95": list(self.balanced_accuracy_ci95),
            "macro_f1": self.macro_f1,
            "macro_f1_ci95": list(self.macro_f1_ci95),
        }
        if self.auroc is not None and self.auroc_ci95 is not None:
            found |= {"auroc": self.auroc, "auroc_ci95": list(self.auroc_ci95)}
        return found


def score(
    predicted: Int[np.ndarray, " m"],
    truth: Int[np.ndarray, " m"],
    num_classes: int,
    *,
    rng: np.random.Generator,
    groups: Int[np.ndarray, " m"] | None = None,
    positive: Float[np.ndarray, " m"] | None = None,
) -> Scores:
    """Score class numbers 0..num_classes-1.

    Args:
        predicted: Answers.
        truth: What is right.
        num_classes: How many classes there are, with those that were never tested.
        rng: Draws the bootstrap samples.
        groups: Numbers from 0 of images that belong together; intervals are then over groups.
        positive: How much each image looks like class 1, where there are two classes: for AUROC.
    """
    right = predicted == truth
    ci95 = accuracy_interval(right, rng=rng, groups=groups)
    balanced, macro_f1 = class_means(*_counts(predicted, truth, num_classes))
    balanced_ci95, f1_ci95 = class_mean_intervals(predicted, truth, num_classes, rng=rng, groups=groups)
    area = None if positive is None else auroc(positive, truth)
    return Scores(
        accuracy=float(right.mean()),
        ci95=ci95,
        balanced_accuracy=float(balanced),
        balanced_accuracy_ci95=balanced_ci95,
        macro_f1=float(macro_f1),
        macro_f1_ci95=f1_ci95,
        auroc=area,
        auroc_ci95=None
        if positive is None or area is None
        else auroc_interval(positive, truth, rng=rng, groups=groups),
    )


def _counts(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right answers, images and answers of each class."""
    hits, of_truth, of_predicted = (
        np.bincount(part, minlength=num_classes) for part in (truth[predicted == truth], truth, predicted)
    )
    return hits, of_truth, of_predicted


def accuracy_interval(
    right: Bool[np.ndarray, " m"], *, rng: np.random.Generator, groups: Int[np.ndarray, " m"] | None = None
) -> tuple[float, float]:
    """95 % interval of an accuracy, over test images (or groups of them) as a sample.

    A percentile bootstrap of 2,000 draws. With fewer than 10 right or fewer than 10 wrong answers it is Wilson's
    interval, since the bootstrap of 30 right of 30 is [1, 1], which nobody should believe; with groups the wider of
    both ends is then taken. The training set is taken as fixed.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; Wilson 1927, JASA 22:209-212.
    """
    num, num_right = len(right), int(right.sum())
    few = min(num_right, num - num_right) < FEW
    if groups is None:
        if few:
            return wilson_interval(num_right, num)
        # A resampled set of m items has a binomial number of right ones: the same draws without the resampling.
        shares = rng.binomial(num, num_right / num, size=NUM_DRAWS) / num
    else:
        shares = _group_shares(right, groups, rng)
    low, high = (float(end) for end in np.quantile(shares, [0.025, 0.975]))
    if few:
        wilson = wilson_interval(num_right, num)
        low, high = min(low, wilson[0]), max(high, wilson[1])
    return low, high


def _group_shares(right: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Accuracies of resampled groups: images of one group are right or wrong together, so groups are the sample."""
    sizes = np.bincount(groups)
    hits = np.bincount(groups, weights=right)[sizes > 0]
    sizes = sizes[sizes > 0]
    num = len(sizes)
    shares: list[np.ndarray] = []
    block = max(1, 2**22 // num)
    for begin in range(0, NUM_DRAWS, block):
        drawn = rng.multinomial(num, np.full(num, 1 / num), size=min(block, NUM_DRAWS - begin))
        shares.append((drawn @ hits) / (drawn @ sizes))
    return np.concatenate(shares)
