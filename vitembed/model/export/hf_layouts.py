"""Which transformers architecture runs a ViT of ours, its configuration, and the names of its weights there.

Names are those of the published checkpoints, which transformers 4 and 5 both read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitembed.config import ViTConfig

ACTS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}

# Names within a block, ours first. Queries, keys and values are apart there.
_VIT_BLOCK = {
    "norm1": "layernorm_before",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DINOV2_BLOCK = {
    "norm1": "norm1",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls2.gamma": "layer_scale2.lambda1",
}
_DINOV3_BLOCK = {
    "norm1": "norm1",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "ls2.gamma": "layer_scale2.lambda1",
}


@dataclass(frozen=True, kw_only=True)
class HfLayout:
    """One architecture of transformers."""

    model: str
    """Its class."""
    model_type: str
    """Its name in config.json."""
    block: Mapping[str, str]
    """Names within a block."""
    block_prefix: str
    """What goes before the block's number."""
    patch_embed: str
    norm: str
    settings: Callable[[ViTConfig], dict[str, Any]]
    """What only its configuration has."""

    def config(self, vit: ViTConfig, img_size: int) -> dict[str, Any]:
        """Its config.json."""
        return {
            "architectures": [self.model],
            "model_type": self.model_type,
            "hidden_size": vit.embed_dim,
            "num_hidden_layers": vit.depth,
            "num_attention_heads": vit.num_heads,
            "hidden_act": ACTS[vit.act],
            "layer_norm_eps": vit.norm_eps,
            "image_size": img_size,
            "patch_size": vit.patch_size,
            "num_channels": vit.in_chans,
            "torch_dtype": "float32",
            **self.settings(vit),
        }


def _vit_settings(vit: ViTConfig) -> dict[str, Any]:
    # pooler_output is then the cls vector itself (transformers 4.50 and later; before, its tanh)
    width = int(vit.embed_dim * vit.mlp_ratio)
    return {"intermediate_size": width, "qkv_bias": vit.qkv_bias, "pooler_act": "linear"}


def _dinov2_settings(vit: ViTConfig) -> dict[str, Any]:
    registers = {"num_register_tokens": vit.num_registers} if vit.num_registers else {"use_mask_token": True}
    return {
        "mlp_ratio": dinov2_mlp_ratio(vit),
        "qkv_bias": vit.qkv_bias,
        "use_swiglu_ffn": vit.mlp == "swiglu",
        **registers,
    }


def _dinov3_settings(vit: ViTConfig) -> dict[str, Any]:
    biases = ("query_bias", "key_bias", "value_bias")
    return {
        "intermediate_size": int(vit.embed_dim * vit.mlp_ratio) // (2 if vit.mlp == "swiglu" else 1),
        "use_gated_mlp": vit.mlp == "swiglu",
        "hidden_act": "silu" if vit.mlp == "swiglu" else ACTS[vit.act],
        "rope_theta": vit.rope_theta,
        "num_register_tokens": vit.num_registers,
        **dict.fromkeys(biases, vit.qkv_bias),
    }


def dinov2_mlp_ratio(vit: ViTConfig) -> int | None:
    """The whole number by which DINOv2's configuration gives the MLP's width; none if none does."""
    width = int(vit.embed_dim * vit.mlp_ratio)
    if vit.mlp == "mlp":
        return width // vit.embed_dim if width % vit.embed_dim == 0 else None
    found = (m for m in range(1, 17) if (int(vit.embed_dim * m * 2 / 3) + 7) // 8 * 8 == width // 2)
    return next(found, None)


VIT = HfLayout(
    model="ViTModel", model_type="vit", block=_VIT_BLOCK, block_prefix="encoder.layer.",
    patch_embed="embeddings.patch_embeddings.projection", norm="layernorm", settings=_vit_settings,
)  # fmt: skip
DINOV2 = HfLayout(
    model="Dinov2Model", model_type="dinov2", block=_DINOV2_BLOCK, block_prefix="encoder.layer.",
    patch_embed="embeddings.patch_embeddings.projection", norm="layernorm", settings=_dinov2_settings,
)  # fmt: skip
DINOV2_REGISTERS = HfLayout(
    model="Dinov2WithRegistersModel", model_type="dinov2_with_registers", block=_DINOV2_BLOCK,
    block_prefix="encoder.layer.", patch_embed="embeddings.patch_embeddings.projection", norm="layernorm",
    settings=_dinov2_settings,
)  # fmt: skip
DINOV3 = HfLayout(
    model="DINOv3ViTModel", model_type="dinov3_vit", block=_DINOV3_BLOCK, block_prefix="layer.",
    patch_embed="embeddings.patch_embeddings", norm="norm", settings=_dinov3_settings,
)  # fmt: skip


def choose_layout(vit: ViTConfig) -> tuple[HfLayout, list[str]]:
    """The architecture that runs a ViT, and what of it none would carry, in words."""
    misfits = []
    if vit.stem == "conv":
        misfits.append("stem='conv'")
    if not vit.class_token:
        misfits.append("class_token=False")
    if vit.pre_norm:
        misfits.append("pre_norm=True")
    if vit.final_norm != "tokens":
        misfits.append(f"final_norm={vit.final_norm!r}")
    if vit.attn_pool:
        misfits.append("attn_pool=True")
    if vit.pos_embed == "rope":
        if vit.rope_periods != "float32":
            misfits.append(f"rope_periods={vit.rope_periods!r}")
        return DINOV3, misfits
    if not vit.num_registers and vit.init_values is None and vit.mlp == "mlp":
        return VIT, misfits
    if dinov2_mlp_ratio(vit) is None:
        misfits.append(f"mlp_ratio={vit.mlp_ratio} beside registers, LayerScale or SwiGLU")
    return DINOV2_REGISTERS if vit.num_registers else DINOV2, misfits


def renamed(
    weights: Mapping[str, Tensor], positions: Tensor | None, num_positioned: int, vit: ViTConfig, layout: HfLayout
) -> dict[str, Tensor]:
    """Weights under an architecture's names.

    Args:
        weights: Ours.
        positions: Those of the exported image size, [1, m, d].
        num_positioned: Prefix tokens that have a position there.
        vit: The architecture.
        layout: Theirs.
    """
    d = vit.embed_dim
    out = {f"{layout.patch_embed}.{kind}": weights[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias")}
    out |= {f"{layout.norm}.{kind}": weights[f"norm.{kind}"] for kind in ("weight", "bias")}
    out["embeddings.cls_token"] = weights["cls_token"]
    registers = weights.get("reg_token")
    if positions is not None:
        # There only the cls token has a position of its own: the registers' go into the registers.
        cls = positions[:, :1] if num_positioned else positions.new_zeros(1, 1, d)
        out["embeddings.position_embeddings"] = torch.cat([cls, positions[:, num_positioned:]], dim=1)
        if registers is not None and num_positioned:
            registers = registers + positions[:, 1:num_positioned]
    if layout is DINOV3:
        registers = weights["cls_token"].new_zeros(1, 0, d) if registers is None else registers
    if registers is not None:
        out["embeddings.register_tokens"] = registers
    if layout is VIT:
        weight, bias = weights.get("cls_proj.weight", torch.eye(d)), weights.get("cls_proj.bias", torch.zeros(d))
        out |= {"pooler.dense.weight": weight, "pooler.dense.bias": bias}
    else:
        out["embeddings.mask_token"] = torch.zeros((1, 1, d) if layout is DINOV3 else (1, d))  # only training uses it
    for number in range(vit.depth):
        block = _block_parts({k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"blocks.{number}.")})
        for name in ("ls1.gamma", "ls2.gamma"):
            if name in layout.block:
                block.setdefault(name, torch.ones(d))
        for name, value in block.items():
            stem, _, kind = name.rpartition(".")
            theirs = layout.block[name] if name in layout.block else f"{_mlp_name(stem, layout, vit)}.{kind}"
            out[f"{layout.block_prefix}{number}.{theirs}"] = value
    if vit.mlp == "swiglu" and layout is DINOV3:
        out = _gates_apart(out)
    return out


def _block_parts(block: dict[str, Tensor]) -> dict[str, Tensor]:
    """A block's weights with queries, keys and values apart."""
    parts = {}
    for name, value in block.items():
        if name.startswith("attn.qkv."):
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                parts[f"attn.{letter}.{name.rpartition('.')[2]}"] = part
        else:
            parts[name] = value
    return parts


def _mlp_name(stem: str, layout: HfLayout, vit: ViTConfig) -> str:
    if vit.mlp == "swiglu" and layout is not DINOV3 and stem.startswith("mlp."):
        return {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}[stem]
    return layout.block[stem]


def _gates_apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3's SwiGLU has two layers where ours has one."""
    out = {}
    for name, value in weights.items():
        if ".mlp.up_proj." in name:
            gate, up = value.chunk(2)
            out[name.replace("up_proj", "gate_proj")], out[name] = gate, up
        else:
            out[name] = value
    return out
