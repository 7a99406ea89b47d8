"""A model from elsewhere, as a file, a folder or a public name: its weights in our ViT, with its own preprocessing."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitembed.errors import ModelError, printable
from vitembed.model.checkpoint import SavedModel, fingerprint, read_model
from vitembed.model.folder import CONFIG_FILE
from vitembed.model.hub import checksums, fetch
from vitembed.model.names import WEIGHT_SUFFIXES, HubSource, public_source
from vitembed.model.source_preprocess import from_source, refuse_channels, timm_settings
from vitembed.model.timm_encoder import with_default_tag
from vitembed.model.weights_file import read_weights, weights_file

log = logging.getLogger("vitembed")

_META_DINO = re.compile(r"dino_(deit|vit)\w*_pretrain\.pth$")
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)
_LARGEST_SIDE_FILE = 1 << 20  # bytes; a config is some kilobytes


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Files of a model that somebody else wrote, all on this machine."""

    name: str
    """What to call it in messages."""
    weights: Path
    """The weights file, or the index of several."""
    config: Mapping[str, Any] | None
    """``config.json`` beside it, or ``open_clip_config.json``."""
    processor: Mapping[str, Any] | None
    """``preprocessor_config.json`` beside it."""
    licence: str | None
    """As the catalogue or the model's own card says."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Where it is from, for the provenance."""

    @property
    def timm_architecture(self) -> str | None:
        """The architecture in timm's words, if it was saved by timm."""
        return str(self.config["architecture"]) if self.config and timm_settings(self.config) is not None else None


def open_local(path: Path) -> Foreign:
    """The files of a model in a folder or weights file; what lies beside the file is read with it.

    Raises:
        ModelError: If there are no weights.
    """
    weights = weights_file(path) if path.is_dir() else path
    folder = weights.parent
    # A lone file in a folder of many models must not take up another one's config.
    beside = path.is_dir() or sum(file.name.endswith(WEIGHT_SUFFIXES) for file in folder.iterdir()) == 1
    config = _described(folder) if beside else None
    return Foreign(
        name=printable(path),
        weights=weights,
        config=config,
        processor=_read_json(folder / "preprocessor_config.json") if beside else None,
        licence=_licence(folder, config) if beside else None,
        facts={"source": "file", "path": os.path.abspath(path)},  # noqa: PTH100  # as the user wrote it, links and all
    )


def open_public(source: HubSource) -> Foreign:
    """The files of a public model, fetched if they are not here yet.

    Raises:
        ModelError: If they cannot be had; with what to do.
    """
    snapshot = fetch(source)
    config = _described(snapshot.directory)
    licence = source.row.licence if source.row is not None else _licence(snapshot.directory, config)
    facts = {"source": "hub", "hub_id": source.hub_id, "revision": snapshot.commit}
    if source.row is not None:
        facts |= {"name": source.row.name, "paper": source.row.paper}
    return Foreign(
        name=source.name,
        weights=snapshot.weights,
        config=config,
        processor=_read_json(snapshot.directory / "preprocessor_config.json"),
        licence=licence,
        facts=facts,
    )


def read_foreign(foreign: Foreign) -> SavedModel:
    """Its weights in our ViT.

    Raises:
        ModelError: If the weights are damaged or those of no ViT that we know.
    """
    if foreign.config is not None and foreign.config.get("format") == "vitembed-encoder":
        return read_model(foreign.weights.parent)
    from vitembed.model.convert import convert
    from vitembed.model.returning import read_returned

    facts = {**foreign.facts, "sha256": checksums(foreign.weights)}
    weights, ours = read_weights(foreign.weights), read_returned(foreign.weights)
    described = ours.config if ours is not None and foreign.config is None else foreign.config
    # The one kind of file whose keys are another's (timm's): its authors' name for it tells.
    family = "dino" if described is None and _META_DINO.match(foreign.weights.name) else None
    converted = convert(weights, described, where=foreign.name, family=family)
    if ours is not None:
        facts |= {"family": converted.family, "exported_from": ours.fingerprint, "provenance": ours.provenance}
        vit = ours.completed(converted.vit, weights, foreign.weights)
        return SavedModel(
            vit=vit,
            preprocess=ours.preprocess,
            pool=ours.pool,
            provenance=facts,
            licence=ours.licence or foreign.licence,
            fingerprint=fingerprint(vit.state_dict(), vit.config, ours.preprocess, ours.pool),
        )
    config = converted.vit.config
    refuse_channels(config.in_chans, foreign.name)
    preprocess, origin = from_source(
        converted.family,
        native_size=config.img_size,
        patch_size=config.patch_size,
        processor=foreign.processor,
        config=foreign.config,
        where=foreign.name,
    )
    facts |= {"family": converted.family, "preprocess_from": origin, "notes": list(converted.notes)}
    if origin.startswith("default"):  # a guess, if a good one: the user may know better
        log.info("%s: nothing beside it says how images are prepared: %s", foreign.name, origin)
    return SavedModel(
        vit=converted.vit,
        preprocess=preprocess,
        pool=converted.pool,
        provenance=facts,
        licence=foreign.licence,
        fingerprint=fingerprint(converted.vit.state_dict(), config, preprocess, converted.pool),
    )


def find_foreign(model: str | os.PathLike[str]) -> Foreign | None:
    """The files behind a name; none if it is a folder of our own, or no name of anything that we know.

    Raises:
        ModelError: If it names a model that cannot be had.
    """
    path = Path(model)
    if path.is_dir():
        return None if _is_own(path) else open_local(path)
    if path.exists():
        return open_local(path)
    source = public_source(os.fspath(model))
    return None if source is None else open_public(with_default_tag(source))


def _is_own(directory: Path) -> bool:
    """Whether it is a folder as ``vitembed pretrain`` writes it, or an incomplete one; ``read_model`` tells which."""
    try:
        config = _read_json(directory / CONFIG_FILE)
    except ModelError:  # read_model says what is wrong, in its words
        return True
    if config is not None:
        return config.get("format") == "vitembed-encoder"
    try:
        return weights_file(directory).name == "encoder.safetensors"
    except ModelError:
        return True


def _described(folder: Path) -> dict[str, Any] | None:
    """What lies beside the weights about their architecture."""
    return _read_json(folder / CONFIG_FILE) or _read_json(folder / "open_clip_config.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; none if there is no such file."""
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _LARGEST_SIDE_FILE:
            raise ModelError(f"{printable(path)} is {path.stat().st_size:,} bytes long: that is no config file")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {printable(path)}: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{printable(path)} is no JSON object")
    return values


def _licence(folder: Path, config: Mapping[str, Any] | None) -> str | None:
    """As timm's config says it, else the header of the model card."""
    settings = timm_settings(config)
    if settings is not None and isinstance(settings.get("license"), str):
        return str(settings["license"])
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = card.read_bytes()[:20_000].decode("utf-8", "replace")
    found = _LICENCE.search(head.split("\n---", 1)[0]) if head.startswith("---") else None
    return found[1] if found else None
