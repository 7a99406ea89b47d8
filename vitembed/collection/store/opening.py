"""Making and opening the file of a catalogue: what is ours, which format it has, what to do about older ones."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitembed.collection.store.checksums import Totals, seal_meta
from vitembed.collection.store.connect import AbsentError, choose_journal, connect, damaged, explained
from vitembed.collection.store.migrate import migrate
from vitembed.collection.store.schema import (
    FORMAT_VERSION,
    READABLE_VERSION,
    create_tables,
    has_our_tables,
    is_foreign,
    set_version,
)
from vitembed.errors import CollectionError, printable
from vitembed.faults import about_to


def create_file(file: Path, facts: Mapping[str, Any]) -> sqlite3.Connection:
    """Make a file with empty tables; one of ours that is there is emptied in the same transaction.

    Args:
        file: Where.
        facts: The contents of ``meta``.

    Raises:
        CollectionError: If the file is something else, or cannot be written.
    """
    about_to("make the catalogue")
    connection = connect(file, "rwc")
    try:
        with explained(file):
            if is_foreign(connection):
                raise CollectionError(f"{printable(file)} is no vitembed collection: name another folder")
            choose_journal(connection, file)
            _fill(connection, facts)
        return connection
    except BaseException:
        connection.close()  # and with it a transaction that holds the file
        raise


def open_file(file: Path) -> sqlite3.Connection:
    """Open a file of ours, also on a medium that cannot be written; one of an older format is migrated.

    Raises:
        CollectionError: If it is absent (``AbsentError``), damaged (``DamagedError``), something else, of a newer
            format, or of an older one that cannot be migrated because it cannot be written.
    """
    if not file.is_file():
        raise _absent(file)
    writable = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    connection = connect(file, "rw" if writable else "ro")
    try:
        with explained(file):
            if not has_our_tables(connection, _check_format(connection, file, writable)):
                raise damaged(file, "its tables are not the ones that vitembed makes")
            if writable:
                choose_journal(connection, file)
        return connection
    except BaseException:
        connection.close()
        raise


def _fill(connection: sqlite3.Connection, facts: Mapping[str, Any]) -> None:
    """Empty tables and these facts, in place of whatever there was, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    for kind, name in connection.execute("SELECT type, name FROM sqlite_master").fetchall():
        if kind == "table" and not name.startswith("sqlite_"):
            connection.execute(f'DROP TABLE "{name}"')
    about_to("write the tables")
    create_tables(connection)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
    Totals().write(connection)
    seal_meta(connection)
    set_version(connection)
    about_to("commit the empty catalogue")
    connection.execute("COMMIT")


def _check_format(connection: sqlite3.Connection, file: Path, writable: bool) -> int:
    """The format that the file has now, after a migration where one was needed."""
    if is_foreign(connection):
        raise CollectionError(f"{printable(file)} is no vitembed collection")
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise _absent(file)  # a kill between making the file and filling it
    if version > FORMAT_VERSION:
        raise CollectionError(
            f"{printable(file)} has format {version}, this vitembed reads up to {FORMAT_VERSION}: upgrade vitembed"
        )
    if version < 1:
        raise damaged(file, "no format version")
    if version < FORMAT_VERSION:
        if not writable and version >= READABLE_VERSION:
            return version
        if not writable:
            raise CollectionError(
                f"{printable(file)} has format {version} of an older vitembed and cannot be written here: "
                "open it once where it can, or copy its folder"
            )
        try:
            migrate(connection)
        except (ValueError, TypeError, sqlite3.IntegrityError) as error:
            raise damaged(file, error) from error
    return FORMAT_VERSION


def _absent(file: Path) -> AbsentError:
    return AbsentError(f"no collection in {printable(file.parent)}: run vitembed index to make one")
