"""Search by example images, from query paths to a result that can be printed, dumped or looked at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.nearest import Hit
from vitembed.collection.query import Query, query_vector
from vitembed.collection.update import StreamsVectors


@dataclass(frozen=True)
class SearchResult:
    """Hits and what they answer."""

    queries: list[str]
    """As given; a vector is named ``<vector>``."""
    exclude: list[str]
    hits: list[Hit]
    exact: bool
    """Whether every vector was compared. Always, so far."""
    seconds: float
    """From query to hits, with loading and running the encoder where that was needed."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: ``{"query": [...], "exact": true, "results": [{"rank": 1, "path": "...", "score": 0.93}, ...]}``.

        With ``exclude`` there is ``"not": [...]`` as well. Paths that are not UTF-8 hold lone surrogates, which
        ``json.dumps`` escapes by default.
        """
        results = [{"rank": hit.rank, "path": hit.path, "score": hit.score} for hit in self.hits]
        excluded = {"not": self.exclude} if self.exclude else {}
        return {"query": self.queries, **excluded, "exact": self.exact, "results": results}

    def write_sheet(self, path: str | os.PathLike[str]) -> None:
        """Write the result as one HTML file that anyone can open anywhere."""
        from vitembed.collection.sheet import SheetImage, SheetRow, write_sheet

        hits = [SheetImage(hit.path, [f"{hit.rank}. {hit.score:.4f}", hit.path]) for hit in self.hits]
        queries = [SheetImage(name, ["query", name]) for name in self.queries]
        excluded = [SheetImage(name, ["not like this", name], "bad") for name in self.exclude]
        exact = "every vector compared" if self.exact else "approximate"
        note = f"{len(self.hits)} nearest images by cosine, {exact}, in {self.seconds:.3f} s"
        write_sheet(path, "Similar images", [SheetRow([*queries, *excluded], hits)], note)


def search(
    collection: Collection,
    queries: Sequence[Query],
    encoder_factory: Callable[[], StreamsVectors],
    *,
    k: int = 10,
    exclude: Sequence[Query] = (),
    exclude_paths: Sequence[str] = (),
) -> SearchResult:
    """Find the images that look like the queries. Query images themselves are left out of the result.

    Args:
        collection: Where to search.
        queries: Paths of images, ids of the collection, or vectors; several are averaged.
        encoder_factory: Called only if a query is not an indexed, unchanged image.
        k: How many.
        exclude: Images to move away from.
        exclude_paths: Absolute paths that are not to be found.

    Raises:
        VitembedError: As ``query_vector`` and ``Collection.search``.
    """
    start = time.perf_counter()
    query = query_vector(collection, queries, encoder_factory, exclude=exclude)
    hits = collection.search(query.vector, k=k, exclude_paths=[*query.own_paths, *exclude_paths])
    return SearchResult(_named(queries), _named(exclude), hits, True, time.perf_counter() - start)


def _named(queries: Sequence[Query]) -> list[str]:
    return ["<vector>" if isinstance(query, np.ndarray) else os.fsdecode(query) for query in queries]
