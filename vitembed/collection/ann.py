"""The scan over all vectors, by FAISS, and the file that keeps it ready: a cache, never the truth.

Exact inner products over the very bytes that the catalogue stores. For float16 that is ``IndexScalarQuantizer``
(QT_fp16): half the file and the memory traffic of float32, measured faster when memory-mapped. For float32 it is
``IndexFlatIP``. Rows go by catalogue id.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitembed.atomic import atomic_path
from vitembed.errors import DataError
from vitembed.faults import about_to

CACHE_FILE = "vectors.faiss"
MANIFEST_FILE = "vectors.json"
FORMAT_VERSION = 2
"""2: the type of the vectors."""
_BLOCK_BYTES = 1 << 22

faiss: Any = importlib.import_module("faiss")  # untyped: its stubs lack much of what is used here


class Scan:
    """Vectors by id, to be compared with a query all at once. Never changes; several threads may search it."""

    def __init__(self, index: Any, state: str) -> None:
        self._index = index
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
        for ids, vectors in chunks:
            index.add_with_ids(vectors.astype(np.float32), ids)  # float16 -> float32 -> float16: the same bytes
        return cls(index, state)

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
        parameters = None
        if only is not None:
            selected = faiss.IDSelectorBitmap(_bits(only))  # one look-up a row, where a set takes ten times as long
            parameters = faiss.SearchParameters(sel=selected)
        elif len(without):  # the objects stay referenced until the search is over
            selected = faiss.IDSelectorBatch(without)
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorNot(selected))
        scores, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k, params=parameters)
        return scores, ids

    def write(self, file: BinaryIO) -> None:
        """Write FAISS's own format to an open file."""

        # Through a callback, as FAISS takes no file name outside UTF-8.
        def write(data: bytes) -> int:
            about_to(f"write into {CACHE_FILE}")
            return file.write(data)

        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, _BLOCK_BYTES))


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a cache must belong to."""

    collection_id: str
    fingerprint: str
    dim: int
    vector_type: str = "float16"


def _float16(dim: int) -> Any:
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _float32(dim: int) -> Any:
    return faiss.IndexFlatIP(dim)


_FAMILIES = {"float16": _float16, "float32": _float32}
"""How vectors of each stored type are scanned."""


class VectorCache:
    """The pair ``vectors.faiss`` and ``vectors.json`` in the folder of a collection."""

    def __init__(self, directory: Path, key: CacheKey) -> None:
        self._file = directory / CACHE_FILE
        self._manifest = directory / MANIFEST_FILE
        self._key = key

    def load(self) -> Scan:
        """Open the scan, memory-mapped.

        What it may be missing or have too much is for the catalogue to say (see ``Scan.ids``).

        Raises:
            FileNotFoundError: If there is none.
            DataError: If it is damaged or belongs to another collection.
        """
        try:
            return self._load()
        except DataError:
            # Two files cannot be replaced in one go: a writer may be just between them.
            time.sleep(0.05)
            return self._load()

    def _load(self) -> Scan:
        try:
            manifest = json.loads(self._manifest.read_bytes())
            found = {name: manifest.get(name) for name in asdict(self._key)}
            num_bytes, num_rows, checksum = int(manifest["bytes"]), int(manifest["count"]), int(manifest["crc32"])
            version, state = int(manifest["format"]), str(manifest["state"])
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"unreadable manifest: {type(error).__name__}") from error
        if version != FORMAT_VERSION or found != asdict(self._key):
            raise DataError("made for another collection or by another version")
        if self._file.stat().st_size != num_bytes:
            raise DataError(f"{self._file.stat().st_size} bytes, expected {num_bytes}")
        # FAISS opens a file with flipped bits without complaint. CRC-32 finds those at 4 GB/s (measured); the search
        # reads all bytes anyway.
        if _crc32(self._file) != checksum:
            raise DataError("checksum differs")
        return Scan(_read(self._file, num_bytes, num_rows, self._key), state)

    def write(self, scan: Scan, generation: int) -> None:
        """Publish a scan: readers see the old pair or the new one, and those that mapped the old one keep it.

        One process at a time (the caller holds a lock).

        Raises:
            OSError: If the folder cannot be written.
        """
        for left in self._file.parent.glob(f".tmp.*.{self._file.stem}.*"):
            left.unlink()  # of a process that was killed right here
        with atomic_path(self._file) as temp:
            with temp.open("wb") as file:
                scan.write(file)
            manifest = {
                "format": FORMAT_VERSION,
                **asdict(self._key),
                "generation": generation,
                "state": scan.state,
                "count": len(scan),
                "bytes": temp.stat().st_size,
                "crc32": _crc32(temp),
                "sha256": _sha256(temp),
                "faiss": faiss.__version__,
            }
            with atomic_path(self._manifest) as temp_manifest:
                temp_manifest.write_text(json.dumps(manifest, indent=2), encoding="utf-8")

    def verify(self) -> None:
        """Compare the whole file with its SHA-256.

        Raises:
            FileNotFoundError: If there is no cache.
            DataError: If it differs.
        """
        self.load()
        if _sha256(self._file) != json.loads(self._manifest.read_bytes())["sha256"]:
            raise DataError("SHA-256 differs")


def _bits(ids: np.ndarray) -> np.ndarray:
    """One bit for each id up to the largest, as FAISS numbers them: from the low end of each byte."""
    flags = np.zeros(int(ids[-1]) + 1 if len(ids) else 1, bool)
    flags[ids] = True
    return np.packbits(flags, bitorder="little")


def _read(path: Path, num_bytes: int, num_rows: int, key: CacheKey) -> Any:
    # Nothing in the file may ask for more than the file can hold.
    faiss.set_deserialization_vector_byte_limit(2 * num_bytes)
    try:
        try:
            os.fspath(path).encode("utf-8")
            index = faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC)
        except UnicodeError:  # FAISS maps only names in UTF-8; read the others
            with path.open("rb") as file:
                index = faiss.read_index(faiss.PyCallbackIOReader(file.read, _BLOCK_BYTES))
        # Only the one class that build() makes: FAISS would load any of its hundred.
        inner: Any = faiss.downcast_index(index.index) if type(index) is faiss.IndexIDMap else None
        expected = _FAMILIES[key.vector_type](key.dim)
        sq_type = getattr(getattr(inner, "sq", None), "qtype", None)
        if type(inner) is not type(expected) or sq_type not in (None, faiss.ScalarQuantizer.QT_fp16):
            raise DataError(f"holds a {type(index).__name__}, expected IndexIDMap over {type(expected).__name__}")
        shape = (index.d, index.ntotal, inner.d, inner.ntotal, index.id_map.size(), inner.codes.size())
        if shape != (key.dim, num_rows, key.dim, num_rows, num_rows, num_rows * expected.sa_code_size()):
            raise DataError("holds another number of vectors or another width")
        if index.metric_type != faiss.METRIC_INNER_PRODUCT or inner.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise DataError("holds another metric")
    except RuntimeError as error:  # a C++ exception; its text is a stack of source lines
        raise DataError("FAISS cannot read it") from error
    return index


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            value = zlib.crc32(block, value)
    return value


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
