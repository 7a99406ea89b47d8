"""Nearest neighbours at any moment, scored by the catalogue's own vectors whoever found them.

Either every vector is compared (the scan), or the nearest lists of an index are looked at, where one has been measured
to find enough. Both are completed by the rows that they do not hold yet, and their dead rows are passed over.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitembed.collection.catalog import Catalog, UnknownIdError
from vitembed.collection.finding.facts import matching_ids
from vitembed.collection.finding.where import Where
from vitembed.collection.hits import Hit, Hits, check_k
from vitembed.collection.same_file import Identity, identity_of, link_rank
from vitembed.collection.standing import Standing
from vitembed.collection.view import is_in
from vitembed.embeddings import unit_rows

__all__ = ["Hit", "Hits", "Nearest", "QueryFile"]

# Scores of the scan and of the catalogue differ by the order of float32 sums, at most.
SCORE_TOLERANCE = 1e-5
# Scores of an index may differ by this many times what was measured when it was built, and a little.
APPROX_TOLERANCE_FACTOR = 2.0
APPROX_TOLERANCE = 0.01
_SPARE_ROWS = 16
# What float32 sums of unit vectors differ by.
_ROUNDING = 1e-6
# Vectors of the same bytes have at least this cosine, in whatever batch, on whatever device they were made.
_COPY_SCORE = 0.98

_Found = tuple[float, str, int]
"""Score with its sign turned, path, id: their order is the order of results."""
_Answer = tuple[list[_Found], float | None]
"""With the recall of the index; None: every vector was compared."""

log = logging.getLogger("vitembed")


class QueryFile(NamedTuple):
    """The image file that a query vector is of."""

    paths: Sequence[str] = ()
    """Names under which the collection may know it: left out of the results, as is the same file by another name."""
    content_hash: bytes | None = None
    """An image of the same bytes scores 1."""


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
        files: Sequence[QueryFile] | None = None,
    ) -> list[Hits]:
        """The ``k`` nearest files (all, if there are fewer) for each unit query, float32 ``[q, d]``.

        Args:
            queries: What to look for.
            k: How many.
            exclude_paths: Files to leave out.
            where: Rows to look at; the others are not compared.
            unique: Hide rows whose cosine with a better result is at least this.
            exact: Compare every vector, even if there is an index.
            files: What each query is of, if that is known.

        Raises:
            DataError: If ``k`` < 1.
            CollectionError: If the collection has been rebuilt since it was opened.
        """
        check_k(k)
        with self._catalog.read():
            self._standing.catch_up()
            try:
                return self._hits(queries, k, exclude_paths, where, unique, exact, files)
            except (OtherScoreError, UnknownIdError) as error:
                # Changed after it was opened: the checksum was right then.
                log.warning("the vector cache contradicts the catalogue (%s): made anew", error)
                self._standing.exact(distrust=True)
                return self._hits(queries, k, exclude_paths, where, unique, True, files)

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
        files: Sequence[QueryFile] | None,
    ) -> list[Hits]:
        excluded = self._ids_of(exclude_paths)
        only = None if where is None else np.setdiff1d(matching_ids(self._catalog, where), excluded, assume_unique=True)
        not_wanted = {identity for identity in map(identity_of, exclude_paths) if identity is not None}
        files = [QueryFile()] * len(queries) if files is None else files
        if unique is None:
            answers = self._distinct(queries, k, excluded, only, exact, not_wanted, files)
            return [Hits(_numbered(found), recall=recall) for found, recall in answers]
        return [
            self._unique(query[None], k, excluded, only, unique, exact, not_wanted, file)
            for query, file in zip(queries, files, strict=True)
        ]

    def _ids_of(self, paths: Sequence[str]) -> np.ndarray:
        rows = [row for row in map(self._catalog.find, paths) if row is not None and row.status == "ok"]
        return np.array(sorted({row.id for row in rows}), dtype=np.int64)

    def _unique(
        self,
        query: np.ndarray,
        k: int,
        excluded: np.ndarray,
        only: np.ndarray | None,
        threshold: float,
        exact: bool,
        not_wanted: set[Identity],
        file: QueryFile,
    ) -> Hits:
        """The best ``k`` that are not near-duplicates of a better one: more are fetched until there are as many."""
        fetch = 2 * k + _SPARE_ROWS
        while True:
            ((found, recall),) = self._distinct(query, fetch, excluded, only, exact, not_wanted, [file])
            vectors = unit_rows(self._catalog.vectors([row for _, _, row in found]))
            kept, num_alike = list[int](), list[int]()
            for place, vector in enumerate(vectors):
                alike = np.flatnonzero(vectors[kept] @ vector >= min(threshold, 1 - _ROUNDING))
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

    def _distinct(
        self,
        queries: np.ndarray,
        k: int,
        excluded: np.ndarray,
        only: np.ndarray | None,
        exact: bool,
        not_wanted: set[Identity],
        files: Sequence[QueryFile],
    ) -> list[_Answer]:
        """As ``_search``, each file once and none that is the query's own: more are fetched where some drop out."""
        own = [set(self._ids_of(file.paths).tolist()) for file in files]
        fetch = k + max(map(len, own), default=0)
        contents = [file.content_hash for file in files]
        answers = list[_Answer]()
        first = self._search(queries, fetch, excluded, only, exact, contents)
        for place, (found, recall) in enumerate(first):
            unwanted = not_wanted | {one for one in map(identity_of, files[place].paths) if one is not None}
            asked = fetch
            while True:
                kept = self._one_of_each([each for each in found if each[2] not in own[place]], unwanted)
                if len(kept) >= k or len(found) < asked:
                    break
                asked *= 2
                one = slice(place, place + 1)
                ((found, recall),) = self._search(queries[one], asked, excluded, only, exact, contents[one])
            answers.append((self._own_paths(kept[:k], excluded, only), recall))
        return answers

    def _own_paths(self, found: list[_Found], excluded: np.ndarray, only: np.ndarray | None) -> list[_Found]:
        """Name each file by its own path where that is searched too, though it came just after the last result."""
        named = list[_Found]()
        for score, path, row in found:
            if link_rank(path):
                own = self._catalog.find(os.path.realpath(path))
                is_own = own is not None and own.status == "ok" and identity_of(own.path) == identity_of(path)
                if own is not None and is_own and (own.id in only if only is not None else own.id not in excluded):
                    path, row = own.path, own.id
            named.append((score, path, row))
        return sorted(named)

    def _one_of_each(self, found: list[_Found], unwanted: set[Identity]) -> list[_Found]:
        """One result for all names of a file, rather the file's own path than a link to it."""
        hashes = self._catalog.content_hashes([row for _, _, row in found])
        counts = Counter(hashes.values())
        by_file = dict[Identity | int, _Found]()
        for score, path, row in found:
            # Names of one file have one content: others need not be looked at on the disk.
            several = hashes[row] is not None and counts[hashes[row]] > 1
            identity = identity_of(path) if several or unwanted else None
            if identity in unwanted:
                continue
            key = row if identity is None else identity
            known = by_file.get(key)
            if known is None:
                by_file[key] = (score, path, row)
            elif (link_rank(path), os.fsencode(path)) < (link_rank(known[1]), os.fsencode(known[1])):
                by_file[key] = (known[0], path, row)
        return sorted(by_file.values())

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        excluded: np.ndarray,
        only: np.ndarray | None,
        exact: bool,
        contents: Sequence[bytes | None],
    ) -> list[_Answer]:
        answers: list[_Answer | None] = [None] * len(queries)
        if not exact:
            try:
                answers = self._by_index(queries, k, excluded, only, contents)
            except (OtherScoreError, UnknownIdError) as error:
                self._standing.distrust_approximate(f"it contradicts the catalogue: {error}")
        left = [place for place, answer in enumerate(answers) if answer is None]
        if left:
            theirs = [contents[place] for place in left]
            for place, found in zip(left, self._by_scan(queries[left], k, excluded, only, theirs), strict=True):
                answers[place] = (found, None)
        return [answer for answer in answers if answer is not None]

    def _by_index(
        self,
        queries: np.ndarray,
        k: int,
        excluded: np.ndarray,
        only: np.ndarray | None,
        contents: Sequence[bytes | None],
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
        for query, scores, ids, content in zip(queries, all_scores, all_ids, contents, strict=True):
            found = ids >= 0  # the lists that were looked at may hold fewer
            scores, ids = scores[found], ids[found]
            true = self._true_scores(query, ids)
            allowed = APPROX_TOLERANCE_FACTOR * index.facts.score_error + APPROX_TOLERANCE
            if np.abs(true - scores).max(initial=0) > allowed:
                raise OtherScoreError("another score")
            near_tail = tail_ids[_top(tail @ query, k)]
            joined = np.concatenate([true, self._true_scores(query, near_tail)])
            joined = self._with_copies(joined, np.concatenate([ids, near_tail]), content)
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
        self,
        queries: np.ndarray,
        k: int,
        excluded: np.ndarray,
        only: np.ndarray | None,
        contents: Sequence[bytes | None],
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
        # The scan compares the stored vectors as they are, rounded: their lengths are not quite 1.
        tolerance = SCORE_TOLERANCE + 2 * scan.length_error
        results = []
        for query, scores, ids, more_scores, content in zip(
            queries, all_scores, all_ids, tail_scores, contents, strict=True
        ):
            # Rows that score as the last result does may be more than were fetched: then the path decides among them,
            # so all are needed.
            while True:
                joined = np.concatenate([scores, more_scores])
                floor = np.partition(joined, len(joined) - k)[len(joined) - k] - tolerance
                if len(scores) == num_scanned or scores[-1] < floor:
                    break
                more = scan.search(query[None], min(num_scanned, 4 * len(scores)), without, only)
                scores, ids = more[0][0], more[1][0]
            chosen = joined >= floor
            candidates = np.concatenate([ids, tail_ids])[chosen]
            true = self._true_scores(query, candidates)
            if not np.allclose(true, joined[chosen], rtol=0, atol=100 * SCORE_TOLERANCE):
                raise OtherScoreError("another score")
            results.append(self._best(candidates, self._with_copies(true, candidates, content), k))
        return results

    def _true_scores(self, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Cosines of the catalogue's own vectors, float32 in [-1, 1], whatever a cache says of them.

        Lengths and sums are taken in float64: equal vectors score the same wherever they lie, and 1 with themselves.
        """
        vectors, wide = self._catalog.vectors(ids.tolist()).astype(np.float64), query.astype(np.float64)
        lengths = np.sqrt(np.square(vectors).sum(axis=1) * np.square(wide).sum())
        products = (vectors * wide).sum(axis=1)
        scores: np.ndarray = np.clip(products / np.maximum(lengths, 1e-30), -1, 1).astype(np.float32)
        return scores

    def _with_copies(self, scores: np.ndarray, ids: np.ndarray, content: bytes | None) -> np.ndarray:
        """The scores, and 1 for images of the same bytes: their vectors may be of other batches or another device."""
        near = np.flatnonzero(scores >= _COPY_SCORE)
        if content is None or not len(near):
            return scores
        hashes = self._catalog.content_hashes(ids[near].tolist())
        same = [place for place in near.tolist() if hashes.get(int(ids[place])) == content]
        scores = scores.copy()
        scores[same] = 1.0
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
