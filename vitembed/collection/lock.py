"""One writer at a time: an advisory lock that the system itself lets go of when the holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from vitembed.errors import CollectionError, printable


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` as the only process, for the time of the block.

    The file names the holder by pid and host. Its mere presence means nothing: what counts is the lock on it, which a
    killed process cannot leave behind, so there are no stale locks to clean up.

    Raises:
        CollectionError: If a living process holds it, or the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CollectionError(f"cannot write to {printable(path.parent)}: {error.strerror}") from error
    try:
        if not _try_lock(descriptor):
            raise CollectionError(f"{printable(path.parent)} is being written by {_holder(path)}: wait for it to end")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
    finally:
        os.close(descriptor)  # lets go of the lock


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(holder['pid'])} on {printable(str(holder['host']))}"
    except (OSError, ValueError, KeyError, TypeError):  # just opened, not yet named
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            # A byte far behind the text: locked bytes cannot be read by others there.
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
