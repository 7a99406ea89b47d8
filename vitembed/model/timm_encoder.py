"""Any image model of timm behind the encoder's seam: CNNs, hybrids and ViTs that our own ViT does not run.

It gives one vector per image, timm's own pooled feature (``num_classes=0``). It cannot be trained here: masking and
patch targets need a ViT. timm is an extra, ``pip install 'vitembed[timm]'``.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitembed._torchvision import import_torchvision
from vitembed.errors import ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.hub import checksums
from vitembed.model.names import HubSource
from vitembed.model.source_preprocess import from_timm, timm_settings
from vitembed.model.vit import Tokens
from vitembed.model.weights_file import read_weights

if TYPE_CHECKING:
    from vitembed.model.public import Foreign

INSTALL = "pip install 'vitembed[timm]'"
NOT_TRAINED = "it cannot be trained here: choose one that vitembed models lists"
# Heads of classifiers go by many names; everything else has to fit.
_HEADS = ("classifier", "fc", "head", "head_dist", "last_linear")


@dataclass(frozen=True, kw_only=True)
class TimmConfig:
    """The architecture of a timm model: its name and arguments are all there is to say."""

    architecture: str
    """timm's name, without tag."""
    embed_dim: int
    """Length of the vector."""
    img_size: int
    """Side of the image that it is shown."""
    model_args: str = ""
    """Arguments of its constructor, as JSON with sorted keys."""
    drop_path_rate: float = 0.0
    """As in ``ViTConfig``; always 0 here."""

    @property
    def has_cls(self) -> bool:
        """Whether there is a vector of the whole image: timm's pooled feature."""
        return True


class TimmEncoder(nn.Module):
    """A timm model that gives ``Tokens``: its pooled feature as cls, no patches."""

    def __init__(self, model: nn.Module, config: TimmConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Tokens:
        """One vector per image."""
        pooled = self.model(pixels)
        none = pooled.new_zeros(pooled.shape[0], 0, pooled.shape[1])
        return Tokens(cls=pooled, registers=none, patches=none)


def read_timm(foreign: Foreign) -> tuple[TimmEncoder, Preprocess, dict[str, Any]]:
    """A model that timm saved, built by timm, its weights loaded strictly (the classifier left out).

    Raises:
        ModelError: If timm is not installed or too old for it, or the weights do not fit.
    """
    architecture = foreign.timm_architecture
    settings = timm_settings(foreign.config)
    if architecture is None or settings is None or foreign.config is None:
        raise ModelError(f"{foreign.name} was not saved by timm: its config.json names no architecture")
    if not is_installed():
        raise ModelError(f"{foreign.name} needs the library timm, which is not installed: {INSTALL}")
    timm = import_timm()
    arguments: Mapping[str, Any] = foreign.config.get("model_args") or {}
    arguments = {key: value for key, value in arguments.items() if key not in ("num_classes", "pretrained")}
    if not timm.is_model(architecture):
        raise ModelError(f"{foreign.name}: timm {timm.__version__} has no architecture {architecture}: update timm")
    try:
        model = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
        pool = foreign.config.get("global_pool")  # what the saved model had, which its arguments may not say
        if isinstance(pool, str) and getattr(model, "global_pool", pool) != pool and "global_pool" not in arguments:
            arguments = {**arguments, "global_pool": pool}
            model = timm.create_model(architecture, pretrained=False, num_classes=0, **arguments)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError, AssertionError) as error:
        raise ModelError(f"{foreign.name}: timm cannot build {architecture} ({_first_line(error)})") from error
    weights = read_weights(foreign.weights)
    expected = model.state_dict()
    kept = {key: value for key, value in weights.items() if key in expected or key.split(".")[0] not in _HEADS}
    problems = [f"missing {key}" for key in expected if key not in kept]
    problems += [f"unknown {key}" for key in kept if key not in expected]
    problems += [
        f"{key} is {tuple(value.shape)}, expected {tuple(expected[key].shape)}"
        for key, value in kept.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{foreign.name}: weights do not fit {architecture}: {', '.join(problems[:3])}{more}")
    model.load_state_dict(kept, strict=True)
    preprocess = from_timm(settings, where=foreign.name)
    width = _width(model.eval(), preprocess.img_size, foreign.name)
    config = TimmConfig(
        architecture=architecture,
        embed_dim=width,
        img_size=preprocess.img_size,
        model_args=json.dumps(arguments, sort_keys=True) if arguments else "",
    )
    facts = {**foreign.facts, "sha256": checksums(foreign.weights), "family": f"timm {architecture}"}
    facts["preprocess_from"] = "pretrained_cfg in config.json"
    return TimmEncoder(model.float(), config), preprocess, facts


def _width(model: nn.Module, img_size: int, where: str) -> int:
    """Length of the vector that the model gives.

    Raises:
        ModelError: If it does not take such images, or gives anything but one vector.
    """
    try:
        with torch.inference_mode():
            given = model(torch.zeros(1, 3, img_size, img_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"{where}: it does not take RGB images of {img_size} px ({_first_line(error)})") from error
    if not isinstance(given, Tensor) or given.ndim != 2:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ModelError(f"{where}: it gives {shape}, not one vector per image: save it with a global_pool")
    return int(given.shape[-1])


def is_installed() -> bool:
    """Whether timm is here."""
    return importlib.util.find_spec("timm") is not None


def import_timm() -> Any:
    """The library; torchvision is made to load first."""
    import_torchvision()
    import timm

    return timm


def with_default_tag(source: HubSource) -> HubSource:
    """``timm/resnet50`` as the repository of its default weights, ``timm/resnet50.a1_in1k``; others unchanged.

    Only timm knows which weights those are; without it the name stays, and the hub will say that it has no such model.
    """
    owner, _, name = source.hub_id.partition("/")
    if owner != "timm" or "." in name or not is_installed():
        return source
    timm = import_timm()
    settings = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if settings is None or not str(settings.hf_hub_id or "").startswith("timm/"):
        return source
    return replace(source, hub_id=str(settings.hf_hub_id))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
