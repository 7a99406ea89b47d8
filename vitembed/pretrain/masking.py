"""Which patches are hidden."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Mask(NamedTuple):
    """A choice of visible patches for each image of a batch."""

    ids_keep: Tensor
    """Indices of the visible patches, [b, k]."""
    ids_restore: Tensor
    """Where each patch lies in the order (visible, hidden), [b, n]."""
    mask: Tensor
    """1 where the patch was removed, 0 where the encoder sees it, [b, n]."""


def random_mask(
    batch_size: int, num_patches: int, mask_ratio: float, *, generator: torch.Generator, device: torch.device | str
) -> Mask:
    """Hide the same number of patches in each image, chosen uniformly at random.

    Args:
        batch_size: Images.
        num_patches: Patches per image.
        mask_ratio: Share to hide, in 0..1; at least one patch stays visible, and one is hidden if the share is not 0.
        generator: Source of randomness, on ``device``.
        device: Where the result lies.

    Source: He et al. 2021, arXiv:2111.06377, section 3, "Masking".
    """
    num_keep = num_visible(num_patches, mask_ratio)
    noise = torch.rand(batch_size, num_patches, generator=generator, device=device)
    order = noise.argsort(dim=1)
    ids_restore = order.argsort(dim=1)
    mask = (ids_restore >= num_keep).float()
    return Mask(order[:, :num_keep], ids_restore, mask)


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Patches that stay visible."""
    if mask_ratio == 0:
        return num_patches
    return min(max(1, round(num_patches * (1 - mask_ratio))), num_patches - 1)


def gather_patches(patches: Float[Tensor, "b n p"], ids: Int[Tensor, "b k"]) -> Float[Tensor, "b k p"]:
    """The patches at ``ids``."""
    return patches.gather(1, ids.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
