"""Which encoder a command means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.errors import ModelError, VitembedError
from vitembed.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder


def open_encoder(model: str | None, workspace: Path | None, *, pool: str | None = None) -> Encoder:
    """The encoder named by ``--model``, else the one of the workspace.

    Raises:
        VitembedError: If there is none, in the words of ``vitembed.load``.
    """
    if model is None:
        try:
            find_workspace(workspace)
        except VitembedError as error:
            raise ModelError(
                f"no model yet: run vitembed pretrain first, or name one with --model ({error})"
            ) from error
    from vitembed.model.encoder import load

    return load(model_path(model, workspace), pool=pool)


def model_path(model: str | None, workspace: Path | None) -> str | None:
    """What ``vitembed.load`` is to be given: it looks for names in the workspace around the current folder alone."""
    if workspace is None or (model is not None and os.path.lexists(model)):
        return model
    place = find_workspace(workspace)
    if model is None:
        return os.fspath(place.model_dir)
    named = place.dir / "models" / model
    return os.fspath(named) if named.is_dir() else model


def recorded_model(meta: Mapping[str, Any], workspace: Workspace) -> str | None:
    """The model that an index was made with, unless that is the workspace's own or is gone."""
    path = meta.get("model_path")
    if not isinstance(path, str) or not Path(path).is_dir() or Path(path) == workspace.model_dir:
        return None
    return path
