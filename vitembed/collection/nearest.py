"""Exact nearest neighbours at any moment: the cached scan, less the dead rows, plus the rows it does not hold yet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitembed.collection.catalog import Catalog
from vitembed.collection.finding.facts import matching_ids
from vitembed.collection.finding.where import Where
from vitembed.errors import CollectionError, DataError
from vitembed.lock import exclusive

if TYPE_CHECKING:
    from vitembed.collection.ann import Scan, VectorCache

CACHE_LOCK_FILE = "cache.lock"
# A scan is made anew when more rows than these are dead or outside of it. Passing over 1,000 dead rows and scanning
# 1,000 from SQLite costs a search about 5 ms.
MAX_STALE_ROWS = 1_000
MAX_STALE_SHARE = 0.1
# Scores of the scan and of the catalogue differ by the order of float32 sums, at most.
SCORE_TOLERANCE = 1e-5
_SPARE_ROWS = 16

_Found = tuple[float, str, int]
"""Score with its sign turned, path, id: their order is the order of results."""

log = logging.getLogger("vitembed")


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search."""

    rank: int
    """From 1."""
    path: str
    """Absolute path, or the id that came with a vector from elsewhere."""
    score: float
    """Cosine with the query: rises with nearness, 1 at most (up to float16 rounding)."""
    num_alike: int = 0
    """Worse results that were hidden as near-duplicates of this one (``unique``)."""


class Nearest:
    """Search over the vectors of a catalogue, each time as of one snapshot of it."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self._directory = directory
        self._catalog = catalog
        self._scan: Scan | None = None
        self._state = ""
        self._dead = self._tail_ids = np.zeros(0, np.int64)
        self._tail = np.zeros((0, catalog.dim), np.float32)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude_paths: Sequence[str] = (),
        *,
        where: Where | None = None,
        unique: float | None = None,
    ) -> list[list[Hit]]:
        """The ``k`` nearest rows (all, if there are fewer) for each unit query, float32 ``[q, d]``.

        Args:
            queries: What to look for.
            k: How many.
            exclude_paths: Rows to leave out.
            where: Rows to look at; the others are not compared.
            unique: Hide rows whose cosine with a better result is at least this.

        Raises:
            DataError: If ``k`` < 1.
            CollectionError: If the collection has been rebuilt since it was opened.
        """
        if k < 1:
            raise DataError(f"k is {k}, expected at least 1")
        with self._catalog.read():
            scan = self._refresh()
            try:
                return self._hits(scan, queries, k, exclude_paths, where, unique)
            except LookupError as error:
                # Changed after it was opened: the checksum was right then.
                log.warning("the vector cache contradicts the catalogue (%s): made anew", error)
                self._scan, self._state = None, ""
                return self._hits(self._refresh(distrust=True), queries, k, exclude_paths, where, unique)

    def publish(self) -> None:
        """Bring the cache file up to date if it is absent, damaged or stale."""
        with self._catalog.read():
            self._scan, self._state = None, ""  # what counts here is the file
            self._refresh()

    def verify(self) -> None:
        """Check the cache file byte by byte and replace it if it is damaged."""
        try:
            self._cache().verify()
        except (DataError, OSError) as error:
            log.warning("the vector cache is unusable (%s): made anew", error)
            with self._catalog.read():
                self._scan, self._state = None, ""
                self._refresh(distrust=True)

    def _refresh(self, *, distrust: bool = False) -> Scan:
        """Catch up with the catalogue's snapshot. Without changes since the last search this is one small query."""
        from vitembed.collection.ann import Scan  # FAISS is loaded on first search

        self._catalog.check_same()
        state = self._catalog.state()
        if self._scan is not None and state == self._state:
            return self._scan
        scan = self._scan
        if scan is None and not distrust:
            scan = self._load()
        if scan is None or scan.state != state:
            alive = self._catalog.vector_ids()
            if scan is None or _num_stale(scan.ids, alive) > max(MAX_STALE_ROWS, MAX_STALE_SHARE * len(alive)):
                scan = Scan.build(self._catalog.all_vectors(), self._catalog.dim, state, self._catalog.vector_type)
                log.info("vector cache made from the catalogue: %d vectors", len(scan))
                self._write(scan)
            self._dead = np.setdiff1d(scan.ids, alive, assume_unique=True)
            self._tail_ids = np.setdiff1d(alive, scan.ids, assume_unique=True)
        else:
            self._dead = self._tail_ids = np.zeros(0, np.int64)
        self._tail = self._catalog.vectors(self._tail_ids.tolist()).astype(np.float32)
        self._scan, self._state = scan, state
        return scan

    def _hits(
        self,
        scan: Scan,
        queries: np.ndarray,
        k: int,
        exclude_paths: Sequence[str],
        where: Where | None,
        unique: float | None,
    ) -> list[list[Hit]]:
        rows = [row for row in map(self._catalog.find, exclude_paths) if row is not None and row.status == "ok"]
        excluded = np.array(sorted(row.id for row in rows), dtype=np.int64)
        only = None if where is None else np.setdiff1d(matching_ids(self._catalog, where), excluded, assume_unique=True)
        if unique is None:
            return [_numbered(found) for found in self._search(scan, queries, k, excluded, only)]
        return [self._unique(scan, query[None], k, excluded, only, unique) for query in queries]

    def _unique(
        self, scan: Scan, query: np.ndarray, k: int, excluded: np.ndarray, only: np.ndarray | None, threshold: float
    ) -> list[Hit]:
        """The best ``k`` that are not near-duplicates of a better one: more are fetched until there are as many."""
        fetch = 2 * k + _SPARE_ROWS
        while True:
            (found,) = self._search(scan, query, fetch, excluded, only)
            vectors = self._catalog.vectors([row for _, _, row in found]).astype(np.float32)
            kept, num_alike = list[int](), list[int]()
            for place, vector in enumerate(vectors):
                alike = np.flatnonzero(vectors[kept] @ vector >= threshold)
                if len(alike):
                    num_alike[alike[0]] += 1
                elif len(kept) < k:
                    kept.append(place)
                    num_alike.append(0)
                else:
                    break
            if len(kept) == k or len(found) < fetch:
                hits = _numbered([found[place] for place in kept])
                return [replace(hit, num_alike=hidden) for hit, hidden in zip(hits, num_alike, strict=True)]
            fetch *= 4

    def _search(
        self, scan: Scan, queries: np.ndarray, k: int, excluded: np.ndarray, only: np.ndarray | None
    ) -> list[list[_Found]]:
        without = np.union1d(self._dead, excluded[_is_in(excluded, scan.ids)])
        kept = ~_is_in(self._tail_ids, excluded)
        if only is not None:
            kept &= _is_in(self._tail_ids, only)
            only = only[_is_in(only, scan.ids)]
        tail_ids, tail_scores = self._tail_ids[kept], queries @ self._tail[kept].T
        num_scanned = len(scan) - len(without) if only is None else len(only)
        k = min(k, num_scanned + len(tail_ids))
        if k == 0:
            return [[] for _ in queries]
        fetch = min(num_scanned, k + _SPARE_ROWS)
        all_scores, all_ids = scan.search(queries, fetch, without, only) if fetch else _nothing(len(queries))
        results = []
        for query, scores, ids, more_scores in zip(queries, all_scores, all_ids, tail_scores, strict=True):
            # Rows that score as the last result does may be more than were fetched: then the path decides among them,
            # so all are needed.
            while True:
                joined = np.concatenate([scores, more_scores])
                floor = np.partition(joined, len(joined) - k)[len(joined) - k] - SCORE_TOLERANCE
                if len(scores) == num_scanned or scores[-1] < floor:
                    break
                more = scan.search(query[None], min(num_scanned, 4 * len(scores)), without, only)
                scores, ids = more[0][0], more[1][0]
            chosen = joined >= floor
            results.append(self._ranked(query, np.concatenate([ids, tail_ids])[chosen], joined[chosen], k))
        return results

    def _ranked(self, query: np.ndarray, ids: np.ndarray, approximate: np.ndarray, k: int) -> list[_Found]:
        """The best ``k`` of the candidates by the catalogue's own vectors, whatever the cache says of them."""
        wanted = ids.tolist()
        paths = self._catalog.paths(wanted)
        # Summed in float64, so that equal vectors score the same wherever they lie.
        products = self._catalog.vectors(wanted).astype(np.float64) * query.astype(np.float64)
        scores = products.sum(axis=1).astype(np.float32)
        if not np.allclose(scores, approximate, rtol=0, atol=100 * SCORE_TOLERANCE):
            raise LookupError("another score")
        return sorted(zip((-scores).tolist(), (paths[row] for row in wanted), wanted, strict=True))[:k]

    def _cache(self) -> VectorCache:
        from vitembed.collection.ann import CacheKey, VectorCache

        catalog = self._catalog
        key = CacheKey(
            collection_id=catalog.collection_id,
            fingerprint=catalog.fingerprint,
            dim=catalog.dim,
            vector_type=catalog.vector_type,
        )
        return VectorCache(self._directory, key)

    def _load(self) -> Scan | None:
        try:
            return self._cache().load()
        except FileNotFoundError:
            return None
        except (DataError, OSError) as error:
            log.warning("the vector cache is unusable (%s): made anew", error)
            return None

    def _write(self, scan: Scan) -> None:
        # Under a lock of its own: a reader that mends the cache must not turn an update away. Where it is held, or the
        # medium cannot be written, the scan serves this process alone.
        try:
            with exclusive(self._directory / CACHE_LOCK_FILE, CollectionError):
                self._cache().write(scan, self._catalog.generation())
        except (OSError, CollectionError) as error:
            log.info("vector cache not written: %s", error)


def _numbered(found: list[_Found]) -> list[Hit]:
    return [Hit(rank, path, -score) for rank, (score, path, _) in enumerate(found, start=1)]


def _is_in(values: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """Which of the values are among the sorted ones."""
    if not len(rising):
        return np.zeros(len(values), bool)
    found: np.ndarray = rising[np.searchsorted(rising, values).clip(max=len(rising) - 1)] == values
    return found


def _num_stale(held: np.ndarray, alive: np.ndarray) -> int:
    common = len(np.intersect1d(held, alive, assume_unique=True))
    return len(held) + len(alive) - 2 * common


def _nothing(num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((num_queries, 0), np.float32), np.zeros((num_queries, 0), np.int64)
