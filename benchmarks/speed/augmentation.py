"""Batched views against torchvision v2 and lightly, one image at a time in worker processes: pixels in, tensors out.

All start from the same decoded images in memory, so that nobody pays for JPEG.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from lightly.transforms import DINOTransform, SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from speed.pairs import Pair, in_turn
from vitembed.config import AugmentConfig
from vitembed.images.augment import random_views
from vitembed.images.preprocess import IMAGENET_MEAN, IMAGENET_STD


class Images(Dataset):
    def __init__(self, pixels: np.ndarray, transform: Callable) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(Image.fromarray(self.pixels[index]))


def torchvision_views(side: int) -> Callable:
    view = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(side, scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return lambda image: [view(image), view(image)]


def ours(pixels: np.ndarray, views: list[tuple[AugmentConfig, int]], batch_size: int) -> Callable[[], None]:
    mean, std = torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), torch.tensor(IMAGENET_STD).reshape(3, 1, 1)
    generator = torch.Generator().manual_seed(0)

    def work() -> None:
        for start in range(0, len(pixels), batch_size):
            batch = torch.from_numpy(pixels[start : start + batch_size])
            for config, side in views:
                view = random_views(batch, torch.ones(len(batch)), config, img_size=side, generator=generator)
                view.sub_(mean).div_(std)

    return work


def peers(side: int) -> dict[str, tuple[Callable, list[tuple[AugmentConfig, int]]]]:
    """Each peer's transform, and our views of the same kind."""
    plain = AugmentConfig()
    simclr = AugmentConfig(crop_scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    blurred = {"blur_prob": 0.5, "brightness": 0.8, "contrast": 0.8, "saturation": 0.4, "hue": 0.2}
    dino = AugmentConfig(crop_scale=(0.4, 1.0), **blurred)
    dino_small = AugmentConfig(crop_scale=(0.05, 0.4), **blurred)
    small = max(16, side * 3 // 7 // 8 * 8)
    lightly_dino = DINOTransform(global_crop_size=side, local_crop_size=small)
    return {
        "torchvision v2, 2 views": (torchvision_views(side), [(plain, side)] * 2),
        "lightly SimCLRTransform, no blur": (SimCLRTransform(side, gaussian_blur=0.0), [(simclr, side)] * 2),
        "lightly DINOTransform, 2 + 6 views": (lightly_dino, [(dino, side)] * 2 + [(dino_small, small)] * 6),
    }


def augmentation(side: int, num_images: int, *, batch_size: int = 64, pairs: int = 3) -> dict[str, tuple[Pair, Pair]]:
    """For each peer our seconds and its own on ``num_images`` images.

    First all threads against 2 worker processes; then one thread against the peer's transform alone, without workers,
    in processor time.
    """
    cache_side = side * 3 // 2
    pixels = np.random.default_rng(0).integers(0, 256, (num_images, cache_side, cache_side, 3), dtype=np.uint8)
    found = {}
    for name, (transform, views) in peers(side).items():
        loader = DataLoader(
            Images(pixels, transform),
            batch_size=batch_size,
            num_workers=2,
            persistent_workers=True,
            multiprocessing_context="fork",
        )
        batch = min(batch_size, num_images)
        work = ours(pixels, views, batch)
        wall = in_turn(work, lambda loader=loader: [None for _ in loader], pairs=pairs)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        images = [Image.fromarray(image) for image in pixels[:batch_size]]
        some = ours(pixels[:batch_size], views, batch)
        alone = in_turn(
            some,
            lambda images=images, transform=transform: [transform(image) for image in images],
            clock=time.process_time,
            pairs=pairs,
        )
        torch.set_num_threads(threads)
        found[name] = (wall, alone)
    return found
