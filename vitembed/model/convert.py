"""Public weights in our ViT: the layout is found from the keys, every key is accounted for, no guess is silent.

``layouts.py`` says how others name weights, ``families.py`` what the names do not say, ``source_config.py`` what a
``config.json`` adds. What is left out (heads, decoders, other networks in the file) is told in ``Converted.notes``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitembed.config import ViTConfig
from vitembed.errors import ConfigError, ModelError
from vitembed.model.architecture import architecture_of, claims_against, recognise
from vitembed.model.families import FAMILIES
from vitembed.model.fuse import fuse
from vitembed.model.layouts import LAYOUTS, Layout
from vitembed.model.source_config import SourceConfig, read_source_config
from vitembed.model.vit import VisionTransformer

# Parts of a prefix that tell the network to take where a training checkpoint holds several.
_TEACHERS = {"teacher", "ema", "target", "averaged"}
_STUDENTS = {"student", "online", "momentum", "gram"}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A public model in our ViT."""

    vit: VisionTransformer
    """In evaluation mode, every weight from the file, fp32."""
    family: str
    """What it was recognised as: one of ``families.FAMILIES``."""
    pool: str
    """How the source makes one vector: cls, or mean where it has no cls or pools the patches."""
    notes: tuple[str, ...]
    """What was left out or is not as in the file, a line each."""


def convert(
    weights: Mapping[str, Tensor],
    source_config: Mapping[str, Any] | None = None,
    *,
    where: str,
    family: str | None = None,
) -> Converted:
    """A public ViT as ours.

    Args:
        weights: All tensors of a file under their names there (``read_weights``). They are copied.
        source_config: The ``config.json`` beside it, of Hugging Face, timm or vitembed; without one, what keys do not
            say is taken from the family (``families.py``).
        where: What to call the file in messages.
        family: What the file is known to be, where its keys cannot tell: Meta's DINO files have timm's names.

    Raises:
        ModelError: If no layout fits, if keys are unknown or missing, if the configuration says other than the weights,
            or if something that only a configuration can say is missing.
    """
    if family is not None and family not in FAMILIES:
        raise ModelError(f"unknown family {family!r}: expected one of {', '.join(FAMILIES)}")
    if source_config and source_config.get("format") == "vitembed-encoder":
        return _own(weights, source_config, where)
    source = read_source_config(source_config, where=where)
    layout, prefix = _locate(weights, where)
    ours, notes = _renamed(weights, layout, prefix, where)
    inside = {key.removeprefix(prefix) for key in weights if key.startswith(prefix)}
    outside = [key for key in weights if not key.startswith(prefix)]
    family = recognise(layout, keys=inside, outside=outside, prefix=prefix, weights=ours, source=source, given=family)
    side = None if source.img_size is None else source.img_size // ours["patch_embed.proj.weight"].shape[-1]
    notes += fuse(ours, where=where, declared_side=side, keys=inside)
    if outside:
        tops = Counter(_top(key, prefix) for key in outside).most_common(5)
        notes.append("left out beside the encoder: " + ", ".join(f"{top} ({n} tensors)" for top, n in tops))
    as_what = f"{where} (read as {family} in {layout.name} names)"
    try:
        config, more = architecture_of(ours, family=family, source=source, where=as_what)
    except ConfigError as error:
        raise ModelError(f"{as_what}: {error}") from error
    if problem := claims_against(source, config):
        raise ModelError(f"{as_what}: {problem}: config.json does not belong to these weights")
    if problem := _pooled_otherwise(source, config, inside):
        raise ModelError(f"{as_what}: {problem}")
    vit = _built(ours, config, as_what)
    pool = "mean" if not config.has_cls or config.final_norm == "pooled" else source.pool or "cls"
    if "dinov3" in (source.timm_name or "") and source.timm_pool == "token":
        more = [*more, "the vector is cls, as its authors use it; timm's is the mean of the patches (pool mean)"]
    return Converted(vit=vit, family=family, pool=pool, notes=(*notes, *more))


def _pooled_otherwise(source: SourceConfig, config: ViTConfig, keys: Collection[str]) -> str | None:
    """Why timm's vector would be another one than ours; none if it is the same, or the model is not timm's."""
    if source.timm_name is not None and "dist_token" in keys:
        return "timm's vector is the mean of the cls and the distillation token"
    head = "a pooling by a query" if config.attn_pool else f"a final norm of kind {config.final_norm!r}"
    fits = {
        None: True,
        "token": config.class_token and not config.attn_pool and config.final_norm != "pooled",
        "avg": not config.attn_pool,
        "map": config.attn_pool and config.final_norm != "pooled",
    }
    return None if fits[source.timm_pool] else f"timm's pooling {source.timm_pool!r} with {head} is not done here"


def _locate(weights: Mapping[str, Tensor], where: str) -> tuple[Layout, str]:
    """The layout, and what stands before its names: the encoder itself, or the teacher where there are two."""
    found = [
        (layout, key[: len(key) - len(layout.anchor)])
        for key in weights
        for layout in LAYOUTS
        if key == layout.anchor or key.endswith(f".{layout.anchor}")
    ]
    if not found:
        keys = ", ".join(list(weights)[:3])
        anchors = ", ".join(f"{layout.anchor} ({layout.name})" for layout in LAYOUTS)
        raise ModelError(f"{where} is no vision transformer known here (it holds {keys}, ...): expected {anchors}")

    def rank(prefix: str) -> int:
        parts = set(re.split(r"[._]", prefix))
        return 2 if parts & _STUDENTS else 0 if parts & _TEACHERS else 1

    best = min(rank(prefix) for _, prefix in found)
    chosen = [(layout, prefix) for layout, prefix in found if rank(prefix) == best]
    if len(chosen) > 1:
        raise ModelError(
            f"{where} holds {len(chosen)} vision transformers ({', '.join(repr(prefix) for _, prefix in chosen[:3])}): "
            "save the state dict of the one that is wanted"
        )
    return chosen[0]


def _renamed(
    weights: Mapping[str, Tensor], layout: Layout, prefix: str, where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's tensors under the tables' names, in fp32, copied; and what was left out."""
    sources: dict[str, str] = {}
    dropped: Counter[str] = Counter()
    unknown = []
    for full in weights:
        if not full.startswith(prefix):
            continue
        key = full[len(prefix) :]
        name = next((m.expand(new) for old, new in layout.renames if (m := re.fullmatch(old, key))), None)
        if name is not None:
            if name in sources:
                raise ModelError(f"{where}: {full} and {sources[name]} are the same weight")
            sources[name] = full
        elif why := next((why for pattern, why in layout.dropped if re.fullmatch(pattern, key)), None):
            dropped[why] += 1
        else:
            unknown.append(full)
    if unknown:
        raise ModelError(
            f"{where} looks like {layout.name}, but has {len(unknown)} unknown keys: {_some(unknown)}; "
            "what they do to the vectors is not known, so it is not loaded"
        )
    ours = {name: _plain(weights[full], where, full) for name, full in sources.items()}
    return ours, [f"left out: {why} ({num} {'tensor' if num == 1 else 'tensors'})" for why, num in dropped.items()]


def _plain(tensor: Tensor, where: str, key: str) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return tensor.clone()
    if not tensor.is_floating_point():
        raise ModelError(f"{where}: {key} is {tensor.dtype}: expected floating-point weights, not quantised ones")
    plain = tensor.detach().to(torch.float32, copy=True).contiguous()
    if not bool(torch.isfinite(plain).all()):
        raise ModelError(f"{where}: {key} holds values that are no numbers: the file is damaged or its run diverged")
    return plain


def _own(weights: Mapping[str, Tensor], config: Mapping[str, Any], where: str) -> Converted:
    try:
        architecture = ViTConfig(**config["architecture"])
    except (KeyError, TypeError, ConfigError) as error:
        raise ModelError(f"{where}: its config.json is damaged: {error}") from error
    plain = {key: _plain(tensor, where, key) for key, tensor in weights.items()}
    pool = str(config.get("pool") or ("cls" if architecture.has_cls else "mean"))
    return Converted(vit=_built(plain, architecture, where), family="vitembed", pool=pool, notes=())


def _built(weights: Mapping[str, Tensor], config: ViTConfig, where: str) -> VisionTransformer:
    """Our ViT with these weights, each in its place.

    Raises:
        ModelError: With the first keys that are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        vit = VisionTransformer(config)
    expected = {name: tuple(tensor.shape) for name, tensor in vit.state_dict().items()}
    problems = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {tuple(tensor.shape)}, expected {expected[name]}"
            for name, tensor in weights.items()
            if name in expected and tuple(tensor.shape) != expected[name]
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in problems.items() if keys)
        raise ModelError(f"{where}: its weights make no whole encoder; {text}")
    vit.load_state_dict(dict(weights), strict=True, assign=True)
    return vit.eval()


def _top(key: str, prefix: str) -> str:
    """What to call the network that a key belongs to."""
    parts = key.split(".")
    return ".".join(parts[:2]) if prefix.startswith(f"{parts[0]}.") else parts[0]


def _some(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
