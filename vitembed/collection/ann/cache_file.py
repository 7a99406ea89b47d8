"""A FAISS file and the manifest that vouches for it: published in one go, and checked before FAISS sees a byte.

FAISS opens a file with flipped bits without complaint, and would load any of its hundred classes. So a file counts only
with a manifest that names its collection, size and checksum, may ask for no more memory than it can hold, and is looked
at by whoever reads it before it is searched.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from vitembed.atomic import atomic_path
from vitembed.collection.ann.engine import faiss
from vitembed.errors import DamagedFile, DataError
from vitembed.faults import about_to
from vitembed.seal import read_document, seal_of

if TYPE_CHECKING:
    from vitembed.collection.catalog import Catalog

_BLOCK_BYTES = 1 << 22

Opened = TypeVar("Opened")


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """What a cache must belong to."""

    collection_id: str
    fingerprint: str
    dim: int
    vector_type: str = "float16"

    @classmethod
    def of(cls, catalog: Catalog) -> CacheKey:
        """What the caches of a catalogue must belong to."""
        return cls(
            collection_id=catalog.collection_id,
            fingerprint=catalog.fingerprint,
            dim=catalog.dim,
            vector_type=catalog.vector_type,
        )


class CacheFile:
    """The pair ``NAME.faiss`` and ``NAME.json`` in the folder of a collection."""

    def __init__(self, file: Path, key: CacheKey, format_version: int, *, sealed: bool = False) -> None:
        self.file = file
        self.manifest = file.with_suffix(".json")
        self._key = key
        self._format = format_version
        self._sealed = sealed
        """Whether the manifest has a checksum of its own, for facts that nothing else can contradict."""

    def load(self, read: Callable[[Path, int, dict[str, Any]], Opened]) -> Opened:
        """Open the file by ``read``, which is given its path, its size and the manifest.

        Raises:
            FileNotFoundError: If there is none.
            DataError: If it is damaged or belongs to another collection.
        """
        try:
            return self._load(read)
        except DataError:
            # Two files cannot be replaced in one go: a writer may be just between them.
            time.sleep(0.05)
            return self._load(read)

    def _load(self, read: Callable[[Path, int, dict[str, Any]], Opened]) -> Opened:
        manifest = self.facts()
        num_bytes = int(manifest["bytes"])
        if self.file.stat().st_size != num_bytes:
            raise DataError(f"{self.file.stat().st_size} bytes, expected {num_bytes}")
        # CRC-32 finds flipped bits at 4 GB/s (measured).
        if _crc32(self.file) != int(manifest["crc32"]):
            raise DataError("checksum differs")
        try:
            return read(self.file, num_bytes, manifest)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"unreadable manifest: {type(error).__name__}") from error

    def facts(self) -> dict[str, Any]:
        """The manifest, which belongs to this collection and is whole.

        Raises:
            FileNotFoundError: If there is none.
            DataError: If it is damaged or of another collection.
        """
        try:
            found = read_document(self.manifest)
            key = {name: found.get(name) for name in asdict(self._key)}
            version, _, _ = int(found["format"]), int(found["bytes"]), int(found["crc32"])
            seal = found.pop("seal") if self._sealed else None
        except FileNotFoundError:
            raise
        except (DamagedFile, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"unreadable manifest: {type(error).__name__}") from error
        if version != self._format or key != asdict(self._key):
            raise DataError("made for another collection or by another version")
        if self._sealed and seal != seal_of(found):
            raise DataError("the checksum of the manifest differs")
        manifest: dict[str, Any] = found
        return manifest

    def write(self, write: Callable[[BinaryIO], None], facts: Mapping[str, Any]) -> int:
        """Publish a file: readers see the old pair or the new one, and those that mapped the old one keep it.

        One process at a time (the caller holds a lock).

        Args:
            write: Writes the content to an open file.
            facts: What else the manifest says, JSON-safe.

        Returns:
            The size of the file in bytes.

        Raises:
            OSError: If the folder cannot be written.
        """
        self._sweep()
        with atomic_path(self.file) as temp:
            with temp.open("wb") as file:
                write(file)
            num_bytes = temp.stat().st_size
            manifest = {
                "format": self._format,
                **asdict(self._key),
                **facts,
                "bytes": num_bytes,
                "crc32": _crc32(temp),
                "sha256": _sha256(temp),
                "faiss": faiss.__version__,
            }
            if self._sealed:
                manifest["seal"] = seal_of(manifest)
            with atomic_path(self.manifest) as temp_manifest:
                temp_manifest.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        return num_bytes

    def remove(self) -> bool:
        """Take the pair away, the manifest first: without it the file counts for nothing. Whether there was one."""
        self._sweep()
        found = False
        for path in (self.manifest, self.file):
            if path.exists():
                about_to(f"delete {path.name}")
                path.unlink(missing_ok=True)
                found = True
        return found

    def verify(self, read: Callable[[Path, int, dict[str, Any]], Opened]) -> None:
        """Compare the whole file with its SHA-256.

        Raises:
            FileNotFoundError: If there is no cache.
            DataError: If it differs.
        """
        self.load(read)
        if _sha256(self.file) != self.facts().get("sha256"):
            raise DataError("SHA-256 differs")

    def _sweep(self) -> None:
        for left in self.file.parent.glob(f".tmp.*.{self.file.stem}.*"):
            left.unlink()  # of a process that was killed right here


def write_index(index: Any, file: BinaryIO, name: str) -> None:
    """Write FAISS's own format to an open file; ``name`` is what the steps are called."""

    # Through a callback, as FAISS takes no file name outside UTF-8.
    def write(data: bytes) -> int:
        about_to(f"write into {name}")
        return file.write(data)

    faiss.write_index(index, faiss.PyCallbackIOWriter(write, _BLOCK_BYTES))


def read_index(path: Path, num_bytes: int, *, mapped: bool = True) -> Any:
    """Whatever index a file holds, memory-mapped where that is possible and asked for.

    Raises:
        DataError: If FAISS cannot read it.
    """
    # Nothing in the file may ask for more than the file can hold.
    faiss.set_deserialization_vector_byte_limit(2 * num_bytes)
    try:
        try:
            os.fspath(path).encode("utf-8")
            return faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
        except UnicodeError:  # FAISS maps only names in UTF-8; read the others
            with path.open("rb") as file:
                return faiss.read_index(faiss.PyCallbackIOReader(file.read, _BLOCK_BYTES))
    except RuntimeError as error:  # a C++ exception; its text is a stack of source lines
        raise DataError("FAISS cannot read it") from error


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
