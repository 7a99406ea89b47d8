"""Which columns of a table from elsewhere are the vector, the ids and the labels.

One rule for every format:

- The vector is one column (array, tensor) of lists called ``vector``, ``vectors``, ``embedding``, ``embeddings`` or
  ``features``, or the one series of columns that are numbered without a gap from 0 or 1 (``v0, v1, ...``,
  ``0, 1, ...``, ``dim_1, dim_2, ...``), in the order of their numbers.
- Ids are the first of ``ID_NAMES``, in any case; without one, the index that pandas wrote along (``Unnamed: 0``, no
  name at all, ``index``, ``__index_level_0__``).
- Labels are in ``label`` or ``class``.
- Nothing else is taken. What is left out is named in a line.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vitembed.csv_text import PATH_NAMES, column_name
from vitembed.errors import DataError, printable

log = logging.getLogger("vitembed")

NAMES_VECTOR = ("vector", "vectors", "embedding", "embeddings", "features")
ID_NAMES = ("id", *PATH_NAMES, "uri", "url", "image_url", "image_id", "key", "name", "uuid", "sha256", "md5")
"""Names of a column of ids, as ``column_name`` gives them; the first that is there is it."""
LABEL_NAMES = ("label", "class")
_INDEX = re.compile(r"|index|unnamed:_\d+(\.\d+)*|(__index_)?level_\d+(__)?")
"""The index of a pandas table, as ``to_csv``, ``reset_index`` and ``to_parquet`` name it."""
_NUMBERED = re.compile(r"(.*?)(\d+)")


class Columns(NamedTuple):
    """What the columns of a table are."""

    vector: list[str]
    ids: str | None
    label: str | None
    left_out: list[str]
    is_list: bool = False
    """Whether the vector is one column of lists."""
    is_data: bool = False
    """Whether what should name the columns is the first row of numbers: the vector is then every column."""


def table_columns(names: Sequence[str], lists: Mapping[str, bool], *, pandas_index: Sequence[str] = ()) -> Columns:
    """Tell the columns of a table by their names.

    Args:
        names: All of them, as they are written.
        lists: Which hold lists, where the format says so; empty for CSV.
        pandas_index: Those that were the index, where the file says so.

    Raises:
        DataError: If none is the vector, or it cannot be told which is.
    """
    if _all_numbers(names) and not _is_range(names):
        return Columns([], None, None, [], is_data=True)
    if not lists and 2 * sum(map(_is_fraction, names)) > len(names):
        raise DataError("the first line holds numbers, expected one that names the columns, such as id,v0,v1")
    known = {name: column_name(name) for name in names}
    twice = next((name for name in names if name.strip() and names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are called {printable(twice)!r}: take one out")
    index = [name for name in names if name in pandas_index or _INDEX.fullmatch(known[name])]
    ids, label = ids_and_labels([name for name in names if name not in index])
    if ids is None and index:
        ids = index[0]
    rest = [name for name in names if name not in (ids, label) and name not in index]
    vector, is_list = _vector_of(rest, known, lists)
    taken = {*vector, ids, label}
    return Columns(vector, ids, label, [name for name in names if name not in taken], is_list)


def ids_and_labels(names: Sequence[str]) -> tuple[str | None, str | None]:
    """The names of the ids and of the labels among these, each None where there is none; plurals count too."""
    known = {column_name(name): name for name in reversed(names)}

    def first(wanted: Iterable[str]) -> str | None:
        return next((known[each] for name in wanted for each in (name, f"{name}s", f"{name}es") if each in known), None)

    return first(ID_NAMES), first(LABEL_NAMES)


def one_vector_name(names: Sequence[str], what: str) -> str:
    """The one of these arrays that holds vectors.

    Raises:
        DataError: If none has such a name, or several.
    """
    found = [name for name in names if column_name(name) in NAMES_VECTOR]
    if len(found) == 1 or (found and found[0] == "vectors"):
        return found[0]
    if found:
        raise DataError(f"{what}s {', '.join(map(printable, found))} could all be the vectors: keep one")
    had = ", ".join(map(printable, names)) or "none"
    raise DataError(f"no {what} named 'vectors', only {had}: name the {what} of vectors [n, d] so")


def _vector_of(names: Sequence[str], known: Mapping[str, str], lists: Mapping[str, bool]) -> tuple[list[str], bool]:
    named = [name for name in names if known[name] in NAMES_VECTOR]
    others = [name for name in names if lists.get(name, False)] if not named else []
    for found in (named, others):
        if len(found) > 1:
            raise DataError(f"columns {', '.join(map(printable, found))} could all be the vector: keep one")
        if found:
            return found, True
    series, gaps = _series(names, known)
    if len(series) > 1:
        some = " and ".join(f"{printable(found[0])} ... {printable(found[-1])}" for found in series)
        raise DataError(f"columns {some} could all be the vector: keep one series")
    if series:
        return series[0], False
    if gaps:
        raise DataError(f"the columns of the vector are not numbered without a gap: {gaps[0]}")
    some = ", ".join(repr(printable(name)[:40]) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    raise DataError(
        "no column named 'vector' or 'embedding', and no numbered columns such as v0, v1, v2"
        + (f"; {some} {'are' if len(names) > 1 else 'is'} none" if names else "")
    )


def _series(names: Sequence[str], known: Mapping[str, str]) -> tuple[list[list[str]], list[str]]:
    """Series of columns numbered from 0 or 1, each in the order of its numbers; and what spoils others."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(known[name])
        if match is not None:
            group = groups.setdefault(match[1], {})
            if int(match[2]) in group:
                raise DataError(f"columns {group[int(match[2])]!r} and {name!r} have the same number")
            group[int(match[2])] = name
    whole, gaps = [], []
    for group in groups.values():
        numbers = sorted(group)
        missing = next((number for number in range(numbers[0], numbers[-1]) if number not in group), None)
        if numbers[0] <= 1 and missing is None:
            whole.append([group[number] for number in numbers])
        elif len(group) > 1:
            gaps.append(
                f"{printable(group[numbers[0]])} ... {printable(group[numbers[-1]])} "
                + ("begins with another number than 0 or 1" if missing is None else f"lacks number {missing}")
            )
    several = [found for found in whole if len(found) > 1]
    return several or ([] if gaps else whole), gaps


def _all_numbers(names: Sequence[str]) -> bool:
    try:
        return bool(names) and all(math.isfinite(float(name)) for name in names)
    except ValueError:
        return False


def _is_fraction(name: str) -> bool:
    return re.fullmatch(r"\s*[+-]?\d*[.,]?\d+([.,]\d*)?(e[+-]?\d+)?\s*", name.casefold()) is not None and (
        not name.strip().isdecimal()
    )


def _is_range(names: Sequence[str]) -> bool:
    """Whether these are the names that pandas gives to columns without: 0, 1, 2, ..."""
    return all(name.strip().isdecimal() for name in names) and [int(name) for name in names] in (
        list(range(len(names))),
        list(range(1, len(names) + 1)),
    )


def say_left_out(names: Sequence[str], ids: str | None) -> None:
    """Log a line that names the columns that are not part of the vector."""
    if not names:
        return
    some = ", ".join(repr(printable(name)) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    by = "" if ids is None else f"; ids are {printable(ids)!r}"
    log.warning(
        "%s left out, not part of the vector: %s%s%s", "column" if len(names) == 1 else "columns", some, more, by
    )


def as_ids(values: Any, where: str, lines: Sequence[int] | None = None) -> list[str]:
    """Ids as text, each there and no other's; ``lines`` of the file in the place of row numbers.

    Raises:
        DataError: If one is null, empty or no name at all, or occurs twice; it says in which row.
    """
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise DataError(f"{where} has shape {list(values.shape)}, expected one id a vector")
    found = list[str]()
    for row, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        spot = f"row {row} (rows count from 0)" if lines is None else f"line {lines[row]}"
        if isinstance(value, bytes):
            value = os.fsdecode(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # what pandas makes of whole numbers beside a gap
        if value is None or isinstance(value, (float, list, dict, tuple)) or (isinstance(value, str) and not value):
            what = "null" if value is None or value != value else "empty" if value == "" else f"{value!r}"[:40]
            raise DataError(f"{where}, {spot}: the id is {what}, expected a name for every vector")
        found.append(str(value))
    return found


def as_labels(values: Any, where: str) -> np.ndarray | None:
    """Labels as text or whole numbers; None, with a line, where some rows have none."""
    cells = values.tolist() if isinstance(values, np.ndarray) else list(values)
    cells = [os.fsdecode(cell) if isinstance(cell, bytes) else cell for cell in cells]
    gone = next((row for row, cell in enumerate(cells) if cell is None or cell != cell or cell == ""), None)
    if gone is not None:
        log.warning("%s: row %d (rows count from 0) has no label: the labels are not read", where, gone)
        return None
    if all(isinstance(cell, (bool, int)) or (isinstance(cell, float) and cell.is_integer()) for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    texts = [str(cell) for cell in cells]
    if all(re.fullmatch(r"-?\d{1,18}", text) for text in texts):
        return np.array(texts).astype(np.int64)
    return np.array(texts, dtype=str)
