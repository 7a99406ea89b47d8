"""Many queries at once: each line of a file is one, and each gets its own answer."""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.finding.background import Background
from vitembed.collection.hits import Hits
from vitembed.collection.nearest import QueryFile
from vitembed.collection.query import QueryEncoder, resolve_queries
from vitembed.collection.search import SearchResult, check_limits
from vitembed.embeddings import unit_rows
from vitembed.errors import BadImage, DataError, printable
from vitembed.images.formats import explain_os_error
from vitembed.images.source import read_path_list, split_path_list

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class Failed:
    """A query that could not be answered."""

    query: str
    problem: str


def read_queries(file: str) -> list[str]:
    """Read a list of queries, by the rules of ``read_path_list``.

    Raises:
        DataError: If it cannot be read, or is no list.
    """
    return read_path_list(file, what="list of queries ")


def queries_in(file: io.BufferedIOBase) -> list[str]:
    """Read a list of queries from a stream, by the same rules.

    Raises:
        DataError: If it is no list.
    """
    try:
        return split_path_list(file.read())
    except ValueError as error:
        raise DataError(f"stdin is not a list of queries: {error}") from error


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
    check_limits(k, where, min_score, unique)
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
            vectors, files = np.stack([vector for vector, _ in good]), [file for _, file in good]
            hits = collection.search_many(vectors, k=k, where=where, exact=exact, files=files)
        else:
            hits = [
                collection.search(
                    vector,
                    k=k,
                    exclude_paths=file.paths,
                    where=where,
                    unique=unique,
                    exact=exact,
                    file=QueryFile(content_hash=file.content_hash),
                )
                for vector, file in good
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
) -> tuple[np.ndarray, QueryFile] | Failed:
    try:
        vectors, files = resolve_queries(collection, [query], encoder)
        return unit_rows(vectors)[0], files[0]
    except (BadImage, DataError) as error:
        return Failed(query, str(error))
    except OSError as error:
        return Failed(query, f"{printable(query)}: {explain_os_error(error)}")


def _result(query: str, hits: Hits, min_score: float | None, seconds: float, ground: Background) -> SearchResult:
    kept = hits.at_least(min_score)
    return SearchResult([query], [], kept, kept.exact, seconds, ground, recall=kept.recall)
