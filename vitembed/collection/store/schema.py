"""The tables of a catalogue, as this version writes them."""

from __future__ import annotations

import re
import sqlite3

APPLICATION_ID = 0x76454D42  # "vEMB", which tells our files from other SQLite files
FORMAT_VERSION = 3
"""3: the folders that were indexed, and vectors of files that are gone. 2: checksums of rows, vectors and facts, and
the type of the vectors. Older ones are migrated (``migrate.py``)."""
READABLE_VERSION = 2
"""From this format on a file can be searched as it is, where it cannot be written."""

_STATEMENTS_2 = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID",
    """CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice
    path BLOB NOT NULL,                    -- as the file system has it; relative to the root when below it
    external INTEGER NOT NULL,             -- 1: not a file but a name that came with a vector from elsewhere (UTF-8)
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,             -- -1: look again at the next update
    content_hash BLOB,                     -- BLAKE2b; NULL when the file changed while it was read
    width INTEGER,                         -- of the upright image in the file, pixels; NULL when not known
    height INTEGER,
    status TEXT NOT NULL CHECK (status IN ('ok', 'bad', 'other')),  -- other: neither is nor claims to be an image
    reason TEXT,                           -- why bad
    added_at REAL NOT NULL,
    checksum INTEGER NOT NULL,             -- checksums.row_checksum of the columns above
    UNIQUE (path, external)
)""",
    "CREATE INDEX files_ok ON files (id) WHERE status = 'ok'",
    # Apart from files, so that comparing a folder with the catalogue does not read the vectors.
    """CREATE TABLE vectors (
    id INTEGER PRIMARY KEY,
    vector BLOB NOT NULL,     -- unit, little-endian, of meta's vector_type
    checksum INTEGER NOT NULL  -- checksums.vector_checksum
)""",
)
_STATEMENTS_3 = (
    """CREATE TABLE roots (
    path BLOB PRIMARY KEY,    -- a folder that was named to be indexed, or a mount point below one; stored as in files
    is_mount INTEGER NOT NULL  -- 1: another file system began there
) WITHOUT ROWID""",
    # Not found by any search: only an update looks here, for files that come back, perhaps under another name.
    """CREATE TABLE gone (
    content_hash BLOB PRIMARY KEY,
    size INTEGER NOT NULL,     -- of the file
    width INTEGER,
    height INTEGER,
    vector BLOB NOT NULL,
    checksum INTEGER NOT NULL  -- checksums.gone_checksum
) WITHOUT ROWID""",
    "CREATE INDEX gone_size ON gone (size)",
)


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the empty tables; inside a transaction."""
    for statement in _STATEMENTS_2:
        connection.execute(statement)
    add_tables_of_3(connection)


def add_tables_of_3(connection: sqlite3.Connection) -> None:
    """Make the empty tables that format 2 did not have; inside a transaction."""
    for statement in _STATEMENTS_3:
        connection.execute(statement)


def set_version(connection: sqlite3.Connection) -> None:
    """Mark the file as ours and of this format; inside a transaction."""
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def is_foreign(connection: sqlite3.Connection) -> bool:
    """Whether the file is some other program's."""
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return bool(tables) and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID


def has_our_tables(connection: sqlite3.Connection, version: int = FORMAT_VERSION) -> bool:
    """Whether the tables are exactly those of a format: no column missing, no trigger slipped in."""
    found = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    expected = (*_STATEMENTS_2, *(_STATEMENTS_3 if version >= 3 else ()))
    return sorted(_plain(row[0]) for row in found) == sorted(map(_plain, expected))


def _plain(statement: object) -> str:
    return re.sub(r"\s+", " ", str(statement))
