"""The scan over all vectors, by FAISS, and the file that keeps it ready: a cache, never the truth.

Exact inner products over the very bytes that the catalogue stores. For float16 that is ``IndexScalarQuantizer``
(QT_fp16): half the file and the memory traffic of float32, measured faster when memory-mapped. For float32 it is
``IndexFlatIP``. Rows go by catalogue id. Many queries at once are compared on a GPU where FAISS sees one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitembed.collection.ann import gpu
from vitembed.collection.ann.cache_file import CacheFile, CacheKey, read_index, write_index
from vitembed.collection.ann.engine import METRIC, bits, faiss
from vitembed.errors import DataError

CACHE_FILE = "vectors.faiss"
MANIFEST_FILE = "vectors.json"
FORMAT_VERSION = 2
"""2: the type of the vectors."""

log = logging.getLogger("vitembed")


class Scan:
    """Vectors by id, to be compared with a query all at once. Never changes; several threads may search it."""

    def __init__(self, index: Any, state: str, length_error: float) -> None:
        self._index = index
        self.length_error = length_error
        """How far the length of a vector, rounded as it is stored, is from 1, at most."""
        self.state = state
        """State of the catalogue in which it holds exactly the rows with a vector; later it may not."""
        self.ids: np.ndarray = faiss.vector_to_array(index.id_map)
        """int64 ``[n]``, rising."""

    @classmethod
    def build(
        cls, chunks: Iterable[tuple[np.ndarray, np.ndarray]], dim: int, state: str, vector_type: str = "float16"
    ) -> Scan:
        """From chunks of ids int64 ``[m]`` (rising) and vectors ``[m, dim]`` of ``vector_type``."""
        index = faiss.IndexIDMap(_FAMILIES[vector_type](dim))
        error = _ROUNDING
        for ids, vectors in chunks:
            wide = vectors.astype(np.float32)
            index.add_with_ids(wide, ids)  # float16 -> float32 -> float16: the same bytes
            lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
            error = max(error, float(np.abs(lengths - 1).max(initial=0)) + _ROUNDING)
        return cls(index, state, error)

    def __len__(self) -> int:
        return len(self.ids)

    def search(
        self, queries: np.ndarray, k: int, without: np.ndarray, only: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Nearest rows by inner product, best first, in no particular order among equals.

        Args:
            queries: float32 ``[q, d]``.
            k: How many; at most the number of rows that are left.
            without: Ids to pass over, int64 ``[m]``.
            only: Ids to look at, int64 ``[n]``, rising, in place of ``without``; the others are not even compared.

        Returns:
            Scores float32 ``[q, k]`` and ids int64 ``[q, k]``.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if gpu.pays(len(queries), k):
            try:
                return gpu.search_blocks(queries, self._blocks(without, only), k)
            except RuntimeError as error:  # FAISS's one kind: no memory left on the card, a driver that is too old
                reason = str(error).strip().splitlines()[-1]
                log.warning("FAISS cannot use the GPU (%s): compared on the processor instead", reason)
        parameters = None
        if only is not None:
            selected = faiss.IDSelectorBitmap(bits(only))  # one look-up a row, where a set takes ten times as long
            parameters = faiss.SearchParameters(sel=selected)
        elif len(without):  # the objects stay referenced until the search is over
            selected = faiss.IDSelectorBatch(without)
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorNot(selected))
        scores, ids = self._index.search(queries, k, params=parameters)
        return scores, ids

    def _blocks(self, without: np.ndarray, only: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and float32 vectors of the rows that are to be compared, as many at a time as a card takes."""
        inner = faiss.downcast_index(self._index.index)
        size = max(1, gpu.BLOCK_BYTES // (4 * self._index.d))
        for start in range(0, len(self.ids), size):
            ids = self.ids[start : start + size]
            kept = np.isin(ids, without, invert=True) if only is None else np.isin(ids, only)
            if kept.any():
                vectors = inner.reconstruct_n(start, len(ids))
                yield (ids, vectors) if kept.all() else (ids[kept], vectors[kept])

    def write(self, file: BinaryIO) -> None:
        """Write FAISS's own format to an open file."""
        write_index(self._index, file, CACHE_FILE)


def _float16(dim: int) -> Any:
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, METRIC)


def _float32(dim: int) -> Any:
    return faiss.IndexFlatIP(dim)


_FAMILIES = {"float16": _float16, "float32": _float32}
"""How vectors of each stored type are scanned."""
_ROUNDING = 1e-6
_MAX_LENGTH_ERROR = 2**-11 + _ROUNDING


class VectorCache:
    """The pair ``vectors.faiss`` and ``vectors.json`` in the folder of a collection."""

    def __init__(self, directory: Path, key: CacheKey) -> None:
        self._key = key
        self._pair = CacheFile(directory / CACHE_FILE, key, FORMAT_VERSION)

    def load(self) -> Scan:
        """Open the scan, memory-mapped.

        What it may be missing or have too much is for the catalogue to say (see ``Scan.ids``).

        Raises:
            FileNotFoundError: If there is none.
            DataError: If it is damaged or belongs to another collection.
        """
        return self._pair.load(self._read)

    def write(self, scan: Scan, generation: int) -> None:
        """Publish a scan: readers see the old pair or the new one, and those that mapped the old one keep it.

        One process at a time (the caller holds a lock).

        Raises:
            OSError: If the folder cannot be written.
        """
        self._pair.write(
            scan.write,
            {
                "generation": generation,
                "state": scan.state,
                "count": len(scan),
                "length_error": scan.length_error,
            },
        )

    def verify(self) -> None:
        """Compare the whole file with its SHA-256.

        Raises:
            FileNotFoundError: If there is no cache.
            DataError: If it differs.
        """
        self._pair.verify(self._read)

    def _read(self, path: Path, num_bytes: int, manifest: dict[str, Any]) -> Scan:
        index = read_scan(path, num_bytes, int(manifest["count"]), self._key)
        # Without it in a file of an earlier version: what rounding to 16 bits can do at most.
        error = float(manifest.get("length_error", _MAX_LENGTH_ERROR))
        return Scan(index, str(manifest["state"]), error if 0 <= error <= _MAX_LENGTH_ERROR else _MAX_LENGTH_ERROR)


def read_scan(path: Path, num_bytes: int, num_rows: int, key: CacheKey) -> Any:
    """The index in a file, if it is of the one class, type, metric and size that ``Scan.build`` makes.

    Raises:
        DataError: If it is anything else.
    """
    index = read_index(path, num_bytes)
    # Only the one class that build() makes: FAISS would load any of its hundred.
    inner: Any = faiss.downcast_index(index.index) if type(index) is faiss.IndexIDMap else None
    expected = _FAMILIES[key.vector_type](key.dim)
    sq_type = getattr(getattr(inner, "sq", None), "qtype", None)
    if type(inner) is not type(expected) or sq_type not in (None, faiss.ScalarQuantizer.QT_fp16):
        raise DataError(f"holds a {type(index).__name__}, expected IndexIDMap over {type(expected).__name__}")
    try:
        shape = (index.d, index.ntotal, inner.d, inner.ntotal, index.id_map.size(), inner.codes.size())
    except RuntimeError as error:
        raise DataError("FAISS cannot read it") from error
    if shape != (key.dim, num_rows, key.dim, num_rows, num_rows, num_rows * expected.sa_code_size()):
        raise DataError("holds another number of vectors or another width")
    if index.metric_type != METRIC or inner.metric_type != METRIC:
        raise DataError("holds another metric")
    return index
