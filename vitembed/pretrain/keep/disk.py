"""A full disk ends neither a run that can do without the file, nor a run without a word."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from vitembed.errors import printable

log = logging.getLogger("vitembed")

_FULL = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())
_warned: set[str] = set()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that the disk, a quota or a size limit is reached."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # safetensors and torch wrap the system's error into one of their own, of which only the text tells.
        if os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def spared(path: Path) -> Iterator[None]:
    """Let a run go on when the disk has no room for a file that it can do without; say so once per file.

    Args:
        path: The file, or the folder, for the message.
    """
    try:
        yield
    except Exception as error:  # safetensors' and Pillow's own errors too; others are raised again
        if not is_disk_full(error):
            raise
        if str(path) not in _warned:
            _warned.add(str(path))
            log.warning("the disk is full: %s is incomplete; training goes on", printable(path))


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, whole or not at all.

    Raises:
        OSError: If the disk is full; the file then ends where it ended before.
    """
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            data = f"{line}\n".encode()
            while data:  # a disk that is nearly full takes a part first
                data = data[file.write(data) :]
        except BaseException:
            file.truncate(end)
            raise
