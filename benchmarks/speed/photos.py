"""Folders of JPEG photographs, cut at random from scikit-learn's two sample photos and encoded anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def write_photos(folder: Path, num_images: int, size: tuple[int, int]) -> Path:
    """``num_images`` JPEGs of ``size`` (width, height), quality 90, each another part of a photo, with sensor noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    noise = rng.normal(0, 4, (size[1], size[0], 3)).astype(np.int16)
    for number in range(num_images):
        photo = photos[number % len(photos)]
        width = int(photo.width * rng.uniform(0.5, 1.0))
        height = min(photo.height, width * size[1] // size[0])
        x, y = rng.integers(0, photo.width - width + 1), rng.integers(0, photo.height - height + 1)
        part = photo.crop((x, y, x + width, y + height)).resize(size, Image.Resampling.BICUBIC)
        pixels = np.asarray(part).astype(np.int16) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=90)
    return folder
