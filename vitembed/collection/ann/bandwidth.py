"""What this machine does with vectors: bytes a second that a scan reads, operations a second that training makes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitembed.collection.ann.engine import METRIC, faiss
from vitembed.collection.ann.scan import Scan

SAMPLE_BYTES = 1 << 26
"""Beyond the processor's caches: a scan of a large collection waits for memory."""
_REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured, at the best of a few tries, as others may be busy meanwhile."""

    bytes_per_second: float
    """That a scan of one query passes."""
    flops_per_second: float
    """Of comparing many vectors with many, in float32."""


def measure_speed(vectors: np.ndarray, vector_type: str = "float16") -> Speed:
    """Time FAISS's own scan, of the same type as the exact one, over stored vectors.

    Args:
        vectors: ``[n, d]``, some of those stored; repeated until they are enough.
        vector_type: How they are stored.
    """
    dim = vectors.shape[1]
    row_bytes = dim * (2 if vector_type == "float16" else 4)
    num_rows = max(1, SAMPLE_BYTES // row_bytes)
    rows = np.resize(vectors.astype(np.float32), (num_rows, dim))
    scan = Scan.build([(np.arange(num_rows), rows)], dim, "", vector_type)
    nothing = np.zeros(0, np.int64)
    seconds = _best(lambda: scan.search(rows[:1], 10, nothing))
    few, many = rows[: min(num_rows, 1024)], rows[: min(num_rows, 4096)]
    together = _best(lambda: faiss.knn(many, few, 1, METRIC))
    return Speed(
        bytes_per_second=num_rows * row_bytes / seconds,
        flops_per_second=2.0 * len(few) * len(many) * dim / together,
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the quickest run; the first is not counted."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
