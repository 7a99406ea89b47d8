"""The models of a workspace, found by name or fingerprint; a finished one is kept where another takes its place.

No torch here: ``config.json`` says what a folder holds, and whoever reads the weights compares.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from vitembed.atomic import fsync_directory
from vitembed.errors import printable
from vitembed.model.late import stated_fingerprint
from vitembed.workspace import Workspace

log = logging.getLogger("vitembed")

SHORT = 12
"""Hex digits of a fingerprint in the name of a kept model: ``NAME@FINGERPRINT``."""


def kept_name(name: str, fingerprint: str) -> str:
    """What a finished model or run is called once another one has its name."""
    return f"{name}@{fingerprint[:SHORT]}"


def named_model(name: str, workspace: Workspace) -> Path | None:
    """The folder that a name means in a workspace: ``model``, NAME, or NAME@FINGERPRINT; None if there is none."""
    if Path(name).name != name or name.startswith(".") or "\0" in name:
        return None
    folder = _folder(name, workspace)
    if folder.is_dir():
        return folder
    plain, at, wanted = name.rpartition("@")
    if at and len(wanted) >= SHORT:  # it may be in its place still
        folder = _folder(plain, workspace)
        if (stated_fingerprint(folder) or "").startswith(wanted):
            return folder
    return None


def _folder(name: str, workspace: Workspace) -> Path:
    return workspace.model_dir if name == "model" else workspace.dir / "models" / name


def model_with(fingerprint: str, workspace: Workspace, *, speed: str = "exact") -> Path | None:
    """The workspace's model folder with this fingerprint: the model in place, a named or kept one, or a run's best.

    Args:
        fingerprint: As a collection or probe records it.
        workspace: Where to look.
        speed: At which the vectors were made.
    """
    folders = [workspace.model_dir, *sorted((workspace.dir / "models").glob("*/"))]
    folders += sorted(workspace.runs_dir.glob("*/best/"))
    return next((folder for folder in folders if has_fingerprint(folder, fingerprint, speed)), None)


def has_fingerprint(folder: Path, fingerprint: str, speed: str = "exact") -> bool:
    """Whether a model folder says that its encoder has this fingerprint at that speed."""
    stated = stated_fingerprint(folder)
    if stated is None or speed == "exact":
        return stated is not None and stated == fingerprint
    from vitembed.model.speed import Speed

    return Speed.parse(speed).mark(stated) == fingerprint


def free_name(folder: Path) -> Path:
    """The path itself, or with ``.2``, ``.3`` ... after it where that is taken."""
    number, found = 1, folder
    while found.exists() or found.is_symlink():
        number += 1
        found = folder.with_name(f"{folder.name}.{number}")
    return found


@contextlib.contextmanager
def keep_finished(model_dir: Path, workspace: Workspace) -> Iterator[None]:
    """Move the finished model in ``model_dir`` to ``models/NAME@FINGERPRINT`` for one that is written meanwhile.

    It comes back if none could be written. The same weights again are no other model: then nothing is kept twice.
    """
    old = stated_fingerprint(model_dir)
    if old is None:
        yield
        return
    kept = free_name(workspace.dir / "models" / kept_name(model_dir.name, old))
    kept.parent.mkdir(parents=True, exist_ok=True)
    model_dir.rename(kept)
    for parent in {model_dir.parent, kept.parent}:
        fsync_directory(parent)
    try:
        yield
    except BaseException:
        if not model_dir.exists():
            kept.rename(model_dir)
        raise
    if stated_fingerprint(model_dir) == old:
        shutil.rmtree(kept, ignore_errors=True)
    else:
        log.info("the finished model that was in %s is kept: %s", printable(model_dir), printable(kept))
