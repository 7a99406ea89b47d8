"""What FAISS does on a GPU where it sees one: k-means, and comparing many queries with many vectors.

Both are compute-bound and the same numbers come out, up to the order of float32 sums; a single query is memory-bound
and over before its vectors would be on the card, so it stays where they are.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from vitembed.collection.ann.engine import METRIC, faiss


def num_gpus() -> int:
    """That FAISS sees; none with a wheel that was built without."""
    count = getattr(faiss, "get_num_gpus", None)
    return 0 if count is None else int(count())


def knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` largest inner products of each query, exactly: on a GPU where there is one.

    Args:
        queries: float32 ``[q, d]``.
        vectors: float32 ``[n, d]``, ``n >= k``; a chunk that fits the card.
        k: At most 2,048 (FAISS's limit on a card).

    Returns:
        Scores float32 ``[q, k]``, falling, and rows of ``vectors`` int64 ``[q, k]``.
    """
    queries, vectors = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(vectors, np.float32)
    if num_gpus():
        scores, rows = faiss.knn_gpu(_resources(), queries, vectors, k, metric=METRIC)
    else:
        scores, rows = faiss.knn(queries, vectors, k, metric=METRIC)
    return scores, rows


@functools.cache
def _resources() -> Any:
    """Streams and scratch memory of the first GPU, kept as long as the process."""
    return faiss.StandardGpuResources()
