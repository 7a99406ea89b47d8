"""Rotary positions in two dimensions: queries and keys of the patches are turned by where they lie."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Rope(NamedTuple):
    """Angles of the patches of a batch; prefix tokens are not turned."""

    sin: Tensor
    """[1 or b, 1, n, width of a head], fp32."""
    cos: Tensor
    """The same of the cosines."""

    def kept(self, ids_keep: Tensor) -> Rope:
        """Those of some patches only, ``ids_keep`` being [b, k]."""
        index = ids_keep[:, None, :, None].expand(-1, -1, -1, self.sin.shape[-1])
        b = len(ids_keep)
        return Rope(self.sin.expand(b, -1, -1, -1).gather(2, index), self.cos.expand(b, -1, -1, -1).gather(2, index))


def rope_periods(head_dim: int, theta: float, rounding: str, device: torch.device | None = None) -> Float[Tensor, "f"]:
    """The ``head_dim / 4`` periods, from 1 up to nearly ``theta``, in fp32.

    Args:
        head_dim: Width of a head.
        theta: Longest period.
        rounding: Name of the type whose precision they have: float32 or bfloat16.
        device: Where the result lies.
    """
    periods = theta ** (torch.arange(head_dim // 4, dtype=torch.float32, device=device) * 4 / head_dim)
    return periods.to(getattr(torch, rounding)).float()


def axial_rope(
    grid: tuple[int, int], head_dim: int, *, theta: float, rounding: str = "float32", device: torch.device | None = None
) -> Rope:
    """Angles for a grid of patches: the first half of the periods' angles codes the row, the second the column.

    Centres of patches lie between -1 and 1 along each axis, whatever the size of the image. DINOv3's random shift,
    jitter and rescaling of them belong to its training and are not done.

    Source: Siméoni et al. 2025 (DINOv3), arXiv:2508.10104, section 3.2; equal to ``transformers``' DINOv3ViT.
    """
    periods = rope_periods(head_dim, theta, rounding, device)
    rows, cols = (2 * (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size - 1 for size in grid)
    places = torch.stack(torch.meshgrid(rows, cols, indexing="ij"), dim=-1).reshape(-1, 2)
    angles = (2 * math.pi * places.unsqueeze(-1) / periods).flatten(1).tile(2)
    return Rope(angles.sin()[None, None], angles.cos()[None, None])


def turn(x: Float[Tensor, "b h t w"], rope: Rope) -> Float[Tensor, "b h t w"]:
    """Turn the patches of queries or keys; the tokens before them stay as they are. Computed in fp32."""
    num_prefix = x.shape[-2] - rope.sin.shape[-2]
    patches = x[:, :, num_prefix:]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * rope.cos + torch.cat([-second, first], dim=-1) * rope.sin
    return torch.cat([x[:, :, :num_prefix], turned.to(x.dtype)], dim=-2)
