"""The images that the monitors look at: always the same ones, always the same views of them, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitembed.config import AugmentConfig
from vitembed.images.augment import random_views
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.resample import crop_resize
from vitembed.model.vit import VisionTransformer

CHUNK = 64
"""Images at a time. Fixed, as the random numbers of a view depend on it."""
_SAME = 0.01
"""Views that differ by less than this (mean, of pixels in 0..1) are the same picture."""
_MILD = AugmentConfig(crop_scale=(0.5, 1.0), jitter_prob=0.0, gray_prob=0.0)


class Views(NamedTuple):
    """Two random views of some images, in 0..1, on the CPU."""

    first: Tensor
    second: Tensor


class Pool:
    """Some images of a cache.

    Args:
        cache: Decoded images.
        rows: Which of them.
        preprocess: How the encoder will see whole images.
    """

    def __init__(self, cache: ImageCache, rows: npt.NDArray[np.int64], preprocess: Preprocess) -> None:
        self.cache = cache
        self.rows = rows
        self.preprocess = preprocess

    @classmethod
    def held_out(cls, cache: ImageCache, num: int, preprocess: Preprocess) -> Pool:
        """Images drawn at random, the same ones in every run on these images."""
        total = len(cache)
        rows = np.random.default_rng(0).choice(total, size=min(num, total), replace=False)
        rows.sort()
        return cls(cache, rows, preprocess)

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, places: slice = slice(None)) -> UInt8[np.ndarray, "b s s 3"]:
        """The images at some places of the pool, squashed as they are kept."""
        return np.ascontiguousarray(self.cache.images[self.rows[places]])

    def whole(
        self, places: slice = slice(None), *, device: torch.device = torch.device("cpu")
    ) -> Float[Tensor, "b c h w"]:
        """Whole images in 0..1 as the encoder's preprocessing cuts and sizes them, made from the kept ones."""
        pixels = torch.from_numpy(self.images(places)).to(device).permute(0, 3, 1, 2).float() / 255
        aspect = torch.from_numpy(np.ascontiguousarray(self.cache.aspect[self.rows[places]])).to(device)
        shape = torch.stack([(1 / aspect).clamp(max=1.0), aspect.clamp(max=1.0)], dim=1) * self.preprocess.crop_pct
        if self.preprocess.resize != "crop":
            shape = torch.ones_like(shape)
        side = self.preprocess.img_size
        oversample = max(1, round(pixels.shape[-1] / side))
        return crop_resize(pixels, shape, torch.zeros_like(shape), side=side, oversample=oversample)

    def views(self, config: AugmentConfig) -> Iterator[Views]:
        """Two random views of each image, a chunk of images at a time: the same numbers whenever it is called.

        Drawn on the CPU whatever the training device. Where ``config`` leaves an image as it is, so that both views
        would be the same picture, they are mild crops instead.
        """
        generator = torch.Generator().manual_seed(0)
        for number, places in enumerate(self.chunks()):
            images = torch.from_numpy(self.images(places))
            aspect = torch.from_numpy(np.ascontiguousarray(self.cache.aspect[self.rows[places]]))
            side = self.preprocess.img_size
            made = [random_views(images, aspect, config, img_size=side, generator=generator) for _ in range(2)]
            if number == 0 and float((made[0] - made[1]).abs().mean()) < _SAME:
                config = _MILD
                made = [random_views(images, aspect, config, img_size=side, generator=generator) for _ in range(2)]
            yield Views(*made)

    def chunks(self) -> list[slice]:
        """The places of the pool, some at a time."""
        return [slice(start, start + CHUNK) for start in range(0, len(self.rows), CHUNK)]

    def vectors(self, encode: Encode) -> Float[Tensor, "n d"]:
        """The cls vectors of the whole images."""
        return torch.cat([encode(self.whole(places, device=encode.mean.device)) for places in self.chunks()])

    def view_vectors(self, encode: Encode, config: AugmentConfig) -> tuple[Tensor, Tensor]:
        """The cls vectors of two views of each image, each [n, d]."""
        pairs = [(encode(views.first), encode(views.second)) for views in self.views(config)]
        return torch.cat([first for first, _ in pairs]), torch.cat([second for _, second in pairs])


class Encode:
    """Pixels in 0..1 to cls vectors, in fp32 on the CPU.

    Args:
        vit: The encoder, already in evaluation mode; it runs where its weights are.
        mean: Subtracted from pixels, [1, c, 1, 1].
        std: Divides them, [1, c, 1, 1].
    """

    def __init__(self, vit: VisionTransformer, mean: Tensor, std: Tensor) -> None:
        self.vit = vit
        self.mean = mean
        self.std = std

    def __call__(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """One vector per image."""
        weight = next(self.vit.parameters())
        normalised = (pixels.to(self.mean.device) - self.mean) / self.std
        cls: Tensor = self.vit(normalised.to(weight.device, weight.dtype)).cls
        return cls.float().cpu()
