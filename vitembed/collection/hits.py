"""What a search gives: images by rank, and whether every vector was compared for them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from vitembed.errors import DataError


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search."""

    rank: int
    """From 1."""
    path: str
    """Absolute path, or the id that came with a vector from elsewhere."""
    score: float
    """Cosine with the query, from -1 to 1; 1 for an image of the same bytes as the query's."""
    num_alike: int = 0
    """Worse results that were hidden as near-duplicates of this one (``unique``)."""
    missing: bool = False
    """Whether the file is not there now: deleted since the last update, or on a drive that is away."""


class Hits(list[Hit]):
    """Results, best first. Scores are those of the stored vectors in any case."""

    def __init__(self, hits: Iterable[Hit] = (), *, recall: float | None = None) -> None:
        super().__init__(hits)
        self.recall = recall
        """Share of the true nearest that the index was measured to find; None: every vector was compared."""

    @property
    def exact(self) -> bool:
        """Whether every vector was compared."""
        return self.recall is None

    def looked_up(self) -> Hits:
        """With ``missing`` as it is at this moment: one stat call for each result that is a file."""
        return Hits([_looked_up(hit) for hit in self], recall=self.recall)

    def at_least(self, min_score: float | None) -> Hits:
        """Those that reach a score; all without one."""
        return Hits([hit for hit in self if min_score is None or hit.score >= min_score], recall=self.recall)


def check_min_score(min_score: float | None) -> None:
    """Refuse a least score that no cosine can be compared with.

    Raises:
        DataError: If it is not a number from -1 to 1.
    """
    if min_score is not None and not -1 <= min_score <= 1:
        raise DataError(f"min_score is {min_score}, expected a cosine from -1 to 1")


def check_unique(unique: float | None) -> None:
    """Refuse a bound for near-duplicates that is no cosine above 0.

    Raises:
        DataError: If it is none.
    """
    if unique is not None and not 0 < unique <= 1:
        raise DataError(f"unique is {unique}, expected a cosine above 0 and at most 1")


def check_k(k: int) -> None:
    """Refuse a number of results below 1.

    Raises:
        DataError: If it is.
    """
    if k < 1:
        raise DataError(f"k is {k}, expected at least 1")


def _looked_up(hit: Hit) -> Hit:
    # A name that is no absolute path came with a vector from elsewhere and stands for no file.
    is_missing = os.path.isabs(hit.path) and not os.path.exists(hit.path)  # noqa: PTH110, PTH117
    return replace(hit, missing=True) if is_missing else hit
