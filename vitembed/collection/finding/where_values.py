"""What the values of ``--where`` mean: numbers with units, days and ages, text."""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple


class TimeSpan(NamedTuple):
    """Nanoseconds since the epoch, within what SQLite can count."""

    start: int
    end: int
    """The first one that is no longer in it."""
    is_age: bool = False
    """Written as an age: a moment, so both are the same."""


MAX_TIME = 2**63 - 1  # 1677 to 2262: times beyond are those of the border
MAX_NUMBER = 2**62  # SQLite's integers end at 2**63
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_NUMBER = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)([kmgt]?i?)b?", re.IGNORECASE)
_AGE = re.compile(r"-(\d{1,5})([hdw])", re.IGNORECASE)
_TIME = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?(?:[T ](\d\d):(\d\d)(?::(\d\d))?)?")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


def parse_number(text: str) -> int:
    """``300``, ``20k``, ``1.5MB`` (a million and a half), ``2GiB``.

    Raises:
        ValueError: If it is something else.
    """
    match = _NUMBER.fullmatch(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or (value := int(Decimal(match[1]) * unit)) > MAX_NUMBER:
        raise ValueError("expected a number such as 300, 20k, 1.5MB or 2GiB")
    return value


def parse_time(text: str, now: float) -> TimeSpan:
    """A year, month, day, minute or second of local time; or an age, ``-7d``: the moment so long ago.

    A day is as long as the local clock makes it: 23 or 25 hours where the time changes.

    Raises:
        ValueError: If it is something else.
    """
    problem = "expected a time such as 2024, 2024-05, 2024-05-31, 2024-05-31T18:30, or an age: -12h, -7d, -4w"
    age = _AGE.fullmatch(text)
    if age is not None:
        moment = _nanoseconds(now - 3600 * int(age[1]) * _HOURS[age[2].lower()])
        return TimeSpan(moment, moment, is_age=True)
    match = _TIME.fullmatch(text)
    if match is None or (match[4] is not None and match[3] is None):
        raise ValueError(problem)
    year, month, day, hour, minute, second = (None if part is None else int(part) for part in match.groups())
    try:
        start = datetime(year or 0, month or 1, day or 1, hour or 0, minute or 0, second or 0)
        if start.year == datetime.max.year:  # beyond what is counted, and its end is beyond what Python counts
            return TimeSpan(MAX_TIME, MAX_TIME)
        if hour is not None:
            end = start.timestamp() + (60 if second is None else 1)
        elif day is not None:
            end = (start + timedelta(days=1)).timestamp()
        elif month is not None:
            end = datetime(start.year + month // 12, month % 12 + 1, 1).timestamp()
        else:
            end = datetime(start.year + 1, 1, 1).timestamp()
        return TimeSpan(_nanoseconds(start.timestamp()), _nanoseconds(end))
    except (ValueError, OverflowError, OSError):  # the 31st of June, or before what the system can count
        raise ValueError(problem) from None


def _nanoseconds(seconds: float) -> int:
    return max(-MAX_TIME, min(MAX_TIME, int(seconds * 1000) * 10**6))


def parse_text(text: str) -> bytes:
    """The bytes that the catalogue compares: names that are not UTF-8 included."""
    return os.fsencode(text)
