"""Affine resampling of a whole batch, each image with its own crop: what cropping, flipping and turning come to.

A crop without a turn is separable: every pixel of the view is a weighted mean of a few rows, then of a few columns.
That is 5 to 10 times cheaper on a CPU than sampling through a grid of coordinates, with the same result up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def crop_resize(
    pixels: Float[Tensor, "b c h w"],
    scale: Float[Tensor, "b 2"],
    centre: Float[Tensor, "b 2"],
    *,
    side: int,
    oversample: int,
) -> Float[Tensor, "b c side side"]:
    """The part of each image around ``centre`` as a square, by bilinear sampling at ``oversample`` points per pixel.

    The same as ``F.grid_sample`` (``align_corners=False``, clamped at the edge) followed by ``F.avg_pool2d``. Fastest
    when ``pixels`` lies in memory as ``b h w c``.

    Args:
        pixels: Whole images.
        scale: Width and height of the part over those of the image; negative mirrors.
        centre: Its centre (x, y), -1..1 from edge to edge of the image.
        side: Width and height of the result in pixels.
        oversample: Points per pixel of the result and axis, whose mean it is.
    """
    b, c, height, width = pixels.shape
    columns = _taps(scale[:, 0], centre[:, 0], size=width, side=side, oversample=oversample)
    rows = _taps(scale[:, 1], centre[:, 1], size=height, side=side, oversample=oversample)
    x = pixels.permute(0, 2, 3, 1).reshape(b, height, width * c)
    x = _weighted_rows(x, *rows).reshape(b, side, width, c)
    x = x.permute(0, 2, 3, 1).reshape(b, width, c * side)
    return _weighted_rows(x, *columns).reshape(b, side, c, side).permute(0, 2, 3, 1).contiguous()


def turned_crop_resize(
    pixels: Float[Tensor, "b c h w"], theta: Float[Tensor, "b 2 3"], *, side: int, oversample: int
) -> Float[Tensor, "b c side side"]:
    """As ``crop_resize`` for any affine map; what lies outside of the image is the image mirrored at its edge.

    Args:
        pixels: Whole images.
        theta: Place in the image (x, y; -1..1) of a place in the view (x, y, 1), as ``F.affine_grid`` takes it.
        side: Width and height of the result in pixels.
        oversample: Points per pixel of the result and axis, whose mean it is.
    """
    place = _places(side * oversample, pixels.device)
    # F.affine_grid multiplies matrices for this, at half the cost of the whole resampling.
    grid = torch.empty(len(theta), len(place), len(place), 2, device=pixels.device)
    for axis in (0, 1):
        a, b, offset = (theta[:, axis, i].unsqueeze(1) for i in range(3))
        torch.add((a * place).unsqueeze(1), (b * place + offset).unsqueeze(2), out=grid[..., axis])
    views = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(views, oversample) if oversample > 1 else views


def _places(count: int, device: torch.device) -> Float[Tensor, " n"]:
    """Centres of so many pixels between -1 and 1."""
    return (torch.arange(count, device=device) * 2 + 1) / count - 1


def _taps(
    scale: Float[Tensor, "b"], centre: Float[Tensor, "b"], *, size: int, side: int, oversample: int
) -> tuple[Int[Tensor, "b side taps"], Float[Tensor, "b side taps"]]:
    """Which rows (or columns) of an image make up each row of its view, and with what weights."""
    place = _places(side * oversample, scale.device)
    at = ((scale.unsqueeze(1) * place + centre.unsqueeze(1) + 1) * size - 1) / 2
    at = at.clamp(0, size - 1)
    low = at.floor().clamp(max=max(0, size - 2))
    share = (at - low) / oversample
    index = low.long()
    indices = torch.stack([index, (index + 1).clamp(max=size - 1)], dim=-1)
    weights = torch.stack([1 / oversample - share, share], dim=-1)
    return indices.reshape(len(scale), side, -1), weights.reshape(len(scale), side, -1)


def _weighted_rows(
    x: Float[Tensor, "b n p"], indices: Int[Tensor, "b m k"], weights: Float[Tensor, "b m k"]
) -> Float[Tensor, "b m p"]:
    """Sums of ``k`` rows of each matrix, ``m`` of them."""
    b, n, p = x.shape
    m, k = indices.shape[1:]
    if _gathers(x.device):
        start = torch.arange(b).reshape(b, 1, 1) * n
        sums = F.embedding_bag(
            (indices + start).reshape(b * m, k),
            x.reshape(b * n, p),
            mode="sum",
            per_sample_weights=weights.reshape(-1, k),
        )
        return sums.reshape(b, m, p)
    # GPUs multiply by zeros faster than they gather.
    matrix = torch.zeros(b, m, n, device=x.device)
    for i in range(k):  # one index per row and call: no two sums meet, so the result does not depend on their order
        matrix.scatter_add_(2, indices[..., i : i + 1], weights[..., i : i + 1])
    return torch.bmm(matrix, x)


def _gathers(device: torch.device) -> bool:
    return device.type == "cpu"
