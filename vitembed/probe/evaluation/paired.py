"""Whether one classifier is really better than another on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

NUM_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """``second`` against ``first`` on the same test images."""

    first: str
    second: str
    difference: float
    """Accuracy of ``second`` minus that of ``first``."""
    ci95: tuple[float, float]
    """Paired percentile bootstrap of the difference, over images or groups."""
    only_first: int
    """Images that only ``first`` got right."""
    only_second: int
    p: float
    """McNemar's exact test, two-sided; with groups a sign-flip test over them."""
    p_holm: float
    """The same after Holm's correction for all the pairs that were compared."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**vars(self), "ci95": list(self.ci95)}


def compare_all(
    right: Sequence[tuple[str, Bool[np.ndarray, " m"]]], *, seed: int, groups: Int[np.ndarray, " m"] | None = None
) -> list[PairedTest]:
    """Compare every pair of classifiers.

    Args:
        right: Names, and which of the same m test images each got right.
        seed: Decides the bootstrap draws.
        groups: Numbers of images that belong together, and are right or wrong together.

    Source: McNemar 1947, Psychometrika 12:153-157; Holm 1979, Scandinavian Journal of Statistics 6:65-70.
    """
    pairs = [(i, j) for i in range(len(right)) for j in range(i + 1, len(right))]
    p_values, found = [], []
    for i, j in pairs:
        rng = np.random.default_rng([seed, i, j])
        (first, right_first), (second, right_second) = right[i], right[j]
        gains = right_second.astype(np.int64) - right_first
        only_first, only_second = int((gains < 0).sum()), int((gains > 0).sum())
        if groups is None:
            p = mcnemar(only_first, only_second)
        else:
            p = _sign_flip(np.bincount(groups, weights=gains), rng)
        p_values.append(p)
        found.append((first, second, float(gains.mean()), _interval(gains, groups, rng), only_first, only_second))
    corrected = holm(p_values)
    return [
        PairedTest(
            first=first,
            second=second,
            difference=difference,
            ci95=ci95,
            only_first=only_first,
            only_second=only_second,
            p=p,
            p_holm=p_holm,
        )
        for (first, second, difference, ci95, only_first, only_second), p, p_holm in zip(
            found, p_values, corrected, strict=True
        )
    ]


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided chance of a split as uneven as this if either were as likely."""
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _interval(gains: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator) -> tuple[float, float]:
    if groups is None:
        # A gain is -1, 0 or 1, so a resampled set is a draw of three counts.
        shares = np.array([(gains == gain).mean() for gain in (-1, 0, 1)])
        counts = rng.multinomial(len(gains), shares / shares.sum(), size=NUM_DRAWS)
        means = (counts[:, 2] - counts[:, 0]) / len(gains)
    else:
        sums, sizes = np.bincount(groups, weights=gains), np.bincount(groups)
        sums, sizes = sums[sizes > 0], sizes[sizes > 0]
        drawn = [np.bincount(rng.integers(0, len(sums), len(sums)), minlength=len(sums)) for _ in range(NUM_DRAWS // 5)]
        means = np.array([(weights @ sums) / (weights @ sizes) for weights in drawn])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _sign_flip(sums: np.ndarray, rng: np.random.Generator) -> float:
    """Chance of a total as far from 0 if each group's gain had either sign alike."""
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    observed = abs(sums.sum())
    extreme = 0
    for _ in range(10):
        signs = rng.integers(0, 2, size=(NUM_DRAWS // 10, len(sums))) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= observed - 1e-9).sum())
    return (1 + extreme) / (1 + NUM_DRAWS)
