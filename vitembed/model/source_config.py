"""What a source's configuration says about a ViT, in our settings; and what it says against the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitembed.errors import ModelError
from vitembed.model.families import HF_TYPES, TIMM_ARGUMENTS, TIMM_REFUSED, TIMM_SETTINGS

_ACTS = {
    "gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_tanh": "gelu_tanh", "silu": "silu", "swish": "silu",
}  # fmt: skip

_TIMM_POOLS = {"token": "cls", "avg": "mean", "map": "cls"}


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Settings that the configuration gives; what it does not say is none or absent."""

    family: str | None = None
    """Family it means."""
    num_heads: int | None = None
    """Attention heads."""
    heads: Mapping[int, int] = field(default_factory=dict)
    """Attention heads by width."""
    norm_eps: float | None = None
    """In the layer norms."""
    act: str | None = None
    """Activation; ``silu`` goes with a SwiGLU only."""
    rope_theta: float | None = None
    """Longest period of rotary positions."""
    img_size: int | None = None
    """Native side of the image in pixels."""
    timm_name: str | None = None
    """Architecture in timm, where it is timm's."""
    pool: str | None = None
    """cls or mean, where the source chooses."""
    timm_pool: str | None = None
    """How timm pools: token, avg or map, where it is timm's and says so."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Sizes that it claims, by our names, to be compared with the weights."""


def read_source_config(config: Mapping[str, Any] | None, *, where: str) -> SourceConfig:
    """Settings from the ``config.json`` of a Hugging Face or timm model.

    Raises:
        ModelError: If it describes something that our ViT does not do.
    """
    if not config:
        return SourceConfig()
    if "architecture" in config and "model_type" not in config:
        return _timm(config, where)
    if isinstance(config.get("model_cfg"), Mapping):
        return _open_clip(config["model_cfg"], where)
    return _hugging_face(config, where)


def _hugging_face(config: Mapping[str, Any], where: str) -> SourceConfig:
    inner = config.get("vision_config")
    if isinstance(inner, Mapping):  # CLIP and SigLIP with their text half
        config = {"model_type": config.get("model_type"), **inner}
    kind = config.get("model_type")
    if kind is not None and kind not in HF_TYPES:
        raise ModelError(
            f"{where}: config.json says model_type {kind!r}, which is no plain vision transformer known here: "
            f"expected one of {', '.join(HF_TYPES)}"
        )
    names = {
        "embed_dim": "hidden_size", "depth": "num_hidden_layers", "patch_size": "patch_size",
        "in_chans": "num_channels", "num_registers": "num_register_tokens", "hidden_dim": "intermediate_size",
    }  # fmt: skip
    if config.get("model_type") in ("dinov2", "dinov2_with_registers"):
        del names["hidden_dim"]  # these have mlp_ratio instead
    sizes = {ours: _int(config, theirs, where) for ours, theirs in names.items() if config.get(theirs) is not None}
    act = config.get("hidden_act")
    if act is not None and act not in _ACTS:
        raise ModelError(f"{where}: config.json says hidden_act {act!r}: expected one of {', '.join(_ACTS)}")
    return SourceConfig(
        family=HF_TYPES[kind] if kind is not None else None,
        num_heads=_first(config, ("num_attention_heads", "num_heads"), where),
        norm_eps=_number(config, "layer_norm_eps", where),
        act=None if act is None else _ACTS[act],
        rope_theta=_number(config, "rope_theta", where),
        img_size=_first(config, ("image_size",), where),
        sizes=sizes,
    )


def _timm(config: Mapping[str, Any], where: str) -> SourceConfig:
    name = str(config["architecture"])
    for pattern, why in TIMM_REFUSED:
        if re.search(pattern, name) and "dinov3" not in name:
            raise ModelError(f"{where}: timm's {name} has {why}, which this ViT has not: load it as timm/{name}")
    settings: dict[str, Any] = {}
    for pattern, values in TIMM_SETTINGS:
        if re.search(pattern, name):
            settings |= values
    args = config.get("model_args")
    args = args if isinstance(args, Mapping) else {}
    others = [f"{key}={args[key]!r}" for key in args if key not in TIMM_ARGUMENTS and args[key] not in (None, False)]
    if others:
        raise ModelError(f"{where}: timm's {name} was built with {', '.join(others)}, which this ViT has not")
    if args.get("num_heads") is not None:
        settings["num_heads"] = _int(args, "num_heads", where)
    if isinstance(args.get("act_layer"), str):
        if args["act_layer"] not in _ACTS:
            raise ModelError(f"{where}: config.json says act_layer {args['act_layer']!r}, which is not known here")
        settings["act"] = _ACTS[args["act_layer"]]
    pool = args.get("global_pool", config.get("global_pool"))
    if "dinov3" in name and args.get("global_pool") is None:  # timm's default is the mean; the authors' vector is cls
        pool = "token"
    if pool is not None and str(pool) not in _TIMM_POOLS:
        raise ModelError(f"{where}: timm's {name} pools by {pool!r}, this ViT by one of {', '.join(_TIMM_POOLS)}")
    width = config.get("num_features")
    return SourceConfig(
        timm_name=name,
        pool=None if pool is None else _TIMM_POOLS[pool],
        timm_pool=pool,
        img_size=_int(args, "img_size", where) if isinstance(args.get("img_size"), int) else None,
        sizes={"embed_dim": width} if isinstance(width, int) else {},
        **settings,
    )


def _open_clip(config: Mapping[str, Any], where: str) -> SourceConfig:
    vision = config.get("vision_cfg")
    vision = vision if isinstance(vision, Mapping) else {}
    num_heads = None
    if "width" in vision:
        head_width = _int(vision, "head_width", where) if "head_width" in vision else 64
        num_heads = _int(vision, "width", where) // max(1, head_width)
    return SourceConfig(act="quick_gelu" if config.get("quick_gelu") else "gelu", num_heads=num_heads)


def _first(config: Mapping[str, Any], names: tuple[str, ...], where: str) -> int | None:
    return next((_int(config, name, where) for name in names if config.get(name) is not None), None)


def _int(config: Mapping[str, Any], name: str, where: str) -> int:
    value = config[name]
    if isinstance(value, (list, tuple)) and len(set(map(str, value))) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 20:
        raise ModelError(f"{where}: config.json says {name} {value!r}: expected a number (the same for both sides)")
    return value


def _number(config: Mapping[str, Any], name: str, where: str) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise ModelError(f"{where}: config.json says {name} {value!r}: expected a number")
    return float(value)
