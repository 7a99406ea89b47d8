"""Recall: the share of the true nearest that an index finds, over stored vectors that its training never saw.

The truth is brute force over the very vectors of the catalogue. A query's own row does not count, on either side: to
find oneself is easy. What is found is scored again by the stored vectors in any search, so recall is all that an
approximation can lose.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from vitembed.collection.ann.approx import Approx
from vitembed.collection.ann.gpu import best, knn

_SPARE = 64
"""Of the next nearest, kept to tell ties at the last place from misses."""
_TIE = 1e-5
"""Equal scores differ by the order of float32 sums, at most."""
_NUM_TIMED = 20


class Truth:
    """The nearest rows of some stored vectors, gathered chunk by chunk."""

    def __init__(self, ids: np.ndarray, vectors: np.ndarray, k: int = 100) -> None:
        """For queries with these ids int64 ``[q]`` and unit vectors float32 ``[q, d]``."""
        self.ids = ids
        self.vectors = vectors
        self._keep = k + 1 + _SPARE
        self.scores = np.full((len(ids), 0), -np.inf, np.float32)
        """``[q, m]``, falling; a query's own row is not among them."""
        self.rows = np.zeros((len(ids), 0), np.int64)
        """The ids that go with them."""

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Compare all with ids int64 ``[m]`` and vectors float32 ``[m, d]``."""
        scores, found = knn(self.vectors, vectors, min(self._keep, len(ids)))
        rows = ids[found]
        scores = np.where(rows == self.ids[:, None], -np.inf, scores)
        scores, rows = np.hstack([self.scores, scores]), np.hstack([self.rows, rows])
        self.scores, self.rows = best(scores, rows, self._keep - 1)

    def recall(self, found: np.ndarray, k: int) -> float:
        """Share of the ``k`` nearest among what was found, ids int64 ``[q, m]`` (-1: none); ties count as found.

        With more ties than are kept it is too low rather than too high.
        """
        k = min(k, self.scores.shape[1])
        num_found = 0
        for scores, rows, candidates in zip(self.scores, self.rows, found, strict=True):
            good = rows[scores >= scores[k - 1] - _TIE]
            num_found += min(k, int(np.isin(good, candidates).sum()))
        return num_found / (k * len(found))

    def score_error(self, found: np.ndarray, scores: np.ndarray) -> float:
        """The largest difference between a score that the index gave, ``[q, m]``, and the true one."""
        worst = 0.0
        for true, rows, candidates, given in zip(self.scores, self.rows, found, scores, strict=True):
            _, here, there = np.intersect1d(rows, candidates, assume_unique=False, return_indices=True)
            worst = max(worst, float(np.abs(true[here] - given[there]).max(initial=0)))
        return worst


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What an index is worth at one number of probes."""

    num_probes: int
    recall: float
    recall_at_100: float
    score_error: float
    query_ms: float
    """Median of one query alone."""


def measure(approx: Approx, truth: Truth, num_probes: int) -> Quality:
    """Ask the index for the nearest of every query, as a search does."""
    nothing = np.zeros(0, np.int64)
    scores, found = approx.search(truth.vectors, approx.fetch(100), nothing, num_probes=num_probes)
    # The candidates for 10 are the first of those for 100.
    first = approx.fetch(10) + 1
    times = []
    for query in truth.vectors[:_NUM_TIMED]:
        twice = []  # the better of two, as others may be busy on the machine
        for _ in range(2):
            start = time.perf_counter()
            approx.search(query[None], first, nothing, num_probes=num_probes)
            twice.append(time.perf_counter() - start)
        times.append(min(twice))
    return Quality(
        num_probes=num_probes,
        recall=truth.recall(found[:, :first], 10),
        recall_at_100=truth.recall(found, 100),
        score_error=truth.score_error(found, scores),
        query_ms=1000 * statistics.median(times),
    )


def choose_probes(
    approx: Approx, truth: Truth, *, min_recall: float, target_ms: float, slowest_ms: float
) -> tuple[Quality | None, list[Quality]]:
    """Raise the number of probes until recall is enough.

    Enough is 0.99 where that comes cheap: while a query takes less than a tenth of the target nobody would notice, a
    missing neighbour somebody might. Beyond, the least that is asked for.

    Args:
        approx: The index.
        truth: What it should find.
        min_recall: The least recall at 10.
        target_ms: How long a search may take.
        slowest_ms: What the exact scan takes: an index that takes longer is of no use.

    Returns:
        The best that may be used, or None; and all that were measured.
    """
    good: Quality | None = None
    tried = list[Quality]()
    num_probes = 1
    while True:
        quality = measure(approx, truth, num_probes)
        tried.append(quality)
        if quality.query_ms >= slowest_ms:
            break
        cheap = quality.query_ms <= target_ms / 10
        if quality.recall >= min_recall and (good is None or cheap):
            good = quality
        enough = min(quality.recall, quality.recall_at_100) >= max(min_recall, 0.99)
        if num_probes >= approx.num_lists or (good is not None and (enough or not cheap)):
            break
        num_probes = min(2 * num_probes, approx.num_lists)
    return good, tried
