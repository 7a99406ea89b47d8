"""CSV as bytes in which every path comes back as it was, whatever bytes and line ends it holds."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from vitembed.errors import DataError, printable

PATH_NAMES = (
    "path", "image_path", "img_path", "file_path", "filepath", "filename", "file_name", "image_file", "image_name",
    "file", "image", "img",
)  # fmt: skip
"""Names under which tables keep the path of an image."""
DELIMITERS = (",", ";", "\t")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_ESCAPED = re.compile("[\udc80-\udcff]")
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


def encoding_of(head: bytes) -> str:
    """Encoding of a text file by its first bytes: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raises:
        DataError: If it is no text: UTF-16 without its mark, a spreadsheet, another binary file.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError("it is a spreadsheet or an archive, expected CSV text: save it as CSV (UTF-8)")
    head = head[:4096]
    if b"\0" in head:
        if 4 * max(head[::2].count(0), head[1::2].count(0)) > len(head):
            raise DataError("it seems to be UTF-16 without a byte order mark: save it as UTF-8")
        if _ESCAPED.search(head.decode("utf-8", "surrogateescape")):
            raise DataError("it holds binary data, expected CSV text")
    return "utf-8"


def text_of(data: bytes) -> str:
    """Text of a file; bytes that are not UTF-8 are kept (surrogate escapes), as the file system has them in paths.

    Raises:
        DataError: As ``encoding_of``; or if it is damaged UTF-16.
    """
    encoding = encoding_of(data[:4096])
    try:
        return data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise DataError(f"it begins as {encoding.upper()} and is cut short or damaged: {error.reason}") from error


def delimited(text: str, fits: Callable[[list[str]], bool]) -> tuple[str, str, int]:
    """The text without a line ``sep=;``, its delimiter (comma, semicolon or tab), and how many lines were taken off.

    It is the one by which the columns of the first line are such that they ``fit``, else the most.
    """
    first, _, rest = text.partition("\n")
    stated = re.fullmatch(r'"?sep=([,;\t])"?', first.rstrip("\r"), flags=re.IGNORECASE)
    if stated is not None:  # Excel's own first line
        return rest, stated[1], 1

    def worth(delimiter: str) -> tuple[bool, int]:
        try:
            columns = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        except csv.Error:
            return False, 0
        return fits(columns), len(columns)

    return text, max(DELIMITERS, key=worth), 0


def column_name(cell: str) -> str:
    """A column's name as it is compared: lower case, ``_`` for spaces and dashes."""
    return re.sub(r"[\s-]+", "_", cell.strip().casefold())


def read_csv(path: Path, needed: Sequence[str]) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Columns (lower case) of a CSV file, and its rows with the number of the line where each ends.

    Commas, semicolons or tabs between the columns, UTF-8 or UTF-16 with its mark, as spreadsheets write them. Blank
    lines and empty columns without a name are passed over. Without a column ``path``, one of ``PATH_NAMES`` is it.

    Raises:
        DataError: If it cannot be read, is no CSV, lacks one of the ``needed`` columns or has it twice, or a line has
            more fields than the first.
    """
    name = printable(path)
    text = read_text(path)
    body, delimiter, num_skipped = delimited(text, lambda columns: set(needed) <= set(_named(columns)))
    reader = csv.reader(io.StringIO(body, newline=""), strict=True, delimiter=delimiter)
    found: list[tuple[int, dict[str, str]]] = []
    try:
        first = next(reader, [])
        header = _named(first)
        _check_header(header, first, needed, name)
        for row in reader:
            line = reader.line_num + num_skipped
            if not "".join(row).strip():
                continue
            nameless = [cell for cell, column in zip(row, header, strict=False) if not column] + row[len(header) :]
            if "".join(nameless).strip() or set(needed) & set(header[len(row) :]):
                raise DataError(
                    f"{name}, line {line}: {len(row)} fields, the header has {len(header) - header.count('')} "
                    "(quote text with commas)"
                )
            row += [""] * (len(header) - len(row))  # spreadsheets leave out empty cells at the end
            fields = {column: cell for column, cell in zip(header, row, strict=False) if column}
            label = fields.get("label", "")
            if _ESCAPED.search(label):
                raise DataError(f"{name}, line {line}: label {printable(label)} is not UTF-8: save the file as UTF-8")
            found.append((line, fields))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num + num_skipped}: {error}") from error
    return [column for column in header if column], found


def read_text(path: Path) -> str:
    """Text of a file, see ``text_of``.

    Raises:
        DataError: If it cannot be read or is no text.
    """
    try:
        return text_of(path.read_bytes())
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from error


def _named(first: list[str]) -> list[str]:
    """Columns in lower case, and ``path`` for another name of it, where there is no ``path``."""
    header = [column.strip().lower() for column in first]
    if "path" in header:
        return header
    names = [column_name(column) for column in header]
    other = next((names.index(name) for name in PATH_NAMES if name in names), None)
    return ["path" if place == other else column for place, column in enumerate(header)]


def _check_header(header: list[str], first: list[str], needed: Sequence[str], name: str) -> None:
    if not set(needed) <= set(header):
        had = printable(",".join(first))
        raise DataError(
            f"{name}: the first line must name the columns {','.join(needed)}; "
            + (f"it is {had[:80]!r}" if had.strip() else "the file is empty")
        )
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice is not None:
        raise DataError(f"{name}: two columns are called {printable(twice)!r}: take one out")
