"""Mixup and CutMix: images of a batch mixed with others of it, and their targets in the same shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitembed.config.finetuning import LabelsConfig


@dataclass(frozen=True)
class Mix:
    """How each image of a batch is mixed."""

    partner: Int[Tensor, " b"]
    """Which other image of the batch takes part."""
    share: Float[Tensor, " b"]
    """How much of the target stays the image's own, 0..1; 1: not mixed."""
    pasted: Bool[Tensor, " b"]
    """Whether a box of the partner is pasted in (CutMix); else both are blended (mixup)."""
    box: Int[Tensor, "b 4"]
    """Left, top, right and bottom of that box in pixels, right and bottom excluded; empty where nothing is pasted."""

    def to(self, device: torch.device) -> Mix:
        """The same on another device, without waiting for what that still computes."""
        parts = (self.partner, self.share, self.pasted, self.box)
        partner, share, pasted, box = (part.to(device, non_blocking=True) for part in parts)
        return Mix(partner, share, pasted, box)


def draw_mix(num: int, img_size: int, config: LabelsConfig, rng: np.random.Generator) -> Mix:
    """Draw for each image of a batch whether, how, with which other and how far it is mixed.

    Each image draws for itself. The box of CutMix lies around a point drawn evenly and is cut off at the image's edge;
    the share is then that of the pixels which are left, so it is exact.

    Args:
        num: Images in the batch.
        img_size: Their side in pixels.
        config: How often and how far.
        rng: Source of all randomness. On the CPU, as PyTorch draws no beta variates from a generator of one's own.

    Source: Zhang et al. 2017, arXiv:1710.09412, equation 1; Yun et al. 2019, arXiv:1905.04899, section 3.1.
    """
    mixed = rng.random(num) < config.mix_prob
    if config.mixup_alpha == 0 and config.cutmix_alpha == 0:
        mixed[:] = False
    by_cutmix = rng.random(num) < 0.5
    if config.mixup_alpha == 0 or config.cutmix_alpha == 0:
        by_cutmix[:] = config.cutmix_alpha > 0
    blend, keep = (
        rng.beta(alpha, alpha, num) if alpha > 0 else np.ones(num)
        for alpha in (config.mixup_alpha, config.cutmix_alpha)
    )
    # Any other image of the batch: going round by a number that is the same for all gives each image one partner.
    partner = (np.arange(num) + (rng.integers(1, num) if num > 1 else 0)) % num
    half = img_size * np.sqrt(1 - keep) / 2
    centre = rng.random((num, 2)) * img_size
    low = np.clip(np.rint(centre - half[:, None]), 0, img_size).astype(np.int64)
    high = np.clip(np.rint(centre + half[:, None]), 0, img_size).astype(np.int64)
    pasted = mixed & by_cutmix
    box = np.where(pasted[:, None], np.concatenate([low, high], axis=1), 0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    share = np.where(pasted, 1 - area / img_size**2, np.where(mixed, blend, 1.0))
    return Mix(
        torch.from_numpy(partner),
        torch.from_numpy(share.astype(np.float32)),
        torch.from_numpy(pasted),
        torch.from_numpy(box),
    )


def mix_images(pixels: Float[Tensor, "b c s s"], mix: Mix) -> Float[Tensor, "b c s s"]:
    """The mixed images; those that are not mixed come out bit for bit.

    Args:
        pixels: Square images on the device of ``mix``.
        mix: What ``draw_mix`` gave.
    """
    place = torch.arange(pixels.shape[-1], device=pixels.device)
    left, top, right, bottom = (mix.box[:, i : i + 1] for i in range(4))
    columns, rows = (place >= left) & (place < right), (place >= top) & (place < bottom)
    in_box = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    other = pixels[mix.partner]
    share = torch.where(mix.pasted, 1.0, mix.share).reshape(-1, 1, 1, 1)
    return torch.where(in_box, other, pixels * share + other * (1 - share))


def mix_targets(targets: Int[Tensor, " b"], num_classes: int, mix: Mix) -> Float[Tensor, "b c"]:
    """Soft targets, each row of sum 1: the image's own class and its partner's, by their shares.

    Args:
        targets: Class numbers.
        num_classes: Classes.
        mix: What ``draw_mix`` gave.
    """
    own = torch.nn.functional.one_hot(targets, num_classes).float()
    share = mix.share.unsqueeze(1)
    return own * share + own[mix.partner] * (1 - share)
