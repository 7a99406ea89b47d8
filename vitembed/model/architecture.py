"""Which family weights belong to, and the architecture that fits them: from shapes, configuration and family."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from vitembed.config import ViTConfig
from vitembed.errors import ModelError
from vitembed.model.families import FAMILIES
from vitembed.model.fuse import side_of
from vitembed.model.layouts import CONV_STEM, HF_CLIP, HF_DINOV3, HF_VIT, OPEN_CLIP, Layout
from vitembed.model.patches import sincos_pos_embed
from vitembed.model.rope import rope_periods
from vitembed.model.source_config import SourceConfig


def recognise(
    layout: Layout,
    *,
    keys: Collection[str],
    outside: Collection[str],
    prefix: str,
    weights: Mapping[str, Tensor],
    source: SourceConfig,
    given: str | None,
) -> str:
    """Name of the family in ``FAMILIES``.

    Args:
        layout: How the file names weights.
        keys: The encoder's keys as the file has them, without the prefix.
        outside: Keys of other networks in the file.
        prefix: What stands before the encoder's keys.
        weights: The encoder's tensors under the tables' names, before ``fuse``.
        source: What the configuration says; goes first.
        given: What the caller knows; goes before the keys.
    """
    if source.family is not None:
        return source.family
    if given is not None:
        return given
    if layout is HF_DINOV3:
        return "hf-dinov3"
    if layout is HF_CLIP:
        return "hf-clip" if "cls_token" in weights else "hf-siglip"
    if layout is OPEN_CLIP:
        return "open-clip"
    if layout is CONV_STEM:
        return "vitembed"
    scaled = "blocks.0.ls1.gamma" in weights
    if layout is HF_VIT:
        if scaled:
            return "hf-dinov2-reg" if "reg_token" in weights else "hf-dinov2"
        decoder = any(key.startswith("decoder.") for key in outside)
        marks = (("dist_token" in weights, "hf-deit"), ("cls_token" not in weights, "hf-ijepa"), (decoder, "hf-mae"))
        return next((name for holds, name in marks if holds), "hf-vit")
    timm = source.timm_name is not None
    if "rope.periods" in weights or "storage_tokens" in keys:
        return "dinov3"
    if "pos_embed" not in weights:
        return "timm-dinov3"
    if "attn_pool.latent" in weights:
        return "timm-siglip"
    if "norm_pre.weight" in weights:
        return "timm-clip"
    if "register_tokens" in keys:
        return "dinov2-reg"
    if timm:
        return "timm-vit"
    if "mask_token" in keys and scaled:
        return "dinov2"
    if "cls_token" not in weights and re.search(r"(^|\.)(target_)?encoder\.", prefix):
        return "ijepa"
    if any(key.startswith("decoder_") for key in keys) or (prefix == "model." and _is_sincos(weights)):
        return "mae"
    head = r"(^|\.)(dino_|ibot_)?head\.(mlp|last_layer)"
    if any(re.search(head, key) for key in (*keys, *outside)):
        return "dino"
    return "deit" if "dist_token" in weights and prefix == "model." else "timm-vit"


def _is_sincos(weights: Mapping[str, Tensor]) -> bool:
    """Whether positions are MAE's fixed ones; files may hold them in half precision."""
    pos = weights["pos_embed"]
    side = int((pos.shape[1] - 1) ** 0.5) if pos.ndim == 3 else 0
    if side < 1 or pos.shape[1] != side**2 + 1 or pos.shape[2] % 4:
        return False
    return bool(torch.allclose(pos[0, 1:], sincos_pos_embed(pos.shape[2], (side, side)), atol=2e-3))


def architecture_of(
    weights: dict[str, Tensor], *, family: str, source: SourceConfig, where: str
) -> tuple[ViTConfig, list[str]]:
    """The architecture that these weights are for.

    Args:
        weights: Tensors under our names, after ``fuse``. ``rope.periods`` is taken out.
        family: Name in ``FAMILIES``.
        source: What the configuration says.
        where: The file, for messages.

    Returns:
        The architecture, and a line for each thing that had to be taken from the family.

    Raises:
        ModelError: If parts contradict each other, or if only a configuration could say something.
        ConfigError: If the sizes make no ViT.
    """
    traits, notes = FAMILIES[family], list[str]()
    periods = weights.pop("rope.periods", None)
    if "patch_embed.backbone.0.conv.weight" in weights:
        convs = [t for key, t in weights.items() if re.fullmatch(r"patch_embed\.backbone\.\d+\.conv\.weight", key)]
        embed_dim, in_chans, patch_size, stem = len(convs[-1]), convs[0].shape[1], 2 ** len(convs), "conv"
    else:
        patch = weights["patch_embed.proj.weight"]
        if patch.ndim != 4 or patch.shape[2] != patch.shape[3]:
            raise ModelError(f"{where}: its patch embedding is {tuple(patch.shape)}: expected square patches")
        embed_dim, in_chans, patch_size, stem = patch.shape[0], patch.shape[1], patch.shape[2], "patch"
    numbers = {int(match[1]) for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))}
    depth = len(numbers)
    if numbers != set(range(depth)) or depth == 0:
        raise ModelError(f"{where}: its {depth} blocks are not numbered from 0 on, or there are none")
    for key in ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"):
        if key not in weights or weights[key].ndim != 2:
            raise ModelError(f"{where}: {key} is missing or no matrix")
    hidden, inner = len(weights["blocks.0.mlp.fc1.weight"]), weights["blocks.0.mlp.fc2.weight"].shape[1]
    gated = hidden == 2 * inner
    act = source.act or traits.act
    # transformers' DINOv2 has one gated MLP, with SiLU whatever its config says.
    fixed = gated and family in ("hf-dinov2", "hf-dinov2-reg")
    if source.act is not None and (source.act == "silu") != gated and not fixed:
        raise ModelError(f"{where}: config.json says activation {source.act}, which is not done with this MLP")
    rope = "pos_embed" not in weights
    settings: dict[str, Any] = {}
    if rope:
        settings["pos_embed"] = "rope"
        if source.rope_theta is not None:
            settings["rope_theta"] = source.rope_theta
        img_size = source.img_size or 224
        if "reg_token" not in weights and family == "timm-dinov3" and "dinov3" not in (source.timm_name or ""):
            raise ModelError(f"{where}: it has no positions, and nothing says which rotary ones belong to it")
    else:
        img_size = side_of(weights) * patch_size
    num_registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    num_prefix = num_registers + int("cls_token" in weights)
    if not rope:
        settings["no_embed_class"] = num_prefix > 0 and weights["pos_embed"].shape[1] == (img_size // patch_size) ** 2
    elif num_prefix:
        settings["no_embed_class"] = True
    num_heads = _num_heads(embed_dim, periods, family, source, where)
    if periods is not None:
        settings["rope_periods"] = _rounding(periods, embed_dim // num_heads, source.rope_theta or 100.0, where)
    if family == "open-clip" and source.act is None:
        raise ModelError(
            f"{where}: its activation is GELU or, as in OpenAI's own weights, quick_gelu, which keys cannot tell: "
            'put its open_clip_config.json or a config.json with {"hidden_act": "gelu"} beside it'
        )
    if family == "timm-clip" and source.act is None and source.timm_name is None:
        notes.append(
            "activation GELU is assumed: OpenAI's own CLIP weights need quick_gelu, which a config.json can say"
        )
    return (
        ViTConfig(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=_ratio(hidden, embed_dim),
            qkv_bias="blocks.0.attn.qkv.bias" in weights,
            num_registers=num_registers,
            stem=stem,  # type: ignore[arg-type]
            init_values=1e-5 if "blocks.0.ls1.gamma" in weights else None,
            class_token="cls_token" in weights,
            pre_norm="norm_pre.weight" in weights,
            norm_eps=traits.norm_eps if source.norm_eps is None else source.norm_eps,
            final_norm="pooled" if "fc_norm.weight" in weights else "tokens" if "norm.weight" in weights else "none",
            act="gelu" if gated or act == "silu" else act,  # type: ignore[arg-type]
            mlp="swiglu" if gated else "mlp",
            pos_interpolation=traits.pos_interpolation,  # type: ignore[arg-type]
            attn_pool="attn_pool.latent" in weights,
            **settings,
        ),
        notes,
    )


def claims_against(source: SourceConfig, config: ViTConfig) -> str | None:
    """The first size that the configuration claims and the weights do not have; none if they agree."""
    hidden = int(config.embed_dim * config.mlp_ratio) // (2 if config.mlp == "swiglu" else 1)
    have = {
        "embed_dim": config.embed_dim, "depth": config.depth, "patch_size": config.patch_size,
        "in_chans": config.in_chans, "num_registers": config.num_registers, "hidden_dim": hidden,
    }  # fmt: skip
    for name, claimed in source.sizes.items():
        if claimed != have[name]:
            return f"config.json says {name} {claimed}, the weights have {have[name]}"
    if config.pos_embed != "rope" and source.img_size is not None and source.img_size != config.img_size:
        return f"config.json says images of {source.img_size} px, the weights have positions for {config.img_size} px"
    return None


def _num_heads(embed_dim: int, periods: Tensor | None, family: str, source: SourceConfig, where: str) -> int:
    if source.num_heads is not None:
        if source.num_heads < 1 or embed_dim % source.num_heads:
            raise ModelError(
                f"{where}: config.json says {source.num_heads} heads, which do not divide width {embed_dim}"
            )
        return source.num_heads
    if embed_dim in source.heads:
        return source.heads[embed_dim]
    if periods is not None and periods.numel() and embed_dim % (4 * periods.numel()) == 0:
        return embed_dim // (4 * periods.numel())
    heads = FAMILIES[family].heads
    if embed_dim not in heads:
        raise ModelError(
            f"{where}: width {embed_dim} is of no published model, so its number of attention heads is not known: "
            'put a config.json with {"num_attention_heads": N} beside the weights'
        )
    return heads[embed_dim]


def _rounding(periods: Tensor, head_dim: int, theta: float, where: str) -> str:
    for rounding in ("float32", "bfloat16"):
        expected = rope_periods(head_dim, theta, rounding)
        if periods.shape == expected.shape and torch.allclose(periods, expected, rtol=1e-5):
            return rounding
    raise ModelError(f"{where}: its rotary periods are not those of theta {theta:g} for heads of width {head_dim}")


def _ratio(hidden: int, embed_dim: int) -> float:
    """The ratio that ``int(embed_dim * ratio)`` turns into ``hidden`` again."""
    ratio = hidden / embed_dim
    return ratio if int(embed_dim * ratio) == hidden else (hidden + 0.5) / embed_dim
