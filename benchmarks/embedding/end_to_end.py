"""From images to vectors: ``Encoder.embed`` against the bare forward pass, and against transformers' pipeline."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from transformers import pipeline

from embedding.rounds import Speed, in_rounds
from speed.photos import write_photos
from vitembed.model.encoder import Encoder
from vitembed.model.export.formats import export


def against_bare_forward(encoder: Encoder, *, num_images: int, batch_size: int, seconds: float) -> Speed:
    """``Encoder.embed`` of images in memory, with the bare forward of the same model on tensors as the reference."""
    size = encoder.preprocess.img_size
    arrays = list(np.random.default_rng(0).integers(0, 256, (num_images, size, size, 3), dtype=np.uint8))
    pixels = torch.randn(num_images, 3, size, size, device=encoder.device)

    def bare() -> list[np.ndarray]:
        with torch.inference_mode():
            return [encoder.vit(part).cls.cpu().numpy() for part in pixels.split(batch_size)]

    return in_rounds({"bare": bare, "ours": lambda: encoder.embed(arrays, batch_size=batch_size)}, seconds=seconds)[
        "ours"
    ]


def against_pipeline(
    encoder: Encoder, scratch: Path, *, num_photos: int, batch_size: int, seconds: float
) -> tuple[dict[str, Speed], float]:
    """``Encoder.embed`` of a folder of 12 MP JPEGs, with transformers' image-feature-extraction as the reference.

    Returns:
        The speeds; the smallest cosine between the two libraries' vectors of a photo.
    """
    folder = write_photos(scratch / "photos", num_photos, (4000, 3000))
    paths = sorted(os.fspath(path) for path in folder.iterdir())
    exported = os.fspath(export(encoder, "hf", scratch / "pipeline").path)
    extract = pipeline("image-feature-extraction", model=exported, device=encoder.device, pool=True)
    theirs = np.array([row[0] for row in extract(paths, batch_size=batch_size)], np.float32)
    ours = encoder.embed(folder).vectors
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    ways = {
        "transformers": lambda: extract(paths, batch_size=batch_size),
        "ours": lambda: encoder.embed(folder, batch_size=batch_size),
    }
    return in_rounds(ways, seconds=seconds), float(cosines.min())
