"""Exports appear whole or not at all, and take the place of nothing that was not exported before."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vitembed.atomic import fsync_directory
from vitembed.errors import ConfigError

FOLDER_FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "vitembed.json"}
"""What an exported folder may hold: one with anything else in it is never replaced, not even by force."""


def make_room(path: Path, *, force: bool) -> None:
    """See that something may be written at ``path``, and make the folder it goes into.

    Args:
        path: File or folder to be.
        force: Whether an export that is there may be replaced.

    Raises:
        ConfigError: If something is there that must not be replaced, or the folder cannot be made.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already: name another place with -o, or replace it with --force")
    if path.is_dir() and (others := sorted({file.name for file in path.iterdir()} - FOLDER_FILES)):
        raise ConfigError(f"{path} holds {others[0]}, which no export wrote: name another place with -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {path.parent}: {error.strerror}") from error


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well it becomes ``path``, in the place of one that is there.

    Raises:
        OSError: If it cannot be written.
    """
    fresh, old = (path.with_name(f".{path.name}.{word}-{os.getpid()}") for word in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        yield fresh
        for file in fresh.iterdir():
            file.chmod(fresh.stat().st_mode & 0o666)  # safetensors lets nobody else read what it writes
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        fsync_directory(fresh)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    fsync_directory(path.parent)
