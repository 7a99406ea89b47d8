"""What the catalogue knows of one file, and how its path is written down."""
# ruff: noqa: PTH117
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import os
import sys
from typing import NamedTuple


class Row(NamedTuple):
    """What the catalogue knows of one file. A tuple, as an update makes one for each file that it has ever seen."""

    id: int
    path: str
    """Absolute as ``os.fsdecode`` gives it, or the bare name when external."""
    external: bool
    size: int
    mtime_ns: int
    content_hash: bytes | None
    width: int | None
    """Of the upright image in the file, in pixels; None where not known."""
    height: int | None
    status: str
    """``ok``, ``bad`` or ``other``."""
    reason: str | None


# What os.fsdecode() does, without its checks: this runs for every row.
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()


class Paths:
    """Paths as bytes, relative to a root where they lie below it, so that both can move together.

    Args:
        root: Absolute.
    """

    def __init__(self, root: str) -> None:
        self._prefix = root.rstrip(os.sep) + os.sep

    def encode(self, path: str, external: bool) -> bytes:
        """As it is stored: the file system's own bytes, or UTF-8 for a name that is no file's."""
        if external:
            return path.encode("utf-8", "surrogatepass")
        return os.fsencode(path.removeprefix(self._prefix))

    def decode(self, path: bytes, external: bool) -> str:
        """What was stored."""
        if external:
            return path.decode("utf-8", "surrogatepass")
        text = path.decode(_ENCODING, _ERRORS)
        return text if os.path.isabs(text) else self._prefix + text
