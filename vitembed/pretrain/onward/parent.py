"""The trained model that a run goes on from: found, read, and what it decides about the settings."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.config import PRESETS, AdaptConfig, ModelConfig, PretrainConfig, ViTConfig, to_dict
from vitembed.errors import ConfigError, ModelError
from vitembed.model.kept import named_model
from vitembed.recipes import load_config, named_settings, packaged_configs
from vitembed.workspace import Workspace

if TYPE_CHECKING:  # torch takes seconds to import, and wrong settings are to be refused before
    from vitembed.model.checkpoint import SavedModel

log = logging.getLogger("vitembed")

RECIPE = "continue"
"""The recipe of a run that names none."""
SMALL_RECIPE = "nano"
"""That of one from a model no wider than its own: the heads of ``continue`` cost several times such an encoder."""
_SMALL_LR_SCALE = 0.5  # at 0.1 a small model has not moved when its minutes are over (docs/experiments.md)
_LENGTHS = frozenset({"optim.max_steps", "optim.max_epochs", "time_budget_seconds"})
# What may differ from the model that the run starts from: positions are interpolated, stochastic depth has no weights.
_FREE = ("img_size", "drop_path_rate")


def read_parent(model: str | os.PathLike[str], workspace: Workspace) -> SavedModel:
    """The model that ``--model`` names: the one place where such a name becomes weights.

    Args:
        model: A model folder, the name of a model in the workspace, ``model`` for the workspace's own, or whatever
            else ``vitembed.load`` takes: files of other projects, public names.
        workspace: Where names are looked up.

    Raises:
        ModelError: If there is no usable model there, or none that can be trained.
    """
    from vitembed.model.opening import open_trainable

    directory = parent_dir(model, workspace)
    parent = open_trainable(directory if directory.exists() else model)
    if not parent.vit.config.class_token:
        raise ModelError(
            f"{os.fspath(model)} has no cls token, which training aligns: go on from a model that has one (dinov2, "
            "dinov3, dino, mae, vit)"
        )
    return parent


def parent_dir(model: str | os.PathLike[str], workspace: Workspace) -> Path:
    """Where the named model lies."""
    directory = Path(model)
    return directory if directory.exists() else named_model(os.fspath(model), workspace) or directory


def refuse_own_place(model: str | os.PathLike[str], model_dir: Path, workspace: Workspace) -> None:
    """A run must not write over the model that it starts from: it would be gone when the run is resumed.

    Raises:
        ConfigError: If it would.
    """
    directory = parent_dir(model, workspace)
    if directory.exists() and model_dir.exists() and directory.samefile(model_dir):
        raise ConfigError(
            f"the result would replace {model_dir}, the model that the run starts from: "
            "give it a name of its own with --name"
        )


def refuse_without_parent(config: str | Path | None, overrides: Sequence[str]) -> None:
    """``adapt.*`` says how to go on from a model, so there has to be one.

    Raises:
        ConfigError: If such settings were given in a run that starts from nothing.
    """
    if str(config) == RECIPE:
        raise ConfigError(f"recipe {RECIPE} goes on from a trained model: name one with --model")
    defaults = to_dict(AdaptConfig())
    for key, value in named_settings(config, overrides).items():
        section, _, name = key.partition(".")
        if section == "adapt" and defaults.get(name) != value:
            raise ConfigError(f"{key} says how to go on from a trained model: name one with --model")


def continued_config(
    parent: SavedModel,
    config: str | Path | None,
    overrides: Sequence[str],
) -> PretrainConfig:
    """The complete settings of a run that goes on from ``parent``: the architecture is the model's.

    The model section of a packaged recipe gives way; what the user's own file or ``key=value`` says must agree.

    Args:
        parent: The model.
        config: Recipe or YAML file; none: ``continue``, or for a model as narrow as that of ``nano`` what that says of
            heads, losses and batches.
        overrides: ``key=value`` settings.

    Raises:
        ConfigError: If a setting contradicts the model, or is wrong in itself.
    """
    small = config is None and parent.vit.config.embed_dim <= PRESETS[SMALL_RECIPE][0]
    source = config or (SMALL_RECIPE if small else RECIPE)
    own_file = str(source) not in packaged_configs()
    given = named_settings(source if own_file else None, overrides)
    refuse_contradictions(parent.vit.config, given)
    architecture = architecture_settings(parent.vit.config)
    settings = [f"adapt.parent={parent.fingerprint}"] if given.get("adapt.parent") is None else []
    # Public models often see smaller images than their positions are for (DINOv2: 224 and 518 px).
    architecture["img_size"] = parent.preprocess.img_size
    settings += [f"model.{key}={value}" for key, value in architecture.items() if f"model.{key}" not in given]
    if "data.depth" not in given:
        settings.append(f"data.depth={parent.preprocess.depth}")
    if config is None:
        settings += _length(given)
    if small:
        log.info("heads, losses and batches of recipe %s, as the model is small", SMALL_RECIPE)
        if "adapt.lr_scale" not in given:
            settings.append(f"adapt.lr_scale={_SMALL_LR_SCALE}")
        if not _LENGTHS & given.keys():
            settings.append(f"optim.max_steps={named_settings(RECIPE, ())['optim.max_steps']}")
    resolved = load_config(PretrainConfig, source, overrides, chosen=settings)
    if resolved.adapt.parent != parent.fingerprint:
        raise ConfigError(
            f"adapt.parent asks for the model with fingerprint {resolved.adapt.parent}, "
            f"--model has {parent.fingerprint}"
        )
    if resolved.data.depth != parent.preprocess.depth:
        raise ConfigError(
            f"data.depth is {resolved.data.depth}, the model reads images with depth {parent.preprocess.depth}: "
            "leave it out, or start from nothing"
        )
    if resolved.adapt.mode != "full" and resolved.adapt.num_blocks > parent.vit.config.depth:
        raise ConfigError(
            f"adapt.num_blocks is {resolved.adapt.num_blocks}, the model has {parent.vit.config.depth} blocks"
        )
    if resolved.model.img_size != parent.vit.config.img_size:
        log.info(
            "views of %d px for a model of %d px: its positions are interpolated",
            resolved.model.img_size,
            parent.vit.config.img_size,
        )
    return _with_checks(resolved, given, named_settings(None, overrides))


def refuse_contradictions(parent: ViTConfig, given: Mapping[str, Any]) -> None:
    """Compare ``model.*`` settings that someone wrote with the architecture of the model.

    Raises:
        ConfigError: With every setting that differs.
    """
    problems = []
    for key, value in given.items():
        name = key.removeprefix("model.")
        if not key.startswith("model.") or name in _FREE:
            continue
        if name == "size":
            have = {"embed_dim": parent.embed_dim, "depth": parent.depth, "num_heads": parent.num_heads}
            sizes = [size for size, numbers in PRESETS.items() if numbers == tuple(have.values())]
            if value in PRESETS and value not in sizes:
                problems.append(f"model.size is {value}, the model has {_words(have)}")
        elif hasattr(parent, name) and value is not None and value != getattr(parent, name):
            problems.append(f"model.{name} is {value}, the model has {getattr(parent, name)}")
    if problems:
        raise ConfigError(
            f"{'; '.join(problems)}: leave model.* out where a run goes on from a model (--model), "
            f"{' and '.join(f'model.{name}' for name in _FREE)} excepted"
        )


def architecture_settings(parent: ViTConfig) -> dict[str, Any]:
    """``model.*`` settings that give the model's architecture, as far as a run's settings can name it."""
    names = {field.name for field in dataclasses.fields(ModelConfig)} & {f.name for f in dataclasses.fields(ViTConfig)}
    values = {name: getattr(parent, name) for name in sorted(names - {"drop_path_rate"})}
    if parent.pos_embed == "rope":  # no run from nothing has it; what is trained is the model's own
        del values["pos_embed"]
    return {name: "null" if value is None else value for name, value in values.items()}


def _length(given: Mapping[str, Any]) -> list[str]:
    """Without a GPU and a length, as long as a run from nothing takes there."""
    import torch

    from vitembed.pretrain.auto import CPU_MINUTES

    if _LENGTHS & given.keys() or torch.cuda.is_available() or torch.backends.mps.is_available():
        return []
    log.info("no GPU is here and no length was given: at most %d minutes (--time-budget 2h for more)", CPU_MINUTES)
    return [f"time_budget_seconds={CPU_MINUTES * 60}"]


def _with_checks(config: PretrainConfig, given: Mapping[str, Any], typed: Mapping[str, Any]) -> PretrainConfig:
    """As many checks against the unchanged model as the run needs to be stopped in time."""
    pictures, checks = "trainer.num_pictures", "adapt.num_checks"
    if pictures in typed and checks in typed and typed[pictures] != typed[checks]:
        raise ConfigError(
            f"{pictures}={typed[pictures]} and {checks}={typed[checks]} contradict each other, both say how often a "
            "continued run is looked at: leave one of them out"
        )
    if pictures not in given or (checks in typed and pictures not in typed):
        trainer = dataclasses.replace(config.trainer, num_pictures=config.adapt.num_checks)
        return dataclasses.replace(config, trainer=trainer)
    if config.trainer.num_pictures < 1:
        raise ConfigError(
            "trainer.num_pictures is 0: a run that goes on from a model is checked against it, once at least"
        )
    return config


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
