"""A scan or an index as seen from one snapshot of the catalogue: less the rows that are gone, plus those it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from vitembed.collection.catalog import Catalog
from vitembed.embeddings import unit_rows


@runtime_checkable
class HasIds(Protocol):
    """The scan, or the approximate index."""

    @property
    def ids(self) -> np.ndarray:
        """Int64 ``[n]``, rising."""


Held = TypeVar("Held", bound=HasIds)


@dataclass(frozen=True)
class View(Generic[Held]):
    """What it takes to search ``held`` as if it were up to date."""

    held: Held
    dead: np.ndarray
    """Ids that it has and the catalogue has no more, int64, rising."""
    tail_ids: np.ndarray
    """Ids that it lacks, int64 ``[t]``, rising."""
    tail: np.ndarray
    """Their vectors at length 1, float32 ``[t, d]``."""

    @classmethod
    def of(cls, held: Held, catalog: Catalog, alive: np.ndarray | None) -> View[Held]:
        """Compare with the ids that are alive now, rising; None: it is of this very state. Inside ``read()``."""
        dead = tail_ids = np.zeros(0, np.int64)
        if alive is not None:
            dead = np.setdiff1d(held.ids, alive, assume_unique=True)
            tail_ids = np.setdiff1d(alive, held.ids, assume_unique=True)
        return cls(held, dead, tail_ids, unit_rows(catalog.vectors(tail_ids.tolist())))

    def without(self, excluded: np.ndarray) -> np.ndarray:
        """Ids of ``held`` to pass over: the dead, and those excluded ones that it has."""
        return np.union1d(self.dead, excluded[is_in(excluded, self.held.ids)]) if len(excluded) else self.dead

    def tail_of(self, excluded: np.ndarray, only: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and vectors of the tail that are to be looked at."""
        kept = ~is_in(self.tail_ids, excluded)
        if only is not None:
            kept &= is_in(self.tail_ids, only)
        return self.tail_ids[kept], self.tail[kept]


def is_in(values: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Which of the values are among the sorted ones."""
    if not len(rising):
        return np.zeros(len(values), bool)
    found: np.ndarray = rising[np.searchsorted(rising, values).clip(max=len(rising) - 1)] == values
    return found


def num_stale(held: np.ndarray, alive: np.ndarray) -> int:
    """How many ids are in one of the two alone."""
    common = len(np.intersect1d(held, alive, assume_unique=True))
    return len(held) + len(alive) - 2 * common
