"""CSV as bytes in which every path comes back as it was, whatever bytes and line ends it holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from vitembed.errors import DataError, printable

_QUOTED = frozenset(',;"\r\n')


def csv_bytes(rows: Iterable[Sequence[str]]) -> bytes:
    """Lines of CSV; undecodable bytes of a path are those that the file system has."""
    # Not csv.writer: up to Python 3.12 it leaves a lone carriage return unquoted.
    text = "".join(",".join(map(_cell, row)) + "\n" for row in rows)
    return text.encode("utf-8", "surrogateescape")


def _cell(text: str) -> str:
    if _QUOTED.isdisjoint(text) and text == text.strip():
        return text
    doubled = text.replace('"', '""')
    return f'"{doubled}"'


def read_csv(path: Path, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns (lower case) of a CSV file, and its rows with the number of the line where each ends.

    Semicolons between the columns, as some spreadsheets write them, are taken too. Blank lines are passed over.

    Raises:
        DataError: If it cannot be read, is no CSV, lacks one of the ``needed`` columns, or a line has another number
            of fields than the first.
    """
    name = printable(path)
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise DataError(f"{name}: cannot read: {error.strerror or error}") from error
    first = text.split("\n", 1)[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    found: list[tuple[int, dict[str, str]]] = []
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        if not set(needed) <= set(header):
            raise DataError(f"{name}: the first line must name the columns {','.join(needed)}")
        for row in reader:
            if not "".join(row).strip():
                continue
            if len(row) != len(header):
                raise DataError(
                    f"{name}, line {reader.line_num}: {len(row)} fields, the header has {len(header)} "
                    "(quote text with commas)"
                )
            found.append((reader.line_num, dict(zip(header, row, strict=True))))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: {error}") from error
    return header, found
