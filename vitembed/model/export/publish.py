"""Exports appear whole or not at all, and take the place of nothing that was not exported before."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vitembed.errors import ConfigError, printable
from vitembed.outputs import WEIGHTS, Kind, check_output, is_replaceable, is_stream

WEIGHTS_FILE = "model.safetensors"
FOLDER_FILES = {
    "README.md",
    "config.json",
    WEIGHTS_FILE,
    "cls_proj.safetensors",
    "preprocessor_config.json",
    "vitembed.json",
}
"""What an exported folder may hold: one with anything else in it is never replaced, not even by force."""


def check_files(outputs: Iterable[tuple[Path, Kind]], *, force: bool) -> None:
    """See that the files of an export may be written, and make the folder that they go into.

    Args:
        outputs: Each file and what it will be.
        force: Whether earlier exports of the same kind may be replaced.

    Raises:
        ConfigError: If something is there that must not be replaced, or the folder cannot be made.
        DataError: The same, of a file that is no export.
    """
    outputs = list(outputs)
    for path, kind in outputs:
        _make_parent(path)
        check_output(path, kind)
    for path, _ in outputs:  # only now: --force is offered where it would be followed
        if path.is_file() and not is_stream(path) and not force and path.stat().st_size:
            raise _is_there(path)


def check_folder(path: Path, *, force: bool) -> None:
    """See that an export may become the folder ``path``, and make the folder that it goes into.

    Raises:
        ConfigError: If something is there that must not be replaced, or the folder cannot be made.
    """
    if os.path.lexists(path) and not path.is_dir() and not (path.is_symlink() and not path.exists()):
        raise ConfigError(f"{printable(path)} is no folder, and it is not replaced: name another place with -o")
    if path.is_dir():
        if others := sorted({file.name for file in path.iterdir()} - FOLDER_FILES):
            raise ConfigError(
                f"{printable(path)} holds {printable(others[0])}, which no export wrote: name another place with -o"
            )
        weights = path / WEIGHTS_FILE
        if any(path.iterdir()) and not (weights.is_file() and is_replaceable(weights, WEIGHTS)):
            raise ConfigError(
                f"{printable(path)} is no export of vitembed, and it is not replaced: name another place with -o"
            )
        if not force:
            raise _is_there(path)
    _make_parent(path)


def _is_there(path: Path) -> ConfigError:
    return ConfigError(f"{printable(path)} is there already: name another place with -o, or replace it with --force")


def _make_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder {printable(path.parent)}: {error.strerror}") from error
