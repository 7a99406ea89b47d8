"""A model on disk: a folder with ``encoder.safetensors`` and ``config.json``; never pickle.

``config.json`` holds the architecture, the preprocessing, the pooling, where the weights come from, the licence, the
fingerprint and the format version. The folder is published whole: written beside its place and swapped in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitembed.atomic import atomic_folder, standing_folder
from vitembed.config import ViTConfig, to_dict
from vitembed.errors import ConfigError, DamagedFile, ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.folder import CONFIG_FILE, FORMAT, MODEL_FILES, WEIGHTS_FILE, check_model_folder
from vitembed.model.source_preprocess import refuse_channels
from vitembed.model.timm_encoder import TimmConfig
from vitembed.model.vit import VisionTransformer
from vitembed.seal import read_document

FORMAT_VERSION = 1
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ViTConfig)}
_FIRST_FIELDS = {
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "in_chans", "mlp_ratio", "qkv_bias", "num_registers",
    "pos_embed", "no_embed_class", "init_values", "drop_path_rate",
}  # fmt: skip
LATER_FIELDS = [name for name in _DEFAULTS if name not in _FIRST_FIELDS]
"""Settings of an architecture that came after the first models: at their default they are as if they were not there."""


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """What a model folder holds."""

    vit: VisionTransformer
    preprocess: Preprocess
    pool: str
    provenance: dict[str, Any]
    licence: str | None
    fingerprint: str


def fingerprint(
    weights: Mapping[str, Tensor], config: ViTConfig | TimmConfig, preprocess: Preprocess, pool: str
) -> str:
    """SHA-256 over everything that changes a vector: weights, architecture, preprocessing and pooling, in hex.

    Stochastic depth is left out, as it is off when embedding.
    """
    digest = hashlib.sha256()
    architecture = {key: value for key, value in to_dict(config).items() if key != "drop_path_rate"}
    for name in LATER_FIELDS:  # models from before there was a choice keep their fingerprint
        if architecture.get(name, ...) == _DEFAULTS[name]:
            del architecture[name]
    digest.update(json.dumps(architecture, sort_keys=True).encode())
    digest.update(preprocess.canonical().encode())
    digest.update(pool.encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_model(
    directory: str | Path,
    vit: VisionTransformer,
    preprocess: Preprocess,
    *,
    pool: str = "cls",
    provenance: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> Path:
    """Write a model folder; a model that is there is replaced, in one step, when the new one is complete on disk.

    Other files in that folder are kept. A folder that holds no model of ours is refused.

    Args:
        directory: Where the folder shall be.
        vit: The encoder.
        preprocess: How images become its input.
        pool: How its tokens become one vector: cls, mean or cls+mean.
        provenance: JSON-safe facts about where the weights come from.
        licence: SPDX name of the weights' licence, or none where the owner decides.

    Returns:
        The folder.

    Raises:
        ModelError: If something else is there, or no model can be written there.
        OSError: If the disk is full.
    """
    directory = Path(directory)
    check_model_folder(directory)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in vit.state_dict().items()}
    weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": to_dict(vit.config),
        "preprocess": preprocess.to_dict(),
        "pool": pool,
        "fingerprint": fingerprint(weights, vit.config, preprocess, pool),
        "licence": licence,
        "provenance": dict(provenance or {}),
    }
    with atomic_folder(directory, MODEL_FILES) as folder:
        save_file(weights, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return directory


def read_model(directory: str | Path) -> SavedModel:
    """Read a model folder and check that it is whole.

    Raises:
        ModelError: If the folder is absent or incomplete, of a newer format, or if weights and config do not agree.
    """
    directory = standing_folder(directory)
    config = _read_config(directory)
    try:
        vit_config = ViTConfig(**config["architecture"])
        preprocess = Preprocess.from_dict(config["preprocess"])
        pool, stored = str(config["pool"]), str(config["fingerprint"])
    except (KeyError, TypeError, ConfigError) as error:
        raise ModelError(f"{directory / CONFIG_FILE} is damaged: {error}") from error
    refuse_channels(vit_config.in_chans, str(directory))
    try:
        weights = load_file(directory / WEIGHTS_FILE)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"cannot read {directory / WEIGHTS_FILE}: {error}; copy or train the model again") from error
    with torch.device("meta"):
        vit = VisionTransformer(vit_config)
    _check_weights(weights, vit, directory)
    vit.load_state_dict(weights, strict=True, assign=True)
    if vit.pos_embed is not None:
        vit.pos_embed.requires_grad_(vit_config.pos_embed == "learned")
    actual = fingerprint(weights, vit_config, preprocess, pool)
    if actual != stored:
        raise ModelError(
            f"{directory} was changed after it was written (fingerprint {actual[:12]}, expected {stored[:12]}): "
            "copy or train the model again"
        )
    return SavedModel(
        vit=vit.eval(),
        preprocess=preprocess,
        pool=pool,
        provenance=dict(config.get("provenance") or {}),
        licence=config.get("licence"),
        fingerprint=stored,
    )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ModelError(
            f"no model at {directory}: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, "
            "as `vitembed pretrain` writes it"
        )
    try:
        config: dict[str, Any] = read_document(path, advice="copy or train the model again")
    except DamagedFile as error:
        raise ModelError(str(error)) from error
    if config.get("format") != FORMAT:
        raise ModelError(f"{path} does not describe a vitembed encoder")
    if not isinstance(config.get("format_version"), int) or config["format_version"] > FORMAT_VERSION:
        raise ModelError(
            f"{path} has format version {config.get('format_version')}, this vitembed reads up to {FORMAT_VERSION}: "
            "update vitembed"
        )
    return config


def _check_weights(weights: Mapping[str, Tensor], vit: VisionTransformer, directory: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    kinds = {name: tensor.dtype for name, tensor in vit.state_dict().items()}
    problems = [f"missing {name}" for name in expected if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in expected]
    problems += [
        f"{name} is {tuple(tensor.shape)}, expected {expected[name]}"
        for name, tensor in weights.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    problems += [f"{name} is {t.dtype}" for name, t in weights.items() if t.dtype != kinds.get(name, t.dtype)]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{directory}: weights do not fit the config: {', '.join(problems[:3])}{more}")
