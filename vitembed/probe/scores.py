"""How right predictions are on a test set, and how sure that number is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

NUM_DRAWS = 2000
"""Bootstrap draws behind an interval."""
FEW = 10
"""With fewer right or fewer wrong answers than this the bootstrap is too narrow, and Wilson's interval is given."""
_Z95 = 1.959963984540054  # the standard normal's 97.5 % point


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Predictions against the truth on a test set; all in 0..1."""

    accuracy: float
    ci95: tuple[float, float]
    """95 % interval of ``accuracy``; see ``accuracy_interval``."""
    balanced_accuracy: float
    """Mean recall over the classes in the test set."""
    macro_f1: float
    """Mean F1 over the classes that occur in the test set or were predicted there."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "accuracy": self.accuracy,
            "ci95": list(self.ci95),
            "balanced_accuracy": self.balanced_accuracy,
            "macro_f1": self.macro_f1,
        }


def score(
    predicted: Int[np.ndarray, " m"],
    truth: Int[np.ndarray, " m"],
    num_classes: int,
    *,
    rng: np.random.Generator,
    groups: Int[np.ndarray, " m"] | None = None,
) -> Scores:
    """Score class numbers 0..num_classes-1; ``groups`` number images that belong together from 0."""
    right = predicted == truth
    hits, of_truth, of_predicted = (
        np.bincount(part, minlength=num_classes) for part in (truth[right], truth, predicted)
    )
    tested, seen = of_truth > 0, of_truth + of_predicted > 0
    return Scores(
        accuracy=float(right.mean()),
        ci95=accuracy_interval(right, rng=rng, groups=groups),
        balanced_accuracy=float((hits[tested] / of_truth[tested]).mean()),
        macro_f1=float((2 * hits[seen] / (of_truth + of_predicted)[seen]).mean()),
    )


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
            return _wilson(num_right, num)
        # A resampled set of m items has a binomial number of right ones: the same draws without the resampling.
        shares = rng.binomial(num, num_right / num, size=NUM_DRAWS) / num
    else:
        shares = _group_shares(right, groups, rng)
    low, high = (float(end) for end in np.quantile(shares, [0.025, 0.975]))
    if few:
        wilson = _wilson(num_right, num)
        low, high = min(low, wilson[0]), max(high, wilson[1])
    return low, high


def _wilson(num_right: int, num: int) -> tuple[float, float]:
    share = num_right / num
    centre = (share + _Z95**2 / (2 * num)) / (1 + _Z95**2 / num)
    half = _Z95 / (1 + _Z95**2 / num) * math.sqrt(share * (1 - share) / num + _Z95**2 / (4 * num**2))
    # At 0 and at num the ends are 0 and 1 but for rounding.
    return (0.0 if num_right == 0 else centre - half), (1.0 if num_right == num else centre + half)


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
