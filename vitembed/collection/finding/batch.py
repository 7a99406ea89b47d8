"""Many queries at once: each line of a file is one, and each gets its own answer."""
# ruff: noqa: PTH100, PTH118, PTH120
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.finding.background import Background
from vitembed.collection.hits import Hits
from vitembed.collection.query import QueryEncoder, resolve_queries
from vitembed.collection.search import SearchResult
from vitembed.embeddings import unit_rows
from vitembed.errors import BadImage, DataError, printable
from vitembed.images.formats import explain_os_error

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Failed:
    """A query that could not be answered."""

    query: str
    problem: str


def read_queries(file: str) -> Iterator[str]:
    """The lines of a text file, blank ones left out; a path in it counts from the file's folder.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with open(file, "rb") as lines:
            folder = os.path.dirname(os.path.abspath(file))
            yield from queries_in(lines, folder)
    except (OSError, ValueError) as error:
        raise DataError(f"list of queries {printable(file)}: {explain_os_error(error)}") from error


def queries_in(lines: Iterable[bytes], folder: str | None = None) -> Iterator[str]:
    """Queries in lines of bytes; what exists below ``folder`` is meant, else the line as it stands (an id)."""
    for number, raw in enumerate(lines):
        line = (raw.removeprefix(b"\xef\xbb\xbf") if number == 0 else raw).rstrip(b"\r\n")
        if not line.strip():
            continue
        text = os.fsdecode(line)
        below = text if folder is None else os.path.join(folder, text)
        yield below if "\0" not in below and os.path.lexists(below) else text


def search_batch(
    collection: Collection,
    queries: Iterable[str],
    encoder_factory: Callable[[], QueryEncoder],
    *,
    k: int = 10,
    where: str | None = None,
    min_score: float | None = None,
    unique: float | None = None,
    exact: bool = False,
) -> Iterator[SearchResult | Failed]:
    """Answer each query on its own, in order, a few hundred at a time; the encoder is asked for once at most.

    A query that cannot be answered gives ``Failed`` and stops nothing.

    Raises:
        VitembedError: If none could be answered for one reason: a wrong filter, another encoder.
    """
    encoders = list[QueryEncoder]()

    def encoder() -> QueryEncoder:
        if not encoders:
            encoders.append(encoder_factory())
        return encoders[0]

    ground = collection.background()
    remaining = iter(queries)
    while chunk := list(itertools.islice(remaining, QUERIES_AT_ONCE)):
        start = time.perf_counter()
        resolved = [_resolved(collection, query, encoder) for query in chunk]
        good = [found for found in resolved if not isinstance(found, Failed)]
        if good and unique is None:
            hits = _search_joint(collection, good, k, where, exact)
        else:
            hits = [
                collection.search(vector, k=k, exclude_paths=own, where=where, unique=unique, exact=exact)
                for vector, own in good
            ]
        seconds = (time.perf_counter() - start) / len(chunk)
        answers = iter(hits)
        for query, found in zip(chunk, resolved, strict=True):
            if isinstance(found, Failed):
                yield found
            else:
                yield _result(query, next(answers), min_score, seconds, ground)


def _resolved(
    collection: Collection, query: str, encoder: Callable[[], QueryEncoder]
) -> tuple[np.ndarray, list[str]] | Failed:
    try:
        vectors, own_paths = resolve_queries(collection, [query], encoder)
        return unit_rows(vectors)[0], own_paths[0]
    except (BadImage, DataError) as error:
        return Failed(query, str(error))


def _search_joint(
    collection: Collection, queries: list[tuple[np.ndarray, list[str]]], k: int, where: str | None, exact: bool
) -> list[Hits]:
    """All in one pass over the vectors; a query's own image is dropped afterwards, so a few more are fetched."""
    spare = max(len(own) for _, own in queries)
    found = collection.search_many(np.stack([vector for vector, _ in queries]), k=k + spare, where=where, exact=exact)
    results = []
    for hits, (_, own) in zip(found, queries, strict=True):
        others = [hit for hit in hits if hit.path not in own][:k]
        ranked = [replace(hit, rank=rank) for rank, hit in enumerate(others, start=1)]
        results.append(Hits(ranked, recall=hits.recall))
    return results


def _result(query: str, hits: Hits, min_score: float | None, seconds: float, ground: Background) -> SearchResult:
    kept = hits.at_least(min_score)
    return SearchResult([query], [], kept, kept.exact, seconds, ground, recall=kept.recall)
