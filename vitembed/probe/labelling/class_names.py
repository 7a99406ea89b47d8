"""What may be the name of a class: text that a terminal, a spreadsheet and a folder bear."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

from vitembed.errors import DataError, printable

UNSURE = "?"
"""Stands in a sheet for "none of these, or I cannot tell"."""
NO_CLASSES = "no classes yet: name two or more, such as --classes cat,dog,other"
_LONGEST = 100
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def checked_class(name: Any) -> str:
    """The name without spaces around it; whole numbers are names too.

    Raises:
        DataError: If it is empty, too long, holds control characters, or would run as a formula in a spreadsheet.
    """
    if not isinstance(name, str):
        if isinstance(name, bool) or not isinstance(name, SupportsIndex):
            raise DataError(f"class name {name!r}: expected text or a whole number")
        name = str(int(name))
    text = unicodedata.normalize("NFC", name.strip())
    shown = printable(text)[:_LONGEST]
    if not text or len(text) > _LONGEST or not text.isprintable():
        raise DataError(f"class name {shown!r}: expected 1 to {_LONGEST} printable characters")
    if text == UNSURE:
        raise DataError(f"class name {shown!r}: it stands for an image that is none of the classes; choose another")
    if text[0] in "=@" or (text[0] in "+-" and not _NUMBER.fullmatch(text)):
        raise DataError(f"class name {shown!r}: a spreadsheet would take it for a formula; begin with a letter")
    return text


def checked_classes(names: Iterable[str | SupportsIndex]) -> list[str]:
    """Check all of them.

    Raises:
        DataError: If one is no name, occurs twice, or there are fewer than two.
    """
    found = [checked_class(name) for name in names]
    for place, name in enumerate(found):
        if name.casefold() in {other.casefold() for other in found[:place]}:
            raise DataError(f"class {name!r} is named twice (upper and lower case count as the same)")
    if len(found) < 2:
        raise DataError(f"{len(found)} class: a probe tells two or more apart, such as cat,dog or cat,other")
    return found


def class_named(text: str, classes: Sequence[str]) -> str | None:
    """The class of this name, whatever its case; None if there is none."""
    wanted = unicodedata.normalize("NFC", text.strip()).casefold()
    return next((name for name in classes if name.casefold() == wanted), None)


def agreed_classes(
    wanted: Sequence[str | SupportsIndex] | None, kept: Sequence[str], used: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The classes of a session, and what to say about them, one line each.

    Args:
        wanted: Those that are asked for now; None: as before.
        kept: Those of an earlier session; empty when there was none.
        used: Labels that images have.

    Raises:
        DataError: If there are fewer than two, or a label would be none of them.
    """
    if wanted is None:
        wanted = [*kept, *(label for label in used if label not in kept)]
        if not wanted:
            raise DataError(NO_CLASSES)
    classes = checked_classes(wanted)
    strange = [label for label in used if label not in classes]
    if strange:
        raise DataError(
            f"some images are labelled {', '.join(strange)} already, which is not among the classes "
            f"{', '.join(classes)}: name it too, or change the labels file"
        )
    changes = [f"added {name}" for name in classes if name not in kept]
    changes += [f"dropped {name}" for name in kept if name not in classes]
    if kept and changes:
        return classes, [f"classes changed: {', '.join(changes)}; now {', '.join(classes)}"]
    return classes, []
