"""Advisory locks between processes that the system itself lets go of when the holder dies: none is ever stale."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from vitembed.errors import VitembedError, printable
from vitembed.faults import about_to

_WINDOWS_BYTE = 1 << 20
"""Locked bytes cannot be read by others on Windows, so the one that stands for the lock lies far behind the text."""


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file, which is made if needed, never removed, and marked as used now.

    Raises:
        BlockingIOError: If another holds it and ``wait`` is off.
        OSError: If the file cannot be made.
    """
    with path.open("ab") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    file.seek(_WINDOWS_BYTE)
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


@contextlib.contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Hold a folder itself, so that no lock file is left in it; without effect where the system cannot lock folders."""
    with contextlib.ExitStack() as stack:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def exclusive(path: Path, error: type[VitembedError] = VitembedError, *, announce: bool = True) -> Iterator[None]:
    """Be the only writer of the folder of ``path`` for the time of the block; the file names the holder.

    Args:
        path: The lock file.
        error: What to raise.
        announce: Write who holds it into the file; off for a short look that leaves everything as it is.

    Raises:
        VitembedError: As ``error``: a living process holds it, or the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path, wait=False))
            if announce:
                about_to(f"write {path.name}")
                path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        except BlockingIOError as busy:
            raise error(f"{printable(path.parent)} is being written by {_holder(path)}: wait for it to end") from busy
        except OSError as problem:
            raise error(f"cannot write to {printable(path.parent)}: {problem.strerror}") from problem
        yield


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {int(holder['pid'])} on {printable(str(holder['host']))}"
    except (OSError, ValueError, KeyError, TypeError):  # just opened, not yet named
        return "another process"
