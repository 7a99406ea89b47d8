"""Checksums of what lies in the catalogue, as SQLite has none: it reads a page with flipped bits without complaint.

Each row and each vector carries a CRC-32 over its columns and its id, so that neither can change, nor be taken for
another's. What may be missing altogether shows in ``Totals``: how many there are, and the sums of ids and checksums.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ROW_COLUMNS = "id, path, external, size, mtime_ns, content_hash, width, height, status, reason"
"""The columns that a row's checksum is over, in the order in which it takes them."""
_FIXED = struct.Struct("<9q")


def row_checksum(row: Sequence[Any]) -> int:
    """Of the values of ``ROW_COLUMNS``; -1, which is nobody's, where damage has given one of them another type."""
    row_id, path, external, size, mtime_ns, content_hash, width, height, status, reason = row
    # What may be absent is told from every value that it could have. This runs for every row of an update.
    try:
        fixed = _FIXED.pack(
            row_id,
            external,
            size,
            mtime_ns,
            -1 if width is None else width,
            -1 if height is None else height,
            len(path),
            -1 if content_hash is None else len(content_hash),
            -1 if reason is None else len(reason),
        )
        return zlib.crc32(b"".join((fixed, path, content_hash or b"", status.encode(), (reason or "").encode())))
    except (TypeError, AttributeError, struct.error, UnicodeEncodeError):
        return -1


def vector_checksum(row: int, vector: bytes) -> int:
    """Of a stored vector and the id that it belongs to."""
    try:
        return zlib.crc32(vector, zlib.crc32(row.to_bytes(8, "little", signed=True)))
    except (TypeError, AttributeError, OverflowError):  # damage has turned it into another type
        return -1


def gone_checksum(content_hash: bytes, size: int, width: int | None, height: int | None, vector: bytes) -> int:
    """Of a kept vector and the content that it belongs to."""
    try:
        return zlib.crc32(vector, zlib.crc32(repr((content_hash, size, width, height)).encode()))
    except (TypeError, AttributeError):
        return -1


def meta_checksum(values: Mapping[str, Any]) -> int:
    """Of all facts in ``meta`` but the checksum itself."""
    kept = sorted((key, value) for key, value in values.items() if key != "checksum")
    return zlib.crc32(repr(kept).encode("utf-8", "backslashreplace"))


def seal_meta(connection: sqlite3.Connection) -> None:
    """Bring the checksum of ``meta`` up to date; the last step of a transaction."""
    values = dict(connection.execute("SELECT key, value FROM meta"))
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('checksum', ?)", (meta_checksum(values),))


@dataclass
class Totals:
    """What all rows add up to; kept in ``meta`` and changed with every row."""

    num_rows: int = 0
    row_sum: int = 0
    """Of the rows' checksums."""
    num_vectors: int = 0
    id_sum: int = 0
    """Of the ids that have a vector."""

    def count(self, row: int, checksum: int, has_vector: bool, times: int = 1) -> None:
        """Take in a row; with ``times=-1`` take it out."""
        self.num_rows += times
        self.row_sum += times * checksum
        self.num_vectors += times * has_vector
        self.id_sum += times * has_vector * row

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> Totals:
        """From ``meta``.

        Raises:
            ValueError: If they are not there, or are no numbers.
        """
        found = connection.execute("SELECT value FROM meta WHERE key = 'totals'").fetchone()
        if found is None:
            raise ValueError("no totals")
        values = json.loads(found[0])
        if not isinstance(values, dict) or not all(isinstance(value, int) for value in values.values()):
            raise ValueError("totals are no numbers")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from error

    def write(self, connection: sqlite3.Connection) -> None:
        """Into ``meta``."""
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('totals', ?)", (json.dumps(asdict(self)),))
