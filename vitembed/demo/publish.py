"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from vitembed.errors import DataError, printable


@contextmanager
def publish(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to fill, and rename it to ``directory`` once the block ends without an exception.

    The folder to fill lies beside ``directory``, so that the rename is one step; after an exception it is removed.

    Raises:
        DataError: If ``directory`` exists and is not an empty folder, or cannot be written.
    """
    target = Path(directory)
    check_free(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise DataError(f"cannot write to {printable(target.parent)}: {error.strerror}") from error
    try:
        yield staging
        staging.chmod(0o777 & ~_umask())  # mkdtemp gives 0700; a result is as readable as any other folder
        if target.is_dir():  # empty, as checked; Windows does not rename onto it
            target.rmdir()
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_free(directory: Path) -> None:
    """Raise a ``DataError`` unless ``directory`` is absent or an empty folder."""
    if directory.is_dir():
        if any(directory.iterdir()):
            raise DataError(f"{printable(directory)} is not empty and was not made by this command: choose another")
    elif os.path.lexists(directory):
        raise DataError(f"{printable(directory)} is not a folder")


def unpack(archive: zipfile.ZipFile, directory: Path) -> None:
    """Write every file of the archive below ``directory``.

    Raises:
        DataError: If a name in the archive would leave the folder (zip slip) or is not a plain file's; nothing is
            written then. Or if the archive is damaged.
    """
    members = [info for info in archive.infolist() if not info.is_dir()]
    for info in members:
        if not _is_safe(info):
            raise DataError(f"the archive holds {info.filename!r}, which is no plain file inside it: not unpacked")
    for info in members:
        path = directory.joinpath(*PurePosixPath(info.filename).parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(archive.read(info))
        except (zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"the archive is damaged at {info.filename!r}: {error}") from error


def _is_safe(info: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(info.filename)
    mode = info.external_attr >> 16
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and not any(character in info.filename for character in "\\:\0")  # Windows: separators, drives, streams
        and (mode == 0 or stat.S_IFMT(mode) in (0, stat.S_IFREG))
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
