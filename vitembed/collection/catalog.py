"""The truth of a collection: one SQLite file with every file seen, its state, and its vector.

A row's id stands for its vector: a changed image gets a new row with a new id, and ids are never given twice. So
whoever holds vectors by id (the FAISS cache) only has to ask which ids are alive.

Everything that is read is checked (``store/checksums.py``): what comes out is what was put in, or a ``DamagedError``.
"""
# ruff: noqa: PTH100, PTH117, PTH118
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitembed.collection.store.checksums import (
    ROW_COLUMNS,
    Totals,
    gone_checksum,
    meta_checksum,
    row_checksum,
    seal_meta,
    vector_checksum,
)
from vitembed.collection.store.connect import AbsentError, DamagedError, connect, damaged, explained
from vitembed.collection.store.opening import create_file, open_file
from vitembed.collection.store.rows import Paths, Row
from vitembed.errors import CollectionError, printable
from vitembed.faults import about_to

__all__ = ["CATALOG_FILE", "VECTOR_TYPES", "AbsentError", "Catalog", "DamagedError", "Row", "UnknownIdError"]

CATALOG_FILE = "catalog.sqlite"
VECTOR_TYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
"""How vectors may be stored."""


class UnknownIdError(DamagedError, LookupError):
    """An id that the catalogue should have: it is damaged, or who asked has ids from elsewhere."""


_ROW = f"SELECT {ROW_COLUMNS}, checksum FROM files"


class Catalog:
    """One connection to the file. Every access is inside ``read()`` (one snapshot) or ``write()`` (all or nothing).

    Threads may share it; they take turns.
    """

    def __init__(self, connection: sqlite3.Connection, file: Path) -> None:
        self._db = connection
        self._file = file
        self._turn = threading.RLock()
        self._totals = Totals()
        with self.read():
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
        try:
            if meta["checksum"] != meta_checksum(meta):
                raise ValueError("the checksum of its facts differs")
            self.collection_id, self.fingerprint = str(meta["collection_id"]), str(meta["fingerprint"])
            self.dim: int = int(meta["dim"])
            self.meta: dict[str, Any] = json.loads(meta["meta"])
            self.vector_type = str(meta["vector_type"])
            self._dtype = VECTOR_TYPES[self.vector_type]
            # Kept relative to the catalogue, so that a folder moved with its workspace is still the same collection.
            self.root: str = os.path.normpath(os.path.join(_absolute(file.parent), os.fsdecode(meta["root"])))
        except (KeyError, ValueError, TypeError) as error:
            raise damaged(file, error) from error
        self._paths = Paths(self.root)
        self.labels: dict[bytes, bytes] | None = None
        """Label by path or external id, for filters; none: an image's label is the folder that it is in."""

    @classmethod
    def create(
        cls,
        file: Path,
        *,
        root: str,
        fingerprint: str,
        dim: int,
        meta: dict[str, Any],
        vector_type: str = "float16",
    ) -> Catalog:
        """Make an empty catalogue; one that is there already is emptied in the same transaction.

        Raises:
            CollectionError: If the file is something else, or cannot be written.
        """
        facts = {
            "collection_id": uuid.uuid4().hex,
            "fingerprint": fingerprint,
            "dim": dim,
            "meta": json.dumps(meta),
            "vector_type": vector_type,
            "root": os.fsencode(_relative_root(root, file.parent)),
            "generation": 0,
            "state": secrets.token_hex(8),
            "created_at": time.time(),
        }
        return cls._on(create_file(file, facts), file)

    @classmethod
    def open(cls, file: Path) -> Catalog:
        """Open a catalogue, also on a medium that cannot be written; one of an older format is migrated.

        Raises:
            CollectionError: If it is absent, damaged, something else, of a newer format, or of an older one that cannot
                be migrated because it cannot be written.
        """
        return cls._on(open_file(file), file)

    @classmethod
    def _on(cls, connection: sqlite3.Connection, file: Path) -> Catalog:
        try:
            return cls(connection, file)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the connection. Nothing is lost: everything that counts is committed."""
        self._db.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """One snapshot: what other processes commit meanwhile is not seen inside the block."""
        with self._turn, explained(self._file):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """One transaction, which is a new generation. An exception inside leaves everything as it was."""
        with self._turn, explained(self._file):
            about_to("begin a transaction")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._totals = self._read_totals()
                yield
                self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
                self._db.execute("UPDATE meta SET value = ? WHERE key = 'state'", (secrets.token_hex(8),))
                self._totals.write(self._db)
                seal_meta(self._db)
                about_to("commit")
                self._db.execute("COMMIT")
                about_to("go on after a commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # Reading; inside read() or write().

    def generation(self) -> int:
        """How many transactions there have been; rises with every change."""
        return int(self._db.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()[0])

    def state(self) -> str:
        """Another text after every change. Unlike the generation it never comes twice.

        A power cut may take the last transactions with it, and then the next one gets the same number again.
        """
        return str(self._db.execute("SELECT value FROM meta WHERE key = 'state'").fetchone()[0])

    def check_same(self) -> None:
        """Make sure that this is still the collection that was opened.

        Raises:
            CollectionError: If another process has rebuilt it since.
        """
        found = self._db.execute("SELECT value FROM meta WHERE key = 'collection_id'").fetchone()
        if found is None or found[0] != self.collection_id:
            raise CollectionError(f"{printable(self._file.parent)} has been rebuilt meanwhile: open it again")

    def rows(self) -> Iterator[Row]:
        """All rows, in no order that counts. Whether they are all there is checked at the end."""
        num_rows = row_sum = num_vectors = id_sum = 0
        for found in self._db.execute(f"{_ROW} NOT INDEXED"):
            row = self._row(found)
            num_rows, row_sum = num_rows + 1, row_sum + found[-1]
            if row.status == "ok":
                num_vectors, id_sum = num_vectors + 1, id_sum + row.id
            yield row
        seen = Totals(num_rows, row_sum, num_vectors, id_sum)
        # The index over paths leads writers to the row that they replace: it must know the same rows.
        by_path = self._db.execute("SELECT count(*), total(id) FROM files INDEXED BY sqlite_autoindex_files_1")
        if seen != self._read_totals() or by_path.fetchone()[0] != seen.num_rows:
            raise damaged(self._file, f"not the {self._read_totals().num_rows} rows that were written")

    def find(self, path: str) -> Row | None:
        """The row of a file (absolute path) or of an external name (any other text)."""
        external = not os.path.isabs(path)
        found = self._db.execute(
            f"{_ROW} WHERE path = ? AND external = ?", (self._paths.encode(path, external), external)
        )
        one = found.fetchone()
        if one is None:
            return None
        row = self._row(one)
        if (row.path, row.external) != (path, external):
            raise damaged(self._file, "the index of paths leads to another file")
        return row

    def num_vectors(self) -> int:
        """Number of rows that have a vector."""
        return self._read_totals().num_vectors

    def vector_ids(self) -> np.ndarray:
        """Ids of the rows that have a vector, int64 ``[n]``, rising."""
        found = self._db.execute("SELECT id FROM files INDEXED BY files_ok WHERE status = 'ok' ORDER BY id")
        ids = np.fromiter(itertools.chain.from_iterable(found), dtype=np.int64)
        self._check_ids(len(ids), int(ids.sum()))
        return ids

    def paths(self, ids: Iterable[int]) -> dict[int, str]:
        """The path of each id."""
        wanted = [int(row) for row in ids]
        paths = {found[0]: self._row(found).path for found in self._by_id(_ROW, wanted)}
        self._check_found(paths, wanted)
        return paths

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Stored vectors ``[len(ids), d]``, in the order of ``ids`` and the type of the collection."""
        rows = self._by_id("SELECT id, vector, checksum FROM vectors", ids)
        blobs = {row[0]: self._checked_vector(row) for row in rows}
        self._check_found(blobs, ids)
        return self._matrix([blobs[row] for row in ids])

    def all_vectors(self, rows_per_chunk: int = 10_000) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chunks of ids int64 ``[m]`` and stored vectors ``[m, d]``, by rising id."""
        found = self._db.execute("SELECT id, vector, checksum FROM vectors ORDER BY id")
        num_vectors = id_sum = 0
        while chunk := found.fetchmany(rows_per_chunk):
            vectors = self._matrix([self._checked_vector(row) for row in chunk])
            ids = np.array([row[0] for row in chunk], dtype=np.int64)
            num_vectors, id_sum = num_vectors + len(ids), id_sum + int(ids.sum())
            yield ids, vectors
        self._check_ids(num_vectors, id_sum)

    def select(
        self, columns: str, condition: str = "", parameters: Sequence[int | bytes] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """Columns of the rows that have a vector and meet a condition, by rising id.

        Both are SQL of the program itself; what a user typed belongs into ``parameters``.
        """
        also = f" AND {condition}" if condition else ""
        # Times are stored within 64 bits too (``images.source.stat_facts``), so comparisons hold at the ends.
        parameters = [min(max(p, -(2**63)), 2**63 - 1) if isinstance(p, int) else p for p in parameters]
        yield from self._db.execute(f"SELECT {columns} FROM files WHERE status = 'ok'{also} ORDER BY id", parameters)

    def define(self, name: str, function: Callable[[bytes], bytes | None]) -> None:
        """Let the SQL of ``select`` call a function of one stored path."""
        self._db.create_function(name, 1, function, deterministic=True)

    def content_hashes(self, ids: Sequence[int]) -> dict[int, bytes | None]:
        """The hash of each id's file; None where it is not known."""
        return dict(self._by_id("SELECT id, content_hash FROM files", ids))

    def decode_path(self, path: bytes, external: bool) -> str:
        """The path that a stored one stands for."""
        return self._paths.decode(path, external)

    def roots(self) -> dict[str, bool]:
        """Folders that were indexed and mount points below them, and which of them are mount points."""
        if not self._has_roots():
            return {}
        found = self._db.execute("SELECT path, is_mount FROM roots")
        return {self._paths.decode(path, False): bool(is_mount) for path, is_mount in found}

    def gone_sizes(self) -> set[int]:
        """Sizes of the files that are gone and whose vectors are kept."""
        return {size for (size,) in self._db.execute("SELECT DISTINCT size FROM gone")}

    def gone_vector(self, content_hash: bytes) -> tuple[np.ndarray, tuple[int, int] | None] | None:
        """The vector of a file that is gone, in the type of the collection, and the image's width and height."""
        found = self._db.execute(
            "SELECT content_hash, size, width, height, vector, checksum FROM gone WHERE content_hash = ?",
            (content_hash,),
        ).fetchone()
        # One that is damaged is as good as none: the image is embedded again.
        if found is None or gone_checksum(*found[:-1]) != found[-1]:
            return None
        _, _, width, height, blob, _ = found
        if len(blob) != self.dim * self._dtype.itemsize:
            return None
        return self._matrix([blob])[0], None if width is None or height is None else (width, height)

    def num_gone(self) -> int:
        """How many vectors of files that are gone are kept."""
        return int(self._db.execute("SELECT count(*) FROM gone").fetchone()[0]) if self._has_roots() else 0

    def _has_roots(self) -> bool:
        # A file of format 2 that cannot be written is read as it is.
        return self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'roots'").fetchone() is not None

    # Writing; inside write().

    def set_roots(self, roots: Mapping[str, bool], dropped: Iterable[str] = ()) -> None:
        """Remember folders as indexed, with whether they are mount points; forget others."""
        about_to("write the roots")
        self._db.executemany(
            "DELETE FROM roots WHERE path = ?", [(self._paths.encode(path, False),) for path in dropped]
        )
        rows = [(self._paths.encode(path, False), int(is_mount)) for path, is_mount in roots.items()]
        self._db.executemany("INSERT OR REPLACE INTO roots VALUES (?, ?)", rows)

    def insert(
        self,
        path: str,
        *,
        external: bool = False,
        size: int = -1,
        mtime_ns: int = -1,
        content_hash: bytes | None = None,
        image_size: tuple[int, int] | None = None,
        status: str = "ok",
        reason: str | None = None,
        vector: np.ndarray | None = None,
    ) -> None:
        """Add a row in place of the one with this path, if any.

        Args:
            path: Absolute, or an external name.
            external: Whether it is one.
            size: Of the file, in bytes.
            mtime_ns: Of the file.
            content_hash: Of the file.
            image_size: Width and height in pixels.
            status: ``ok``, ``bad`` or ``other``.
            reason: Why bad.
            vector: Unit ``[d]``; stored in the type of the collection. Goes with ``ok``.
        """
        key = self._paths.encode(path, external)
        old = self._db.execute("SELECT id FROM files WHERE path = ? AND external = ?", (key, external)).fetchone()
        if old is not None:
            self.delete([old[0]])
        about_to("write a row")
        last = self._db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'files'").fetchone()[0]
        width, height = image_size or (None, None)
        row = ((last or 0) + 1, key, int(external), size, mtime_ns, content_hash, width, height, status, reason)
        self._put(row, time.time())
        if vector is not None:
            blob = np.ascontiguousarray(vector, dtype=self._dtype).tobytes()
            about_to("write a vector")
            self._db.execute("INSERT INTO vectors VALUES (?, ?, ?)", (row[0], blob, vector_checksum(row[0], blob)))

    def delete(self, ids: Iterable[int]) -> None:
        """Remove rows with their vectors; these are kept by the content of their files until ``vacuum``."""
        for row in ids:
            about_to("delete a row")
            found = self._db.execute(
                "SELECT checksum, status, content_hash, size, width, height FROM files WHERE id = ?", (row,)
            ).fetchone()
            if found is not None:
                self._totals.count(row, found[0], found[1] == "ok", -1)
                if found[1] == "ok" and found[2] is not None:
                    self._keep_vector(row, *found[2:])
                self._db.execute("DELETE FROM vectors WHERE id = ?", (row,))
                self._db.execute("DELETE FROM files WHERE id = ?", (row,))

    def _keep_vector(self, row: int, content_hash: bytes, size: int, width: int | None, height: int | None) -> None:
        stored = self._db.execute("SELECT id, vector, checksum FROM vectors WHERE id = ?", (row,)).fetchone()
        if stored is not None and vector_checksum(*stored[:2]) == stored[2]:
            about_to("keep the vector of a file that is gone")
            checksum = gone_checksum(content_hash, size, width, height, stored[1])
            self._db.execute(
                "INSERT OR REPLACE INTO gone VALUES (?, ?, ?, ?, ?, ?)",
                (content_hash, size, width, height, stored[1], checksum),
            )

    def relocate(self, row: int, path: str, size: int, mtime_ns: int) -> None:
        """Give a row another path and stat; its vector and id stay. A row that has that path already goes."""
        key = self._paths.encode(path, False)
        old = self._db.execute("SELECT id FROM files WHERE path = ? AND external = 0", (key,)).fetchone()
        if old is not None and old[0] != row:
            self.delete([old[0]])
        about_to("move a row")
        found = self._db.execute(f"SELECT {ROW_COLUMNS}, checksum, added_at FROM files WHERE id = ?", (row,)).fetchone()
        self._row(found[:-1])
        self._totals.count(row, found[-2], found[8] == "ok", -1)
        self._db.execute("DELETE FROM files WHERE id = ?", (row,))
        self._put((row, key, 0, size, mtime_ns, *found[5:10]), found[-1])

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file, as far as readers allow."""
        with self._turn, explained(self._file):
            about_to("fold the log into the file")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def written_ns(self) -> int:
        """When the file itself was last written, which may be before the last commit; 0: not known."""
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0

    def vacuum(self) -> None:
        """Let go of the vectors of files that are gone, and give the space of what was deleted back to the disk."""
        with self.write():
            self._db.execute("DELETE FROM gone")
        with self._turn, explained(self._file):
            about_to("vacuum")
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def copy_over(self, file: Path) -> None:
        """Replace everything in the catalogue in ``file`` by what is in this one, in one transaction.

        Raises:
            CollectionError: If it cannot be written, or has no room.
        """
        with self._turn, explained(file):
            target = connect(file, "rwc")
            try:
                about_to("replace the catalogue")
                self._db.backup(target)
            finally:
                target.close()

    def check(self) -> None:
        """Read everything: by SQLite's own check, and every row and vector by its checksum.

        Raises:
            CollectionError: If it finds damage.
        """
        with self.read():
            found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise damaged(self._file, found)
            alive = [row.id for row in self.rows() if row.status == "ok"]
            held = [row for ids, _ in self.all_vectors() for row in ids.tolist()]
        if sorted(alive) != held:
            raise damaged(self._file, "rows and vectors do not belong together")

    def _put(self, row: tuple[Any, ...], added_at: float) -> None:
        checksum = row_checksum(row)
        self._db.execute(
            f"INSERT INTO files ({ROW_COLUMNS}, added_at, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, added_at, checksum),
        )
        self._totals.count(row[0], checksum, row[8] == "ok")

    def _by_id(self, select: str, ids: Sequence[int]) -> list[tuple[Any, ...]]:
        wanted, found = [int(row) for row in ids], list[tuple[Any, ...]]()
        for start in range(0, len(wanted), 500):  # SQLite's limit on variables was 999 for long
            part = wanted[start : start + 500]
            found += self._db.execute(f"{select} WHERE id IN ({','.join('?' * len(part))})", part)
        return found

    def _read_totals(self) -> Totals:
        try:
            return Totals.read(self._db)
        except ValueError as error:
            raise damaged(self._file, error) from error

    def _check_ids(self, num_vectors: int, id_sum: int) -> None:
        totals = self._read_totals()
        if (totals.num_vectors, totals.id_sum) != (num_vectors, id_sum):
            raise damaged(self._file, f"not the {totals.num_vectors} vectors that were written")

    def _check_found(self, found: dict[int, Any], ids: Sequence[int]) -> None:
        missing = set(map(int, ids)).difference(found)
        if missing:
            raise UnknownIdError(str(damaged(self._file, f"row {min(missing)} is missing")))

    def _checked_vector(self, row: tuple[Any, ...]) -> bytes:
        row_id, vector, checksum = row
        if vector_checksum(row_id, vector) != checksum:
            raise damaged(self._file, f"the checksum of vector {row_id} differs")
        assert isinstance(vector, bytes)
        return vector

    def _matrix(self, blobs: Sequence[bytes]) -> np.ndarray:
        if any(len(blob) != self.dim * self._dtype.itemsize for blob in blobs):
            raise damaged(self._file, "a vector of another width")
        return np.frombuffer(b"".join(blobs), dtype=self._dtype).reshape(len(blobs), self.dim)

    def _row(self, found: tuple[Any, ...]) -> Row:
        """A row with ``ROW_COLUMNS`` and checksum, checked."""
        if row_checksum(found[:-1]) != found[-1]:
            raise damaged(self._file, f"the checksum of row {printable(str(found[0]))} differs")
        row, path, external, *rest = found[:-1]
        return Row(row, self._paths.decode(path, bool(external)), bool(external), *rest)


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _relative_root(root: str, directory: Path) -> str:
    try:
        return os.path.relpath(root, directory)
    except ValueError:  # another drive on Windows
        return os.path.abspath(root)
