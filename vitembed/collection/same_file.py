"""Whether two paths are names of one file: hard links, symbolic links, or folders that are reached in two ways."""
# ruff: noqa: PTH114, PTH116, PTH117
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import os

Identity = tuple[int, int]
"""Device and inode."""


def identity_of(path: str) -> Identity | None:
    """What all names of a file have in common; None where that cannot be known (gone, or an id that is no path)."""
    if not os.path.isabs(path):
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if status.st_ino else None


def link_rank(path: str) -> int:
    """How far a name is from the file itself: 0 its own path, 1 through a linked folder, 2 a symbolic link."""
    try:
        if os.path.islink(path):
            return 2
        return int(os.path.realpath(path) != path)
    except (OSError, ValueError):
        return 0
