"""The test images that the probe got wrong, surest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Mistake:
    """A wrong answer."""

    row: int
    truth: int
    predicted: int
    probability: float
    """Of the answer."""


def surest_mistakes(
    probabilities: Float[np.ndarray, "m c"], truth: Int[np.ndarray, " m"], rows: Int[np.ndarray, " m"]
) -> list[Mistake]:
    """Wrong answers by falling probability; of equals the first row first.

    Args:
        probabilities: Of each class.
        truth: Class numbers.
        rows: What to call each image.
    """
    answers = probabilities.argmax(axis=1)
    sureness = probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != truth)
    wrong = wrong[np.argsort(-sureness[wrong], kind="stable")]
    return [Mistake(int(rows[i]), int(truth[i]), int(answers[i]), float(sureness[i])) for i in wrong.tolist()]
