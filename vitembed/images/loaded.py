"""An image that is ready for a model, with the size it had in its file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from vitembed.errors import printable

_NAMES_SHOWN = 3


class Loaded(NamedTuple):
    """What loading an image gives."""

    pixels: np.ndarray
    """uint8 RGB ``[s, s, 3]``."""
    full_size: tuple[int, int]
    """Width and height of the upright original, in pixels; (0, 0) where not known."""
    notes: tuple[str, ...] = ()
    """What is odd about the file, in a few words each; its pixels are good."""


GUESSED_DEPTH = "depth not stated in the file, images differ in it (name the camera's: data.depth, --depth); taken for"
"""Begins the note of an image whose depth was guessed from its values."""


def note_lines(notes: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each kind of oddity: how many images, what, and the first names.

    Which depth was guessed is said only where it is not the same for all: then equal greys may be unequal values.

    Args:
        notes: Path and words.
    """
    paths: dict[str, list[str]] = {}
    for path, words in notes:
        paths.setdefault(words, []).append(path)
    guesses = [words for words in paths if words.startswith(GUESSED_DEPTH)]
    if len(guesses) == 1:
        del paths[guesses[0]]
    lines = []
    for words, found in paths.items():
        names = ", ".join(printable(os.path.basename(path)) for path in found[:_NAMES_SHOWN])  # noqa: PTH119
        more = f" and {len(found) - _NAMES_SHOWN:,} more" if len(found) > _NAMES_SHOWN else ""
        lines.append(f"{len(found):,} image{'s' if len(found) != 1 else ''}: {words} ({names}{more})")
    return lines
