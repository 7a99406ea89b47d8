"""Which models there are to name: the workspace's own and the public ones. No torch: only headers are read."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitembed.errors import DamagedFile, ModelError, VitembedError
from vitembed.model.catalogue import MODELS
from vitembed.model.hub import find_cached
from vitembed.model.names import HubSource
from vitembed.seal import read_document
from vitembed.workspace import Workspace, find_workspace

_LARGEST_HEADER = 1 << 24  # bytes; that of a ViT has some ten thousand


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """One model that ``--model`` can name."""

    name: str
    family: str
    """For one's own models ``own``."""
    num_params: int
    embed_dim: int
    depth: int
    patch_size: int
    num_registers: int
    img_size: int
    """Side of the image that it is shown, in pixels."""
    licence: str | None
    """None: one's own to decide."""
    source: str
    """Repository on the hub, or the model folder."""
    hub_id: str | None
    revision: str | None
    """Commit on this machine, else the pinned one, else none."""
    paper: str | None
    gated: bool
    on_disk: bool
    path: str | None
    """Where its files are on this machine."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return asdict(self)


def list_models(workspace: Path | None = None) -> list[ListedModel]:
    """The workspace's models first, then the public ones in the order of the catalogue.

    Args:
        workspace: Folder of the workspace; none: the one around the current folder, if there is one.

    Raises:
        VitembedError: If a named workspace does not exist.
    """
    try:
        place: Workspace | None = find_workspace(workspace)
    except VitembedError:
        if workspace is not None:
            raise
        place = None
    own = []
    if place is not None:
        folders = [place.model_dir, *place.named_models()]
        own = [entry for folder in folders if (entry := _own(folder)) is not None]
    return [*own, *_public()]


def _public() -> list[ListedModel]:
    listed = []
    for row in MODELS:
        try:
            found = find_cached(HubSource(hub_id=row.hub_id, revision=None, row=row))
        except ModelError:  # damaged: whoever uses it is told so
            found = None
        listed.append(
            ListedModel(
                name=row.name,
                family=row.family,
                num_params=row.num_params,
                embed_dim=row.embed_dim,
                depth=row.depth,
                patch_size=row.patch_size,
                num_registers=row.num_registers,
                img_size=row.img_size,
                licence=row.licence,
                source=row.hub_id,
                hub_id=row.hub_id,
                revision=row.revision if found is None else found.commit,
                paper=row.paper,
                gated=row.gated,
                on_disk=found is not None,
                path=None if found is None else os.fspath(found.directory),
            )
        )
    return listed


def _own(folder: Path) -> ListedModel | None:
    """A model folder of ours; none if there is none or it cannot be read (``vitembed info`` says why)."""
    try:
        config = read_document(folder / "config.json")
        architecture, preprocess = config["architecture"], config["preprocess"]
        return ListedModel(
            name=folder.name,
            family="own",
            num_params=_count(folder / "encoder.safetensors"),
            embed_dim=int(architecture["embed_dim"]),
            depth=int(architecture["depth"]),
            patch_size=int(architecture["patch_size"]),
            num_registers=int(architecture["num_registers"]),
            img_size=int(preprocess["img_size"]),
            licence=config.get("licence"),
            source=os.fspath(folder),
            hub_id=None,
            revision=None,
            paper=None,
            gated=False,
            on_disk=True,
            path=os.fspath(folder),
        )
    except (OSError, DamagedFile, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _count(file: Path) -> int:
    """Numbers in a safetensors file, from its header alone."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > _LARGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(opened.read(size))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
