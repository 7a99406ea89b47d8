"""Edited copies: what happens to a picture on its way through other people's hands.

A copy is cropped, stretched a little, turned, tinted. Its original is then known exactly, which makes "find the
original" a retrieval test that needs no labels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitembed.demo.publish import publish
from vitembed.errors import DataError
from vitembed.images.decode import DecodeOptions, decode
from vitembed.images.source import ImageRef


@dataclass(frozen=True, kw_only=True)
class EditStrength:
    """How far a copy may be from its original. Every edit is drawn from its range.

    The defaults are such that raw pixels (32 px, mean image subtracted, cosine) find 29 % of 1,906 emoji; with each
    image's own mean colour subtracted instead, which undoes tint and brightness, they find 50 %.
    """

    min_area: float = 0.5
    """Smallest share of the picture's area that the crop keeps."""
    max_area: float = 0.9
    """Largest share of the picture's area that the crop keeps."""
    max_aspect: float = 4 / 3
    """The crop, stretched back to the picture's shape, is stretched by at most this factor either way."""
    max_degrees: float = 15.0
    """Turned by at most this angle either way; the corners are filled with the background."""
    tint: float = 0.45
    """Blended with one random colour, whose share is at most this: a filter, which keeps details apart."""
    brightness: float = 0.3
    """All colours are multiplied by 1 +- this, at most."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= self.max_area <= 1:
            raise ValueError(f"need 0 < min_area <= max_area <= 1, got {self.min_area} and {self.max_area}")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect must be at least 1, got {self.max_aspect}")
        if self.max_degrees < 0:
            raise ValueError(f"max_degrees must not be negative, got {self.max_degrees}")
        for name in ("tint", "brightness"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0 to 1, got {getattr(self, name)}")


def edited_copy(
    image: UInt8[np.ndarray, "h w 3"],
    generator: np.random.Generator,
    *,
    strength: EditStrength | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> UInt8[np.ndarray, "h w 3"]:
    """One edited copy of the image, at the image's size.

    Args:
        image: The original.
        generator: Draws the edit. Every call draws equally often, so the edit of the n-th image of a list does not
            depend on what the images before it show.
        strength: Ranges of the edits; ``EditStrength()`` when None.
        background: Fills the corners that turning uncovers.
    """
    strength = strength or EditStrength()
    height, width = image.shape[:2]
    area = generator.uniform(strength.min_area, strength.max_area)
    stretch = math.exp(generator.uniform(-1, 1) * math.log(strength.max_aspect))
    left, top = generator.uniform(size=2)
    degrees = generator.uniform(-1, 1) * strength.max_degrees
    share, colour = generator.uniform() * strength.tint, generator.uniform(0, 255, size=3)
    gain = 1 + generator.uniform(-1, 1) * strength.brightness

    crop_width = min(math.sqrt(area * stretch), 1.0) * width
    crop_height = min(math.sqrt(area / stretch), 1.0) * height
    left, top = left * (width - crop_width), top * (height - crop_height)
    copy = Image.fromarray(image).resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, left + crop_width, top + crop_height)
    )
    copy = copy.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=background)
    tinted = (np.asarray(copy) * (1 - share) + colour * share) * gain
    return np.clip(np.rint(tinted), 0, 255).astype(np.uint8)


def edited_copies(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]] | UInt8[np.ndarray, "n h w 3"],
    generator: np.random.Generator,
    *,
    strength: EditStrength | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> list[np.ndarray]:
    """One edited copy per image, in the same order and sizes."""
    return [edited_copy(image, generator, strength=strength, background=background) for image in images]


def write_edited_copies(
    paths: Sequence[Path],
    directory: str | os.PathLike[str],
    generator: np.random.Generator,
    *,
    strength: EditStrength | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
) -> list[Path]:
    """Write an edited copy of each file as ``directory/FOLDER/NAME.png``, and return the new paths in the same order.

    ``FOLDER`` and ``NAME`` are the original's own, so class folders stay class folders. The directory appears whole or
    not at all.

    Raises:
        BadImage: If an original cannot be decoded.
        DataError: If the directory exists and is not empty, or two originals would get the same name.
    """
    target = Path(directory)
    names = [Path(path.parent.name, f"{path.stem}.png") for path in paths]
    if len(set(names)) < len(names):
        raise DataError("two originals share folder and file name: their edited copies would overwrite each other")
    options = DecodeOptions(background=background)
    with publish(target) as staging:
        for path, name in zip(paths, names, strict=True):
            image = decode(ImageRef(str(path)), options)
            copy = edited_copy(image, generator, strength=strength, background=background)
            (staging / name).parent.mkdir(exist_ok=True)
            Image.fromarray(copy).save(staging / name)
    return [target / name for name in names]
