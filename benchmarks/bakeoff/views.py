"""The views that each peer documents, made with our batched augmentation, so that no peer waits for per-image code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitembed.config import AugmentConfig
from vitembed.images.augment import random_views
from vitembed.images.preprocess import IMAGENET_MEAN, IMAGENET_STD

# Jitter of SimCLR on CIFAR (strength 0.5; arXiv:2002.05709, appendix B.9), which is also our own recipes': 0.4, 0.4,
# 0.4, 0.1, applied to 80 % of the views, 20 % grey.
FAMILY = AugmentConfig()
_MEAN = torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1)
_STD = torch.tensor(IMAGENET_STD).reshape(3, 1, 1)


@dataclass(frozen=True)
class ViewSpec:
    """One kind of view and how many of it each image gets."""

    count: int
    crop_scale: tuple[float, float]
    """Share of the image's area."""
    side_of_224: int = 224
    """Side of the view where the method's global views have 224 pixels: 96 for the usual small crops."""
    blur_prob: float = 0.0
    solarize_prob: float = 0.0
    colour: bool = True
    """Whether colours are jittered at all."""

    def side(self, img_size: int, patch_size: int) -> int:
        """Side in pixels here: in proportion, as whole patches."""
        return max(1, round(img_size * self.side_of_224 / 224 / patch_size)) * patch_size

    def augment(self, side: int) -> AugmentConfig:
        """Our augmentation with these strengths."""
        settings = replace(
            FAMILY,
            crop_scale=self.crop_scale,
            # Sigmas (0.1 to 2) are quoted for 224 px. Where even the widest is under half a pixel, blurring changes
            # nothing and costs time; SimCLR leaves it out at 32 px too.
            blur_prob=self.blur_prob if FAMILY.blur_sigma[1] * side / 224 >= 0.5 else 0.0,
            solarize_prob=self.solarize_prob,
        )
        return settings if self.colour else replace(settings, jitter_prob=0.0, gray_prob=0.0)


def make_views(
    images: Tensor,
    aspect: Tensor,
    specs: Sequence[ViewSpec],
    *,
    img_size: int,
    patch_size: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Normalised views, float32 [b, c, side, side] each, in the order of ``specs``."""
    made = []
    with torch.no_grad():
        for spec in specs:
            side = spec.side(img_size, patch_size)
            settings = spec.augment(side)
            for _ in range(spec.count):
                view = random_views(images, aspect, settings, img_size=side, generator=generator)
                made.append((view - _MEAN) / _STD)
    return made
