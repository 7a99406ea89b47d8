"""How the linear probe chooses its penalty: on held-out rows along a path of ``C`` with warm starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from vitembed.probe.logistic import LogisticProblem
from vitembed.probe.newton import Solution, Start, solve

NUM_FOLDS = 5
"""Every hold-out is a fifth of the rows."""
MAX_CROSS_VALIDATED = 2000
"""Up to this many distinct rows all five fifths are held out in turn: one fifth of few rows is a noisy judge."""
PATH_TOL = 2.5e-2
"""Tolerance along the path: within about 6e-4 of the least loss, far below what a hold-out can tell apart."""
PATIENCE_DECADES = 1.5
"""The path ends when ``C`` is past the one of least log loss by this factor (powers of ten)."""
TIED = 0.25
"""Accuracies this close to the best, in standard errors, count as equal to it."""
MARGIN = 0.005
"""Nats of held-out log loss that do not count: of values this close the smallest ``C`` is taken, and a path that has
come down to this ends. Otherwise classes that are easily told apart would always get the largest ``C`` there is."""


@dataclass(frozen=True)
class PathPoint:
    """One ``C`` on the path and what it gave on held-out rows."""

    C: float
    log_loss: float
    accuracy: float


@dataclass(frozen=True)
class Choice:
    """The chosen ``C``, the path that led to it, and parameters to start the refit from."""

    C: float
    path: list[PathPoint]
    start: Float[Tensor, "k r"] | None


def content_keys(vectors: Float[np.ndarray, "n d"], seed: int) -> UInt64[np.ndarray, " n"]:
    """Hash each row's bits into 64: equal rows have equal keys, wherever they stand.

    Integer arithmetic modulo 2^64, so no rounding depends on the order of the rows.
    """
    factors = np.random.default_rng(seed).integers(0, 2**64, size=vectors.shape[1], dtype=np.uint64) | np.uint64(1)
    bits = np.ascontiguousarray(vectors + 0.0, dtype=np.float64).view(np.uint64)  # + 0.0 turns -0.0 into 0.0
    keys = (bits ^ (bits >> np.uint64(32))) @ factors
    # The low bits of a product know only the low bits of its factors: mix (splitmix64's finaliser).
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = keys ^ (keys >> np.uint64(31))
    return mixed


def fold_of_rows(keys: UInt64[np.ndarray, " n"], targets: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Deal the rows into folds 0..4, stratified by class; -1 for rows that are never held out.

    Rows are dealt out within their class in the order of their keys. So copies of a row share a fold (a copy would
    give the answer away), a row that is repeated counts as often as one with that weight, and the order of the rows
    changes nothing. A class with one distinct row is never held out: without it the class would be unknown.
    """
    order = np.lexsort((keys, targets))
    sorted_keys, sorted_targets = keys[order], targets[order]
    new_class = np.r_[True, sorted_targets[1:] != sorted_targets[:-1]]
    new_row = new_class | np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]
    # Numbering runs on over the classes, so that small classes do not all fill fold 0 first.
    fold = (np.cumsum(new_row) - 1) % NUM_FOLDS
    distinct = np.add.reduceat(new_row.astype(np.int64), np.flatnonzero(new_class))
    fold[distinct[np.cumsum(new_class) - 1] == 1] = -1
    folds = np.empty(len(keys), dtype=np.int64)
    folds[order] = fold
    return folds


def choose_c(
    problem: LogisticProblem,
    folds: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    Cs: Sequence[float],
    *,
    num_held: int,
    max_iter: int,
) -> Choice:
    """Choose the ``C`` that is most accurate on held-out rows; of those about equally so, the one of least log loss.

    Accuracy is what a probe is asked for, but on few rows it moves in steps and ties; log loss is steady there, and on
    many rows prefers a penalty that is too strong for the best accuracy.
    When nothing can be held out (one distinct row per class) it is the middle of the path.

    Args:
        problem: All rows; float32 is enough here.
        folds: For each row the fold in which it is held out, or -1; see ``fold_of_rows``.
        weights: For each row.
        Cs: Values to choose from, in any order.
        num_held: Distinct rows that are held out at all: how sharp a judge accuracy is.
        max_iter: Most iterations of a solve.
    """
    used = sorted({int(fold) for fold in folds if fold >= 0})
    ordered = sorted(Cs)
    if not used:
        return Choice(ordered[len(ordered) // 2], [], None)
    parts = []
    for fold in used:
        train, held = (
            problem.rows(np.flatnonzero(side), float(weights[side].sum())) for side in (folds != fold, folds == fold)
        )
        parts.append((train, held))
    tols = [PATH_TOL] * len(parts)
    starts: list[Start | None] = [None] * len(parts)
    last: list[Solution] = []
    path: list[PathPoint] = []
    firsts: list[Tensor] = []
    for place, C in enumerate(ordered):
        fits = [
            solve(train, C, start=start, tol=tol, max_iter=max_iter)
            for (train, _), start, tol in zip(parts, starts, tols, strict=True)
        ]
        scores = [held.log_loss_and_accuracy(fit.params) for (_, held), fit in zip(parts, fits, strict=True)]
        log_loss, accuracy = np.average(scores, axis=0, weights=[held.total for _, held in parts])
        path.append(PathPoint(float(C), float(log_loss), float(accuracy)))
        firsts.append(fits[0].params)
        best = min(path, key=lambda point: point.log_loss)
        if log_loss <= MARGIN or C > best.C * 10**PATIENCE_DECADES * (1 + 1e-9):
            break
        if last and place + 1 < len(ordered) and ordered[place - 1] < C:
            # Solutions move smoothly with log C, so their line through the last two foretells the next.
            stride = min(2.0, math.log(ordered[place + 1] / C) / math.log(C / ordered[place - 1]))
            starts = [fit.beyond(old, stride) for fit, old in zip(fits, last, strict=True)]
        else:
            starts = [Start(fit.params, fit.logits) for fit in fits]
        last = fits
        tols = [PATH_TOL * min(1.0, fit.value) ** 0.5 for fit in fits]
    chosen = _best_point(path, num_held)
    # The refit has rows that no solution of the path has seen, so it starts from the one that predicts such rows best:
    # the chosen one, of a weaker penalty, is sure of some of them and wrong, and costs a third more steps.
    calmest = min(range(chosen + 1), key=lambda place: path[place].log_loss)
    return Choice(path[chosen].C, path, firsts[calmest])


def _best_point(path: list[PathPoint], num_held: int) -> int:
    """Place on the path to choose, after accuracies on ``num_held`` rows."""
    best = max(point.accuracy for point in path)
    smoothed = (best * num_held + 1) / (num_held + 2)  # so that 10 right of 10 still have an error
    error = math.sqrt(smoothed * (1 - smoothed) / num_held)
    tied = [i for i, point in enumerate(path) if point.accuracy >= best - TIED * error]
    least = min(path[i].log_loss for i in tied)
    return next(i for i in tied if path[i].log_loss <= least + MARGIN)
