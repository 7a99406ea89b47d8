"""The truth of a collection: one SQLite file with every file seen, its state, and its vector.

A row's id stands for its vector: a changed image gets a new row with a new id, and ids are never given twice. So
whoever holds vectors by id (the FAISS cache) only has to ask which ids are alive.
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
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitembed.errors import CollectionError, printable

CATALOG_FILE = "catalog.sqlite"
APPLICATION_ID = 0x76454D42  # "vEMB", which tells our files from other SQLite files
FORMAT_VERSION = 1
VECTOR_TYPE = np.dtype("<f2")

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice
    path BLOB NOT NULL,                    -- as the file system has it; relative to the root when below it
    external INTEGER NOT NULL,             -- 1: not a file but a name that came with a vector from elsewhere (UTF-8)
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,             -- -1: look again at the next update
    content_hash BLOB,                     -- BLAKE2b; NULL when the file changed while it was read
    width INTEGER,
    height INTEGER,
    status TEXT NOT NULL CHECK (status IN ('ok', 'bad', 'other')),  -- other: neither is nor claims to be an image
    reason TEXT,                           -- why bad
    added_at REAL NOT NULL,
    UNIQUE (path, external)
);
CREATE INDEX files_ok ON files (id) WHERE status = 'ok';
-- Apart from files, so that comparing a folder with the catalogue does not read the vectors.
CREATE TABLE vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL);
"""


class DamagedError(CollectionError):
    """A file that is no longer what SQLite wrote."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the catalogue knows of one file."""

    id: int
    path: str
    """Absolute as ``os.fsdecode`` gives it, or the bare name when external."""
    external: bool
    size: int
    mtime_ns: int
    content_hash: bytes | None
    status: str
    """``ok``, ``bad`` or ``other``."""
    reason: str | None


_ROW = "SELECT id, path, external, size, mtime_ns, content_hash, status, reason FROM files"


class Catalog:
    """One connection to the file. Every access is inside ``read()`` (one snapshot) or ``write()`` (all or nothing).

    Threads may share it; they take turns.
    """

    def __init__(self, connection: sqlite3.Connection, file: Path) -> None:
        self._db = connection
        self._file = file
        self._turn = threading.RLock()
        with self.read():
            meta = dict(self._db.execute("SELECT key, value FROM meta"))
        try:
            self.collection_id, self.fingerprint = str(meta["collection_id"]), str(meta["fingerprint"])
            self.dim: int = int(meta["dim"])
            self.meta: dict[str, Any] = json.loads(meta["meta"])
            # Kept relative to the catalogue, so that a folder moved with its workspace is still the same collection.
            self.root: str = os.path.normpath(os.path.join(_absolute(file.parent), os.fsdecode(meta["root"])))
        except (KeyError, ValueError, TypeError) as error:
            raise _damaged(file, error) from error
        self._prefix = self.root.rstrip(os.sep) + os.sep

    @classmethod
    def create(cls, file: Path, *, root: str, fingerprint: str, dim: int, meta: dict[str, Any]) -> Catalog:
        """Make an empty catalogue; one that is there already is emptied in the same transaction.

        Raises:
            CollectionError: If the file is something else, or cannot be written.
        """
        connection = _connect(file, "rwc")
        with _explained(file):
            if _is_foreign(connection):
                raise CollectionError(f"{printable(file)} is no vitembed collection: name another folder")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            for kind, name in connection.execute("SELECT type, name FROM sqlite_master").fetchall():
                if kind == "table" and not name.startswith("sqlite_"):
                    connection.execute(f'DROP TABLE "{name}"')
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            values = {
                "collection_id": uuid.uuid4().hex,
                "fingerprint": fingerprint,
                "dim": dim,
                "meta": json.dumps(meta),
                "root": os.fsencode(_relative_root(root, file.parent)),
                "generation": 0,
                "state": secrets.token_hex(8),
                "created_at": time.time(),
            }
            connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            connection.execute("COMMIT")
        return cls(connection, file)

    @classmethod
    def open(cls, file: Path) -> Catalog:
        """Open a catalogue, also on a medium that cannot be written.

        Raises:
            CollectionError: If it is absent, damaged, something else, or of a newer format.
        """
        if not file.is_file():
            raise CollectionError(f"no collection in {printable(file.parent)}: run vitembed index to make one")
        connection = _connect(file, "rw" if os.access(file, os.W_OK) and os.access(file.parent, os.W_OK) else "ro")
        with _explained(file):
            if _is_foreign(connection):
                raise CollectionError(f"{printable(file)} is no vitembed collection")
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if version == 0:  # a kill between making the file and filling it
                raise CollectionError(f"no collection in {printable(file.parent)}: run vitembed index to make one")
            if version > FORMAT_VERSION:
                raise CollectionError(
                    f"{printable(file)} has format {version}, this vitembed reads up to {FORMAT_VERSION}: "
                    "upgrade vitembed"
                )
        return cls(connection, file)

    def close(self) -> None:
        """Close the connection. Nothing is lost: everything that counts is committed."""
        self._db.close()

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """One snapshot: what other processes commit meanwhile is not seen inside the block."""
        with self._turn, _explained(self._file):
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextlib.contextmanager
    def write(self) -> Iterator[None]:
        """One transaction, which is a new generation. An exception inside leaves everything as it was."""
        with self._turn, _explained(self._file):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("UPDATE meta SET value = value + 1 WHERE key = 'generation'")
                self._db.execute("UPDATE meta SET value = ? WHERE key = 'state'", (secrets.token_hex(8),))
                self._db.execute("COMMIT")
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
        """All rows, in no order that counts."""
        return map(self._row, self._db.execute(_ROW))

    def find(self, path: str) -> Row | None:
        """The row of a file (absolute path) or of an external name (any other text)."""
        external = not os.path.isabs(path)
        found = self._db.execute(f"{_ROW} WHERE path = ? AND external = ?", (self._encode(path, external), external))
        row = found.fetchone()
        return None if row is None else self._row(row)

    def num_vectors(self) -> int:
        """Number of rows that have a vector."""
        return int(self._db.execute("SELECT count(*) FROM files WHERE status = 'ok'").fetchone()[0])

    def vector_ids(self) -> np.ndarray:
        """Ids of the rows that have a vector, int64 ``[n]``, rising."""
        found = self._db.execute("SELECT id FROM files INDEXED BY files_ok WHERE status = 'ok' ORDER BY id")
        return np.fromiter(itertools.chain.from_iterable(found), dtype=np.int64)

    def paths(self, ids: Iterable[int]) -> dict[int, str]:
        """The path of each id."""
        found = self._by_id("SELECT id, path, external FROM files", ids)
        return {row[0]: self._decode(row[1], bool(row[2])) for row in found}

    def vectors(self, ids: Sequence[int]) -> np.ndarray:
        """Stored vectors, float16 ``[len(ids), d]``, in the order of ``ids``."""
        blobs = dict(self._by_id("SELECT id, vector FROM vectors", ids))
        return self._matrix([blobs[row] for row in ids])

    def all_vectors(self, rows_per_chunk: int = 10_000) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Chunks of ids int64 ``[m]`` and vectors float16 ``[m, d]``, by rising id."""
        found = self._db.execute("SELECT id, vector FROM vectors ORDER BY id")
        while chunk := found.fetchmany(rows_per_chunk):
            yield np.array([row[0] for row in chunk], dtype=np.int64), self._matrix([row[1] for row in chunk])

    # Writing; inside write().

    def insert(
        self,
        path: str,
        *,
        external: bool = False,
        size: int = -1,
        mtime_ns: int = -1,
        content_hash: bytes | None = None,
        status: str = "ok",
        reason: str | None = None,
        vector: np.ndarray | None = None,
    ) -> None:
        """Add a row in place of the one with this path, if any. ``vector``: unit ``[d]``, stored as float16."""
        key = self._encode(path, external)
        old = self._db.execute("SELECT id FROM files WHERE path = ? AND external = ?", (key, external)).fetchone()
        if old is not None:
            self.delete([old[0]])
        cursor = self._db.execute(
            "INSERT INTO files (path, external, size, mtime_ns, content_hash, status, reason, added_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, external, size, mtime_ns, content_hash, status, reason, time.time()),
        )
        if vector is not None:
            blob = np.ascontiguousarray(vector, dtype=VECTOR_TYPE).tobytes()
            self._db.execute("INSERT INTO vectors VALUES (?, ?)", (cursor.lastrowid, blob))

    def delete(self, ids: Iterable[int]) -> None:
        """Remove rows with their vectors."""
        each = [(row,) for row in ids]
        self._db.executemany("DELETE FROM vectors WHERE id = ?", each)
        self._db.executemany("DELETE FROM files WHERE id = ?", each)

    def relocate(self, row: int, path: str, size: int, mtime_ns: int) -> None:
        """Give a row another path and stat; its vector and id stay. A row that has that path already goes."""
        key = self._encode(path, False)
        old = self._db.execute("SELECT id FROM files WHERE path = ? AND external = 0", (key,)).fetchone()
        if old is not None and old[0] != row:
            self.delete([old[0]])
        self._db.execute("UPDATE files SET path = ?, size = ?, mtime_ns = ? WHERE id = ?", (key, size, mtime_ns, row))

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file, as far as readers allow."""
        with self._turn, _explained(self._file):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def check(self) -> None:
        """Let SQLite check the whole file.

        Raises:
            CollectionError: If it finds damage.
        """
        with self.read():
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise _damaged(self._file, found)

    def _by_id(self, select: str, ids: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        wanted = [int(row) for row in ids]
        for start in range(0, len(wanted), 500):  # SQLite's limit on variables was 999 for long
            part = wanted[start : start + 500]
            yield from self._db.execute(f"{select} WHERE id IN ({','.join('?' * len(part))})", part)

    def _matrix(self, blobs: Sequence[bytes]) -> np.ndarray:
        if any(len(blob) != self.dim * VECTOR_TYPE.itemsize for blob in blobs):
            raise _damaged(self._file, "a vector of another width")
        return np.frombuffer(b"".join(blobs), dtype=VECTOR_TYPE).reshape(len(blobs), self.dim)

    def _row(self, found: tuple[Any, ...]) -> Row:
        row, path, external, *rest = found
        return Row(row, self._decode(path, bool(external)), bool(external), *rest)

    def _encode(self, path: str, external: bool) -> bytes:
        if external:
            return path.encode("utf-8", "surrogatepass")
        return os.fsencode(path.removeprefix(self._prefix))

    def _decode(self, path: bytes, external: bool) -> str:
        if external:
            return path.decode("utf-8", "surrogatepass")
        text = os.fsdecode(path)
        return text if os.path.isabs(text) else self._prefix + text


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    # As a percent-encoded URI, so that any name works. Immutable is for media on which not even the WAL's shared
    # memory can be made; there nobody else can write either.
    quoted = urllib.parse.quote(os.fsencode(_absolute(file)))
    for options in (f"mode={mode}", "mode=ro&immutable=1") if mode == "ro" else (f"mode={mode}",):
        with _explained(file):
            connection = sqlite3.connect(
                f"file:{quoted}?{options}", uri=True, isolation_level=None, check_same_thread=False
            )
        try:
            connection.execute("PRAGMA busy_timeout = 10000")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return connection
        except sqlite3.DatabaseError as error:
            connection.close()
            failure = error
    raise _damaged(file, failure) from failure


def _is_foreign(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return bool(tables) and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID


@contextlib.contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # our bug
    except sqlite3.OperationalError as error:
        raise CollectionError(f"{printable(file)}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, detail: object) -> DamagedError:
    said = "; ".join(str(detail).splitlines())
    return DamagedError(f"{printable(file)} is damaged ({said}): run vitembed index --rebuild")


def _absolute(path: Path) -> str:
    return os.path.abspath(path)


def _relative_root(root: str, directory: Path) -> str:
    try:
        return os.path.relpath(root, directory)
    except ValueError:  # another drive on Windows
        return os.path.abspath(root)
