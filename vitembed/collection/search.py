"""Search by example images, from query paths to a result that can be printed, dumped or looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.finding.background import Background
from vitembed.collection.finding.crop import Crop
from vitembed.collection.finding.where import parse_where
from vitembed.collection.hits import Hit, Hits, check_k, check_min_score, check_unique
from vitembed.collection.nearest import QueryFile
from vitembed.collection.query import Query, QueryEncoder, query_vector
from vitembed.errors import counted

UNIQUE_THRESHOLD = 0.98
"""Cosine from which two images count as near-duplicates, where nothing else is asked for."""
MISSING = " (file is missing)"
"""Marks a result whose file is not there now."""
COMMON_PERCENT = 0.1
"""Share of unrelated pairs, in per cent, from which a threshold is too low to tell duplicates."""


@dataclass(frozen=True)
class SearchResult:
    """Hits and what they answer."""

    queries: list[str]
    """As given; a vector is named ``<vector>``."""
    exclude: list[str]
    hits: list[Hit]
    exact: bool
    """Whether every vector was compared."""
    seconds: float
    """From query to hits, with loading and running the encoder where that was needed."""
    background: Background | None = None
    """What scores mean in this collection."""
    crop: Crop | None = None
    notes: list[str] = field(default_factory=list)
    """What to know about the answer: what a filter could not judge, what a threshold hides."""
    recall: float | None = None
    """Where not exact: the share of the true nearest that the index was measured to find."""

    def percentile(self, hit: Hit) -> float | None:
        """Per cent of the pairs of different images in the collection that are less alike than query and hit."""
        return None if self.background is None else self.background.percentile(hit.score)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: ``{"query": [...], "exact": true, "results": [{"rank": 1, "path": "...", "score": 0.93}, ...]}``.

        Each result also has its ``percentile`` where the collection holds two images or more. With ``exclude`` there
        is ``"not": [...]`` as well, with a crop ``"crop": "X,Y,W,H"``, where ``exact`` is false ``"recall"``, and a
        result that hides near-duplicates has ``"num_alike"``, one whose file is not there now ``"missing": true``.
        Paths that are not UTF-8 hold lone surrogates, which ``json.dumps`` escapes by default.
        """
        excluded = {"not": self.exclude} if self.exclude else {}
        cropped = {"crop": self.crop.text} if self.crop else {}
        return {
            "query": self.queries,
            **excluded,
            **cropped,
            "exact": self.exact,
            **({} if self.recall is None else {"recall": round(self.recall, 4)}),
            "results": [self._hit(hit) for hit in self.hits],
        }

    def _hit(self, hit: Hit) -> dict[str, Any]:
        percentile = self.percentile(hit)
        return {
            "rank": hit.rank,
            "path": hit.path,
            "score": hit.score,
            **({} if percentile is None else {"percentile": round(percentile, 4)}),
            **({"num_alike": hit.num_alike} if hit.num_alike else {}),
            **({"missing": True} if hit.missing else {}),
        }

    def write_sheet(self, path: str | os.PathLike[str]) -> None:
        """Write the result as one HTML file that anyone can open anywhere."""
        from vitembed.collection.sheet import SheetImage, SheetRow, write_sheet
        from vitembed.images.decode import DecodeOptions

        hits = [SheetImage(hit.path, [self._headline(hit), hit.path]) for hit in self.hits]
        queries = [SheetImage(name, ["query", name]) for name in self.queries]
        if self.crop is not None:
            part = self.crop.load(self.queries[0], DecodeOptions())
            queries.append(SheetImage(part, [f"its part {self.crop.text}"]))
        excluded = [SheetImage(name, ["not like this", name], "bad") for name in self.exclude]
        note = f"{counted(len(self.hits), 'nearest image')} by cosine, {self.how}, in {self.seconds:.3f} s"
        write_sheet(path, "Similar images", [SheetRow([*queries, *excluded], hits)], "; ".join([note, *self.notes]))

    @property
    def how(self) -> str:
        """Whether it is exact, in words."""
        if self.recall is None:
            return "every vector compared"
        return f"approximate (the index finds {100 * self.recall:.1f} % of the nearest)"

    def _headline(self, hit: Hit) -> str:
        percentile = self.percentile(hit)
        above = "" if percentile is None else f", above {shown_percent(percentile)} % of pairs"
        alike = f", {hit.num_alike} alike" if hit.num_alike else ""
        return f"{hit.rank}. {hit.score:.4f}{above}{alike}{MISSING if hit.missing else ''}"


def search(
    collection: Collection,
    queries: Sequence[Query],
    encoder_factory: Callable[[], QueryEncoder],
    *,
    k: int = 10,
    exclude: Sequence[Query] = (),
    exclude_paths: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    crop: str | None = None,
    where: str | None = None,
    min_score: float | None = None,
    unique: float | None = None,
    exact: bool = False,
) -> SearchResult:
    """Find the images that look like the queries. Query images themselves are left out of the result.

    Args:
        collection: Where to search.
        queries: Paths of images, ids of the collection, or vectors; several are averaged.
        encoder_factory: Called only if a query is not an indexed, unchanged image.
        k: How many.
        exclude: Images to move away from.
        exclude_paths: Absolute paths that are not to be found.
        weights: One for each query.
        crop: ``X,Y,W,H``: the part of the one query image that counts, in pixels or per cent.
        where: Which images to look at.
        min_score: The least cosine of a result.
        unique: Hide images whose cosine with a better result is at least this.
        exact: Compare every vector, even where there is an index.

    Raises:
        VitembedError: As ``query_vector`` and ``Collection.search``.
    """
    start = time.perf_counter()
    check_limits(k, where, min_score, unique)
    part = None if crop is None else Crop.parse(crop)
    query = query_vector(collection, queries, encoder_factory, exclude=exclude, weights=weights, crop=part)
    hits = collection.search(
        query.vector,
        k=k,
        exclude_paths=[*query.own_paths, *exclude_paths],
        where=where,
        min_score=min_score,
        unique=unique,
        exact=exact,
        file=QueryFile(content_hash=query.content_hash),
    )
    ground = collection.background()
    seconds = time.perf_counter() - start
    notes = _notes(collection, ground, hits, where, unique)
    return SearchResult(named(queries), named(exclude), hits, hits.exact, seconds, ground, part, notes, hits.recall)


def check_limits(k: int, where: str | None, min_score: float | None, unique: float | None) -> None:
    """Refuse what no search can be limited by, before a model is loaded for it.

    Raises:
        DataError: If one of them is out of its range, or ``where`` is no filter.
    """
    check_k(k)
    check_min_score(min_score)
    check_unique(unique)
    if where is not None:
        parse_where(where)


def named(queries: Sequence[Query]) -> list[str]:
    """Queries as text."""
    return ["<vector>" if isinstance(query, np.ndarray) else os.fsdecode(query) for query in queries]


def shown_percent(percentile: float) -> str:
    """A percentile for people: cut, not rounded, as there is always someone above."""
    return f"{int(percentile * 100) / 100:.2f}"


def common_threshold(ground: Background, threshold: float) -> str | None:
    """A warning if many unrelated pairs of the collection reach a threshold for near-duplicates."""
    percentile = ground.percentile(threshold)
    if percentile is None or 100 - percentile < COMMON_PERCENT:
        return None
    return (
        f"{100 - percentile:.1f} % of all pairs of images here reach a cosine of {threshold:g}: too low a threshold to "
        f"tell near-duplicates with this encoder; {min(0.9995, ground.quantile(100 - COMMON_PERCENT)):.4f} leaves "
        f"{COMMON_PERCENT:g} %"
    )


def _notes(
    collection: Collection, ground: Background, hits: Hits, where: str | None, unique: float | None
) -> list[str]:
    notes = []
    if not hits.exact and where is not None:
        notes.append("approximate, and its recall was measured without a filter: --exact compares every vector")
    if where is not None and (unknown := collection.num_unknown(where)):
        notes.append(f"{counted(unknown, 'image')} left out by the filter: what it asks for is not known")
    if unique is not None:
        hidden = sum(hit.num_alike for hit in hits)
        notes.append(
            f"{counted(hidden, 'near-duplicate')} hidden: cosine of {unique:g} or more with a better result, by "
            "vectors alone (vitembed dupes compares whole images)"
        )
        warning = common_threshold(ground, unique)
        notes += [] if warning is None else [warning]
    return notes
