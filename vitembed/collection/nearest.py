"""Nearest neighbours at any moment, scored by the catalogue's own vectors whoever found them.

Either every vector is compared (the scan), or the nearest lists of an index are looked at, where one has been measured
to find enough. Both are completed by the rows that they do not hold yet, and their dead rows are passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitembed.collection.catalog import Catalog, UnknownIdError
from vitembed.collection.finding.facts import matching_ids
from vitembed.collection.finding.where import Where
from vitembed.collection.hits import Hit, Hits
from vitembed.collection.standing import Standing
from vitembed.collection.view import is_in
from vitembed.errors import DataError

__all__ = ["Hit", "Hits", "Nearest"]

# Scores of the scan and of the catalogue differ by the order of float32 sums, at most.
SCORE_TOLERANCE = 1e-5
# Scores of an index may differ by this many times what was measured when it was built, and a little.
APPROX_TOLERANCE_FACTOR = 2.0
APPROX_TOLERANCE = 0.01
_SPARE_ROWS = 16

_Found = tuple[float, str, int]
"""Score with its sign turned, path, id: their order is the order of results."""
_Answer = tuple[list[_Found], float | None]
"""With the recall of the index; None: every vector was compared."""

log = logging.getLogger("vitembed")


class OtherScoreError(LookupError):
    """A cache gave a row a score that its vector in the catalogue does not have."""


class Nearest:
    """Search over the vectors of a catalogue, each time as of one snapshot of it."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self._catalog = catalog
        self._standing = Standing(directory, catalog)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        exclude_paths: Sequence[str] = (),
        *,
        where: Where | None = None,
        unique: float | None = None,
        exact: bool = False,
    ) -> list[Hits]:
        """The ``k`` nearest rows (all, if there are fewer) for each unit query, float32 ``[q, d]``.

        Args:
            queries: What to look for.
            k: How many.
            exclude_paths: Rows to leave out.
            where: Rows to look at; the others are not compared.
            unique: Hide rows whose cosine with a better result is at least this.
            exact: Compare every vector, even if there is an index.

        Raises:
            DataError: If ``k`` < 1.
            CollectionError: If the collection has been rebuilt since it was opened.
        """
        if k < 1:
            raise DataError(f"k is {k}, expected at least 1")
        with self._catalog.read():
            self._standing.catch_up()
            try:
                return self._hits(queries, k, exclude_paths, where, unique, exact)
            except (OtherScoreError, UnknownIdError) as error:
                # Changed after it was opened: the checksum was right then.
                log.warning("the vector cache contradicts the catalogue (%s): made anew", error)
                self._standing.exact(distrust=True)
                return self._hits(queries, k, exclude_paths, where, unique, True)

    def publish(self) -> None:
        """Bring the file of the scan up to date if it is absent, damaged or stale."""
        with self._catalog.read():
            self._standing.forget()  # what counts here is the file
            self._standing.catch_up()
            self._standing.exact()

    def verify(self) -> None:
        """Check the cache files byte by byte; a damaged scan is replaced."""
        self._standing.verify()

    def _hits(
        self,
        queries: np.ndarray,
        k: int,
        exclude_paths: Sequence[str],
        where: Where | None,
        unique: float | None,
        exact: bool,
    ) -> list[Hits]:
        rows = [row for row in map(self._catalog.find, exclude_paths) if row is not None and row.status == "ok"]
        excluded = np.array(sorted(row.id for row in rows), dtype=np.int64)
        only = None if where is None else np.setdiff1d(matching_ids(self._catalog, where), excluded, assume_unique=True)
        if unique is None:
            answers = self._search(queries, k, excluded, only, exact)
            return [Hits(_numbered(found), recall=recall) for found, recall in answers]
        return [self._unique(query[None], k, excluded, only, unique, exact) for query in queries]

    def _unique(
        self, query: np.ndarray, k: int, excluded: np.ndarray, only: np.ndarray | None, threshold: float, exact: bool
    ) -> Hits:
        """The best ``k`` that are not near-duplicates of a better one: more are fetched until there are as many."""
        fetch = 2 * k + _SPARE_ROWS
        while True:
            ((found, recall),) = self._search(query, fetch, excluded, only, exact)
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
                pairs = zip(hits, num_alike, strict=True)
                return Hits([replace(hit, num_alike=hidden) for hit, hidden in pairs], recall=recall)
            fetch *= 4

    def _search(
        self, queries: np.ndarray, k: int, excluded: np.ndarray, only: np.ndarray | None, exact: bool
    ) -> list[_Answer]:
        answers: list[_Answer | None] = [None] * len(queries)
        if not exact:
            try:
                answers = self._by_index(queries, k, excluded, only)
            except (OtherScoreError, UnknownIdError) as error:
                self._standing.distrust_approximate(f"it contradicts the catalogue: {error}")
        left = [place for place, answer in enumerate(answers) if answer is None]
        if left:
            for place, found in zip(left, self._by_scan(queries[left], k, excluded, only), strict=True):
                answers[place] = (found, None)
        return [answer for answer in answers if answer is not None]

    def _by_index(
        self, queries: np.ndarray, k: int, excluded: np.ndarray, only: np.ndarray | None
    ) -> list[_Answer | None]:
        """Answers of the index; None for a query to which it has none, or for all where it may not be used."""
        nothing: list[_Answer | None] = [None] * len(queries)
        view = self._standing.approximate()
        if view is None or not view.held.is_good_for(k):
            return nothing
        index = view.held
        num_probes = self._standing.probes_for(index, only)
        if num_probes is None:
            return nothing
        tail_ids, tail = view.tail_of(excluded, only)
        without = view.without(excluded) if only is None else _NOTHING
        if only is not None:
            only = np.setdiff1d(only, tail_ids, assume_unique=True)
        num_there = len(index) - len(without) if only is None else len(only)
        k = min(k, num_there + len(tail_ids))
        fetch = min(index.fetch(k), num_there)
        if k == 0 or fetch == 0:
            return nothing
        all_scores, all_ids = index.search(queries, fetch, without, only, num_probes=num_probes)
        answers = list[_Answer | None]()
        for query, scores, ids in zip(queries, all_scores, all_ids, strict=True):
            found = ids >= 0  # the lists that were looked at may hold fewer
            scores, ids = scores[found], ids[found]
            true = self._true_scores(query, ids)
            allowed = APPROX_TOLERANCE_FACTOR * index.facts.score_error + APPROX_TOLERANCE
            if np.abs(true - scores).max(initial=0) > allowed:
                raise OtherScoreError("another score")
            near_tail = tail_ids[_top(tail @ query, k)]
            joined = np.concatenate([true, self._true_scores(query, near_tail)])
            if len(joined) < k:
                answers.append(None)
                continue
            floor = np.partition(joined, len(joined) - k)[len(joined) - k]
            if len(ids) < num_there and (scores[true >= floor] <= scores.min(initial=2) + SCORE_TOLERANCE).any():
                # A result came last among the candidates: rows that were not fetched may tie with it, or be better.
                answers.append(None)
                continue
            best = self._best(np.concatenate([ids, near_tail]), joined, k)
            answers.append((best, index.recall_for(k)))
        return answers

    def _by_scan(
        self, queries: np.ndarray, k: int, excluded: np.ndarray, only: np.ndarray | None
    ) -> list[list[_Found]]:
        view = self._standing.exact()
        scan = view.held
        without = view.without(excluded)
        tail_ids, tail = view.tail_of(excluded, only)
        if only is not None:
            only = only[is_in(only, scan.ids)]
        tail_scores = queries @ tail.T
        num_scanned = len(scan) - len(without) if only is None else len(only)
        k = min(k, num_scanned + len(tail_ids))
        if k == 0:
            return [[] for _ in queries]
        fetch = min(num_scanned, k + _SPARE_ROWS)
        all_scores, all_ids = scan.search(queries, fetch, without, only) if fetch else _no_results(len(queries))
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
            candidates = np.concatenate([ids, tail_ids])[chosen]
            true = self._true_scores(query, candidates)
            if not np.allclose(true, joined[chosen], rtol=0, atol=100 * SCORE_TOLERANCE):
                raise OtherScoreError("another score")
            results.append(self._best(candidates, true, k))
        return results

    def _true_scores(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Cosines of the catalogue's own vectors, float32, whatever a cache says of them.

        Summed in float64, so that equal vectors score the same wherever they lie.
        """
        products = self._catalog.vectors(ids.tolist()).astype(np.float64) * query.astype(np.float64)
        scores: np.ndarray = products.sum(axis=1).astype(np.float32)
        return scores

    def _best(self, ids: np.ndarray, scores: np.ndarray, k: int) -> list[_Found]:
        """The best ``k`` of the candidates by true score, then by path."""
        kept = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
        wanted = ids[kept].tolist()
        paths = self._catalog.paths(wanted)
        return sorted(zip((-scores[kept]).tolist(), (paths[row] for row in wanted), wanted, strict=True))[:k]


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Which are among the ``k`` largest, up to rounding: all that may tie with the last, bool."""
    if len(scores) <= k:
        return np.ones(len(scores), bool)
    largest: np.ndarray = scores >= np.partition(scores, len(scores) - k)[len(scores) - k] - SCORE_TOLERANCE
    return largest


_NOTHING = np.zeros(0, np.int64)


def _numbered(found: list[_Found]) -> list[Hit]:
    return [Hit(rank, path, -score) for rank, (score, path, _) in enumerate(found, start=1)]


def _no_results(num_queries: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((num_queries, 0), np.float32), np.zeros((num_queries, 0), np.int64)
