"""When a classifier had better not answer: the least confidence from which on its answers are right often enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vitembed.errors import ConfigError
from vitembed.probe.evaluation.wilson import wilson_interval

DEFAULT_PRECISION = 0.95
MIN_ANSWERS = 20
"""Held-out answers that must stand behind a threshold: four right of four prove nothing."""


@dataclass(frozen=True, kw_only=True)
class AbstainRule:
    """Answers below ``threshold`` count as unsure."""

    target_precision: float
    threshold: float | None
    """Least probability of an answer that counts; 0: all do. None: no confidence reached the target, so none does."""
    precision: float | None
    """Of the held-out answers at or above the threshold."""
    precision_ci95: tuple[float, float] | None
    """Wilson's interval."""
    coverage: float
    """Share of the held-out images at or above it."""
    num_held_out: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "target_precision": self.target_precision,
            "threshold": self.threshold,
            "precision": self.precision,
            "precision_ci95": None if self.precision_ci95 is None else list(self.precision_ci95),
            "coverage": self.coverage,
            "num_held_out": self.num_held_out,
        }


def is_sure(confidence: Float[np.ndarray, " n"], threshold: float | None) -> Bool[np.ndarray, " n"]:
    """Which answers count under an ``AbstainRule``'s threshold."""
    return np.zeros(len(confidence), dtype=bool) if threshold is None else np.asarray(confidence >= threshold)


def calibrate(
    confidence: Float[np.ndarray, " m"], right: Bool[np.ndarray, " m"], *, target_precision: float = DEFAULT_PRECISION
) -> AbstainRule:
    """Choose the lowest confidence from which on the held-out answers are right at least ``target_precision`` often.

    At least 20 answers must stand behind it; where fewer are held out, all of them.

    Args:
        confidence: Probability of each held-out answer.
        right: Whether it is right.
        target_precision: In 0..1.

    Raises:
        ConfigError: If the target is not a number in (0, 1].
    """
    if not 0 < target_precision <= 1:
        raise ConfigError(f"precision {target_precision:g}: expected a number above 0 and at most 1")
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order]
    num_answered = np.arange(1, len(order) + 1)
    num_right = np.cumsum(right[order])
    # Answers of equal confidence stand or fall together: only the last of them may be a threshold.
    possible = np.r_[falling[1:] != falling[:-1], True] & (num_right >= target_precision * num_answered - 1e-9)
    possible &= num_answered >= min(MIN_ANSWERS, len(order))
    if not possible.any():
        return AbstainRule(
            target_precision=target_precision,
            threshold=None,
            precision=None,
            precision_ci95=None,
            coverage=0.0,
            num_held_out=len(order),
        )
    last = int(np.flatnonzero(possible)[-1])
    return AbstainRule(
        target_precision=target_precision,
        threshold=0.0 if last == len(order) - 1 else float(falling[last]),
        precision=float(num_right[last] / num_answered[last]),
        precision_ci95=wilson_interval(int(num_right[last]), last + 1),
        coverage=(last + 1) / len(order),
        num_held_out=len(order),
    )
