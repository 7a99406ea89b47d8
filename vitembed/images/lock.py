"""A lock between processes that the system frees when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file, which is made if needed, never removed, and marked as used now.

    Raises:
        BlockingIOError: If another holds it and ``wait`` is off.
    """
    with path.open("ab") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                    break
                except OSError as error:
                    if not wait:
                        raise BlockingIOError(errno.EAGAIN, "locked", str(path)) from error
                    if error.errno != errno.EDEADLOCK:  # it gives up after 10 seconds; we do not
                        raise
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if wait:
            os.utime(path)
        yield
