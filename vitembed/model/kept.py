"""The models of a workspace, found by name or fingerprint; a finished one is kept where another takes its place.

No torch here: ``config.json`` says what a folder holds, and whoever reads the weights compares.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vitembed.atomic import atomic_folder, link_or_copy
from vitembed.errors import VitembedError, printable
from vitembed.model.folder import CONFIG_FILE, MODEL_FILES, PROBE_FILE, WEIGHTS_FILE
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
    if (found := workspace.find_model(name)) is not None:
        return found
    plain, at, wanted = name.rpartition("@")
    if at and len(wanted) >= SHORT:  # it may be in its place still
        found = workspace.find_model(plain)
        if found is not None and (stated_fingerprint(found) or "").startswith(wanted):
            return found
    return None


def model_with(
    fingerprint: str, workspace: Workspace, *, speed: str = "exact", depth: str | None = None
) -> Path | None:
    """The workspace's model folder with this fingerprint: the model in place, a named or kept one, or a run's best.

    Args:
        fingerprint: As a collection or probe records it.
        workspace: Where to look.
        speed: At which the vectors were made.
        depth: With which the images were decoded; None: the model's own.
    """
    folders = [workspace.model_dir, *workspace.named_models()]
    folders += sorted(workspace.runs_dir.glob("*/best/"))
    return next((folder for folder in folders if has_fingerprint(folder, fingerprint, speed, depth)), None)


def has_fingerprint(folder: Path, fingerprint: str, speed: str = "exact", depth: str | None = None) -> bool:
    """Whether the encoder of a model folder has this fingerprint at that speed and depth.

    Its ``config.json`` says so, and the weights are read only for another depth than the model's own.
    """
    stated = stated_fingerprint(folder)
    if stated is not None and depth is not None:
        stated = _at_depth(folder, stated, depth)
    if stated is None or speed == "exact":
        return stated is not None and stated == fingerprint
    from vitembed.model.speed import Speed

    return Speed.parse(speed).mark(stated) == fingerprint


def _at_depth(folder: Path, stated: str, depth: str) -> str | None:
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        preprocess = json.loads((folder / CONFIG_FILE).read_bytes()).get("preprocess")
        if isinstance(preprocess, dict) and preprocess.get("depth", "full") == depth:
            return stated
    from vitembed.model.checkpoint import fingerprint, read_model

    with contextlib.suppress(VitembedError):
        saved = read_model(folder)
        return fingerprint(saved.vit.state_dict(), saved.vit.config, replace(saved.preprocess, depth=depth), saved.pool)
    return None


def free_name(folder: Path) -> Path:
    """The path itself, or with ``.2``, ``.3`` ... after it where that is taken."""
    number, found = 1, folder
    while found.exists() or found.is_symlink():
        number += 1
        found = folder.with_name(f"{folder.name}.{number}")
    return found


@contextlib.contextmanager
def keep_finished(model_dir: Path, workspace: Workspace) -> Iterator[None]:
    """Keep the finished model in ``model_dir`` as ``models/NAME@FINGERPRINT`` while another one takes its place.

    Its files are linked there first, so the model is always in one of the two places. A copy that an earlier call made
    before it was killed is used again. Where the new model is the same, or could not be written, nothing is kept twice.
    """
    old = stated_fingerprint(model_dir)
    if old is None:
        yield
        return
    kept = workspace.dir / "models" / kept_name(model_dir.name, old)
    is_there = _is_same_model(kept, model_dir)
    if not is_there:
        kept = free_name(kept)
        with atomic_folder(kept, MODEL_FILES) as folder:
            for name in MODEL_FILES:
                file = model_dir / name
                if file.is_symlink():  # its target is the user's, and a relative link would lead elsewhere
                    shutil.copy2(file, folder / name)
                elif file.is_file():
                    link_or_copy(file, folder / name)
    try:
        yield
    finally:
        if not _is_same_model(kept, model_dir):
            log.info("the finished model that was in %s is kept: %s", printable(model_dir), printable(kept))
        elif not is_there:
            shutil.rmtree(kept, ignore_errors=True)


def _is_same_model(first: Path, second: Path) -> bool:
    """Whether both folders hold the same encoder and classifier."""
    found = stated_fingerprint(first)
    if found is None or found != stated_fingerprint(second):
        return False
    for name in (WEIGHTS_FILE, PROBE_FILE):
        pair = first / name, second / name
        there = [file.is_file() for file in pair]
        if there == [True, True] and not pair[0].samefile(pair[1]) and not filecmp.cmp(*pair, shallow=False):
            return False
        if there[0] != there[1]:
            return False
    return True
