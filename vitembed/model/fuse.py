"""Joins what a source keeps apart and we keep together: queries, keys and values; gate and value; tokens; positions."""

from __future__ import annotations

import math
import re
from collections.abc import Collection

import torch
from torch import Tensor

from vitembed.errors import ModelError

Weights = dict[str, Tensor]


def fuse(weights: Weights, *, where: str, declared_side: int | None, keys: Collection[str]) -> list[str]:
    """Change ``weights`` in place from the layout tables' names to those of our ViT.

    Args:
        weights: All tensors of the encoder, in fp32.
        where: The file, for messages.
        declared_side: Patches along a side of the native image where a configuration says so.
        keys: The encoder's keys as the file has them; registers under Meta's names never have a position.

    Returns:
        A line for each thing that is not as in the file.

    Raises:
        ModelError: If parts do not fit together.
    """
    notes: list[str] = []
    numbers = sorted({int(match[1]) for key in weights if (match := re.match(r"blocks\.(\d+)\.", key))})
    for i in numbers:
        _join_qkv(weights, f"blocks.{i}.attn", where)
        _join_gate(weights, f"blocks.{i}.mlp", where)
    if "blocks.0.attn.k_bias_was_absent" in weights:
        notes.append("keys have no bias in the file: it is zero here")
        for i in numbers:
            weights.pop(f"blocks.{i}.attn.k_bias_was_absent", None)
    _split_pool(weights)
    for name in ("cls_token", "reg_token", "dist_token"):
        if name in weights:
            weights[name] = weights[name].reshape(1, -1, weights[name].shape[-1])
    if "reg_token" in weights and weights["reg_token"].shape[1] == 0:
        del weights["reg_token"]
    if "dist_token" in weights:
        parts = [weights.pop("dist_token"), *([weights.pop("reg_token")] if "reg_token" in weights else [])]
        weights["reg_token"] = torch.cat(parts, dim=1)
        notes.append("the distillation token is the first register")
    if "pos_embed" in weights:
        theirs = {"register_tokens", "storage_tokens", "embeddings.register_tokens"}
        notes += _place_positions(weights, where, declared_side, registers_have_none=bool(theirs & set(keys)))
    return notes


def side_of(weights: Weights) -> int:
    """Patches along a side of the square that the positions are for, after ``fuse``."""
    num_prefix = sum(weights[name].shape[1] for name in ("cls_token", "reg_token") if name in weights)
    num = weights["pos_embed"].shape[1]
    return next(side for n in (num, num - num_prefix) if (side := math.isqrt(max(n, 0))) ** 2 == n)


def _join_qkv(weights: Weights, attn: str, where: str) -> None:
    parts = [f"{attn}.{name}.weight" for name in "qkv"]
    if all(part in weights for part in parts):
        weights[f"{attn}.qkv.weight"] = torch.cat([weights.pop(part) for part in parts])
    biases = [f"{attn}.{name}.bias" for name in "qkv"]
    if any(bias in weights for bias in biases):
        width = next(weights[bias] for bias in biases if bias in weights)
        if biases[1] not in weights:
            weights[f"{attn}.k_bias_was_absent"] = torch.zeros(0)
        filled = [weights.pop(bias) if bias in weights else torch.zeros_like(width) for bias in biases]
        weights[f"{attn}.qkv.bias"] = torch.cat(filled)
    if (mask := weights.pop(f"{attn}.bias_mask", None)) is not None:
        bias = weights.get(f"{attn}.qkv.bias")
        if bias is None or mask.shape != bias.shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise ModelError(f"{where}: {attn}.qkv.bias_mask is no mask of zeros and ones for its bias")
        weights[f"{attn}.qkv.bias"] = bias * mask


def _join_gate(weights: Weights, mlp: str, where: str) -> None:
    for end in ("weight", "bias"):
        gate, value = weights.pop(f"{mlp}.gate.{end}", None), weights.pop(f"{mlp}.value.{end}", None)
        if gate is not None and value is not None:
            weights[f"{mlp}.fc1.{end}"] = torch.cat([gate, value])
        elif value is not None:  # DINOv3's plain MLP has the names of the gated one
            weights[f"{mlp}.fc1.{end}"] = value
        elif gate is not None:
            raise ModelError(f"{where}: {mlp} has a gate and nothing for it to gate")


def _split_pool(weights: Weights) -> None:
    for end in ("weight", "bias"):
        joined = weights.pop(f"attn_pool.qkv.{end}", None)
        if joined is not None:
            d = len(joined) // 3
            weights[f"attn_pool.q.{end}"], weights[f"attn_pool.kv.{end}"] = joined[:d].clone(), joined[d:].clone()


def _place_positions(weights: Weights, where: str, declared: int | None, *, registers_have_none: bool) -> list[str]:
    """Positions as [1, m, d], for the prefix tokens that have one in our model: all or none."""
    pos = weights["pos_embed"]
    pos = pos.unsqueeze(0) if pos.ndim == 2 else pos
    num_cls = int("cls_token" in weights)
    num_registers = weights["reg_token"].shape[1] if "reg_token" in weights else 0
    if registers_have_none:
        choices = [num_cls]
    elif num_registers:
        choices = [0, num_cls + num_registers, num_cls]
    else:
        choices = [num_cls, 0]
    num = pos.shape[1]
    fits = [p for p in choices if num > p and math.isqrt(num - p) ** 2 == num - p]
    if declared is not None and any(num - p == declared**2 for p in fits):
        fits = [p for p in fits if num - p == declared**2]
    if not fits:
        raise ModelError(
            f"{where}: {num} positions are no square of patches, with {num_cls} cls token and {num_registers} "
            "registers: only encoders of square images are supported"
        )
    positioned, notes = fits[0], []
    if num_registers and positioned == num_cls == 1:
        weights["cls_token"] = weights["cls_token"] + pos[:, :1]
        pos = pos[:, 1:].clone()
        notes.append("the position of cls is added to cls itself, as registers have none")
    weights["pos_embed"] = pos
    return notes
