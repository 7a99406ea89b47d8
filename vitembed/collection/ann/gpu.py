"""What FAISS does on a GPU where it sees one: k-means, and comparing many queries with many vectors.

Both are compute-bound and the same numbers come out, up to the order of float32 sums; a single query is memory-bound
and over before its vectors would be on the card, so it stays where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from vitembed.collection.ann.engine import METRIC, faiss

MIN_QUERIES = 16
"""With fewer at once, sending the vectors to the card takes longer than comparing them where they are."""
MAX_K = 2_048
"""FAISS's limit on a card."""
BLOCK_BYTES = 1 << 28
"""Of float32 vectors on the card at a time: any card has room for them, and for collections of any size."""


def num_gpus() -> int:
    """That FAISS sees; none with a wheel that was built without."""
    count = getattr(faiss, "get_num_gpus", None)
    return 0 if count is None else int(count())


def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest inner products of each query, exactly: on a GPU where there is one.

    Args:
        queries: float32 ``[q, d]``.
        vectors: float32 ``[n, d]``, ``n >= k``; a chunk that fits the card.
        k: At most ``MAX_K``.

    Returns:
        Scores float32 ``[q, k]``, falling, and rows of ``vectors`` int64 ``[q, k]``.
    """
    queries, vectors = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(vectors, np.float32)
    if num_gpus():
        scores, rows = faiss.knn_gpu(_resources(), queries, vectors, k, metric=METRIC)
    else:
        scores, rows = faiss.knn(queries, vectors, k, metric=METRIC)
    return scores, rows


def pays(num_queries: int, k: int) -> bool:
    """Whether these queries should be compared on a card: there is one, they are many, and it can give as many."""
    return num_queries >= MIN_QUERIES and k <= MAX_K and num_gpus() > 0


def search_blocks(
    queries: np.ndarray, blocks: Iterable[tuple[np.ndarray, np.ndarray]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest inner products over vectors that come block by block.

    Args:
        queries: float32 ``[q, d]``.
        blocks: Ids int64 ``[m]`` and vectors float32 ``[m, d]``.
        k: At most ``MAX_K``.

    Returns:
        Scores float32 ``[q, k]``, falling, and ids int64 ``[q, k]``; fewer columns where fewer vectors came.
    """
    scores, ids = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    for block_ids, vectors in blocks:
        more, rows = knn(queries, vectors, min(k, len(block_ids)))
        scores, ids = best(np.hstack([scores, more]), np.hstack([ids, block_ids[rows]]), k)
    return scores, ids


def best(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` columns of each row with the largest scores, falling; the first of equals first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


@functools.cache
def _resources() -> Any:
    """Streams and scratch memory of the first GPU, kept as long as the process."""
    return faiss.StandardGpuResources()
