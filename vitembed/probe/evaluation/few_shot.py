"""How many labels it takes: accuracy with 1, 2, 4, ... labelled images of each class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning

from vitembed.probe.linear import LinearProbe

MAX_SHOTS = 64
SHARE_OF_CLASSES = 0.5
"""A point is given while at least this share of the classes has that many training images."""
FEW_SHOT_CS = tuple(10.0**e for e in range(-4, 3))
"""Whole decades: on so few images finer steps cannot be told apart."""
_TOL = 1e-3
"""Within about 1e-6 nats of the minimum: no answer changes by it that could be told apart over the draws."""


@dataclass(frozen=True, kw_only=True)
class FewShotPoint:
    """What a linear probe knows after ``shots`` images of each class."""

    shots: int
    accuracies: list[float]
    """One for each draw, on the whole test set."""
    num_short: int
    """Classes with fewer training images than that; they gave all they have."""

    @property
    def accuracy(self) -> float:
        """Mean over the draws."""
        return float(np.mean(self.accuracies))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "shots": self.shots,
            "accuracy": self.accuracy,
            "lowest": min(self.accuracies),
            "highest": max(self.accuracies),
            "num_draws": len(self.accuracies),
            "num_classes_short": self.num_short,
        }


def few_shot_curve(
    train_vectors: Float[np.ndarray, "t d"],
    train_targets: Int[np.ndarray, " t"],
    test_vectors: Float[np.ndarray, "m d"],
    test_targets: Int[np.ndarray, " m"],
    *,
    num_draws: int = 5,
    seed: int = 0,
    device: str = "auto",
) -> list[FewShotPoint]:
    """Accuracy of linear probes that learned from a few random training images of each class.

    Shots double from 1 to 64, while half of the classes have so many. The penalty is chosen inside the first draw of
    each point, and kept for the others; no test image has a say in it. Draws are nested: those of 8 hold those of 4.

    Args:
        train_vectors: What may be drawn.
        train_targets: Class numbers.
        test_vectors: The same for every point.
        test_targets: Class numbers.
        num_draws: Independent draws behind each point.
        seed: Decides what is drawn.
        device: ``"auto"`` or a torch device.
    """
    counts = np.bincount(train_targets)
    counts = counts[counts > 0]
    largest = int(np.quantile(counts, 1 - SHARE_OF_CLASSES, method="lower"))
    ranks = [_rank_in_class(train_targets, np.random.default_rng([seed, draw])) for draw in range(num_draws)]
    points: list[FewShotPoint] = []
    shots = 1
    while num_draws and shots <= min(largest, MAX_SHOTS):
        accuracies: list[float] = []
        C: float | None = None
        for rank in ranks:
            rows = np.flatnonzero(rank < shots)
            probe = LinearProbe(C, Cs=FEW_SHOT_CS, tol=_TOL, random_state=seed, device=device)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # about the last digits of the weights
                probe.fit(train_vectors[rows], train_targets[rows])
            C = probe.C_
            accuracies.append(float((probe.predict(test_vectors) == test_targets).mean()))
        points.append(FewShotPoint(shots=shots, accuracies=accuracies, num_short=int((counts < shots).sum())))
        shots *= 2
    return points


def _rank_in_class(targets: Int[np.ndarray, " t"], rng: np.random.Generator) -> Int[np.ndarray, " t"]:
    """Each row's place, from 0, in a random order of its class."""
    shuffled = rng.permutation(len(targets))
    order = shuffled[np.argsort(targets[shuffled], kind="stable")]
    counts = np.bincount(targets)
    rank = np.empty(len(targets), dtype=np.int64)
    rank[order] = np.arange(len(targets)) - (np.cumsum(counts) - counts)[targets[order]]
    return rank
