"""A connection to a catalogue's file, with everything that makes it safe; SQLite's errors as one line each."""
# ruff: noqa: PTH100
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from vitembed.collection.store.filesystem import is_network
from vitembed.errors import CollectionError, printable

BUSY_SECONDS = 10

log = logging.getLogger("vitembed")


class DamagedError(CollectionError):
    """A file that is no longer what SQLite wrote."""


class AbsentError(CollectionError):
    """There is no collection, or one whose making was cut short before there was anything in it."""


def connect(file: Path, mode: str) -> sqlite3.Connection:
    """Open the file.

    Args:
        file: Of any name.
        mode: ``rwc`` (made if absent), ``rw`` or ``ro``.

    Raises:
        DamagedError: If it is no SQLite file.
        CollectionError: If it cannot be opened.
    """
    # As a percent-encoded URI, so that any name works. Immutable is for media on which not even the WAL's shared
    # memory can be made; there nobody else can write either.
    quoted = urllib.parse.quote(os.fsencode(os.path.abspath(file)))
    failure: Exception | None = None
    for options in (f"mode={mode}", "mode=ro&immutable=1") if mode == "ro" else (f"mode={mode}",):
        with explained(file):
            connection = sqlite3.connect(
                f"file:{quoted}?{options}", uri=True, isolation_level=None, check_same_thread=False
            )
        try:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
            # Each commit reaches the disk: there is one per 1,000 images or 30 seconds, so this costs nothing.
            connection.execute("PRAGMA synchronous = FULL")
            # A file from elsewhere runs nothing, and a damaged page is found rather than followed.
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if "immutable" in options and _size_of(file.with_name(f"{file.name}-wal")):
                log.warning(
                    "%s: its last changes are in a log that cannot be read on a medium without write access, so they "
                    "are not seen: open it once where it can be written",
                    printable(file),
                )
            return connection
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            connection.close()
            failure = error
    with explained(file):
        assert failure is not None
        raise failure


def _size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def choose_journal(connection: sqlite3.Connection, file: Path) -> str:
    """Switch to the journal that suits the file's place, and give its name.

    ``wal`` lets readers go on while a writer commits, but needs memory that all of them share: on network file systems
    it is ``delete``, with which they take turns.
    """
    wanted = "delete" if is_network(file.parent) else "wal"
    current = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
    if current != wanted:
        # Somebody may be reading just now: then the old one stays for this time.
        with contextlib.suppress(sqlite3.OperationalError):
            current = str(connection.execute(f"PRAGMA journal_mode = {wanted}").fetchone()[0])
    return current


@contextlib.contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turn what SQLite raises in the block into a ``CollectionError`` that names the file.

    Raises:
        DamagedError: If the file is damaged.
        CollectionError: For everything else that is not our bug.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise  # our bug
    except sqlite3.OperationalError as error:
        if "Could not decode" in str(error):  # text that is no UTF-8 any more
            raise damaged(file, "text that is none") from error
        raise CollectionError(f"{printable(file)}: {_plain(error)}") from error
    except UnicodeDecodeError as error:  # a message that quotes a damaged schema
        raise damaged(file, "its schema is no text") from error
    except sqlite3.DatabaseError as error:
        raise damaged(file, error) from error


def damaged(file: Path, detail: object) -> DamagedError:
    """The error for a file that is not what was written."""
    return DamagedError(f"{printable(file)} is damaged ({_plain(detail)}): run vitembed index --rebuild")


def _plain(detail: object) -> str:
    """One line, whatever bytes of a damaged file SQLite has put into it."""
    return printable("; ".join(str(detail).splitlines()))
