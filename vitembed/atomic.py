"""Files that are either the old one or the new one, never half of one: temporary file, fsync, rename, fsync."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vitembed.faults import about_to


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    After a crash or an exception ``path`` is untouched. The folder must exist.

    Raises:
        OSError: If the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    # In the same folder, as a rename is atomic only inside one file system; by pid, so that two processes do not meet.
    temp = target.with_name(f".tmp.{os.getpid()}.{target.name}")
    try:
        about_to(f"write {target.name}")
        yield temp
        with temp.open("rb+") as file:
            about_to(f"fsync {target.name}")
            os.fsync(file.fileno())
        about_to(f"rename {target.name}")
        temp.replace(target)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)


def fsync_directory(directory: str | os.PathLike[str]) -> None:
    """Make a rename in ``directory`` survive a power cut, where the system allows to open a folder."""
    about_to("fsync the folder")
    if os.name == "nt":  # folders cannot be opened there; NTFS journals the rename itself
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
