"""Whatever ``--model`` names, opened: our own folders, files of other projects, public names, models of timm."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitembed.errors import ModelError, VitembedError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel, read_model
from vitembed.model.kept import named_model
from vitembed.model.names import public_source, refuse_unknown
from vitembed.model.public import Foreign, find_foreign, read_foreign
from vitembed.model.timm_encoder import INSTALL, NOT_TRAINED, TimmEncoder, is_installed, read_timm
from vitembed.model.vit import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model in memory, and how to find the very same one again."""

    vit: VisionTransformer | TimmEncoder
    preprocess: Preprocess
    pool: str
    name: str
    """As it was asked for."""
    reference: str
    """What gives it again from any folder: an absolute path, or a public name with its commit."""
    provenance: dict[str, Any]
    licence: str | None


def open_model(model: str | os.PathLike[str] | None) -> OpenedModel:
    """The model that a name means; without one, that of the workspace around the current folder.

    Raises:
        ModelError: If there is no usable model there.
        VitembedError: Without a name, if there is no workspace.
    """
    place = _place(model)
    foreign = find_foreign(place)
    if foreign is None:
        if not Path(place).exists():
            raise refuse_unknown(place if model is None else model)
        return _opened(read_model(place), str(model or place), os.path.abspath(place))  # noqa: PTH100  # links are kept
    reference = _reference(foreign)
    try:
        return _opened(read_foreign(foreign), str(model), reference)
    except ModelError as error:
        if foreign.timm_architecture is None:
            raise
        if not is_installed():
            raise ModelError(f"{error}; timm itself can run it: {INSTALL}") from error
    vit, preprocess, facts = read_timm(foreign)
    return OpenedModel(
        vit=vit,
        preprocess=preprocess,
        pool="cls",
        name=str(model),
        reference=reference,
        provenance=facts,
        licence=foreign.licence,
    )


def open_trainable(model: str | os.PathLike[str]) -> SavedModel:
    """A model that training can go on from.

    Raises:
        ModelError: If there is none, or it is no vision transformer that runs in our own.
    """
    foreign = find_foreign(model)
    if foreign is None:
        if not Path(model).exists():
            raise refuse_unknown(model)
        return read_model(Path(model))
    try:
        return read_foreign(foreign)
    except ModelError as error:
        if foreign.timm_architecture is None:
            raise
        raise ModelError(f"{error}; {NOT_TRAINED}") from error


def _place(model: str | os.PathLike[str] | None) -> str:
    """The path, or the name as it is where there is no such path."""
    from vitembed.workspace import find_workspace

    if model is None:
        workspace = find_workspace()
        if not workspace.model_dir.is_dir():
            raise ModelError(
                f"the workspace {workspace.dir} has no model yet: run `vitembed pretrain IMAGES` first, "
                "or name a model folder or a public model with --model"
            )
        return os.fspath(workspace.model_dir)
    if not Path(model).exists():
        with contextlib.suppress(VitembedError):
            return os.fspath(named_model(os.fspath(model), find_workspace()) or model)
    return os.fspath(model)


def _reference(foreign: Foreign) -> str:
    if foreign.facts["source"] == "file":
        return str(foreign.facts["path"])
    source = public_source(foreign.facts.get("name", foreign.facts["hub_id"]))
    assert source is not None, "it was found by such a name"
    return source.pinned_to(foreign.facts["revision"])


def _opened(saved: SavedModel, name: str, reference: str) -> OpenedModel:
    return OpenedModel(
        vit=saved.vit,
        preprocess=saved.preprocess,
        pool=saved.pool,
        name=name,
        reference=reference,
        provenance=saved.provenance,
        licence=saved.licence,
    )
