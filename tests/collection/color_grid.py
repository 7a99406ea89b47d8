"""A tiny encoder with the face of the real one: the mean colours of a 4 x 4 grid. Loaded by conftest and by scripts."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from PIL import Image

from vitembed.errors import BadImage

FINGERPRINT = "c0105" * 12 + "abcd"


@dataclass
class ColorGrid:
    fingerprint: str = FINGERPRINT
    embed_dim: int = 48
    after_batch: object = None
    """Called with the number of batches given out so far."""
    seen: list[str] = field(default_factory=list)
    """Every path that went through."""

    def stream(self, refs, *, batch_size=64, num_workers=None):
        for start in range(0, len(refs), batch_size):
            indices, vectors, bad = [], [], []
            for index in range(start, min(start + batch_size, len(refs))):
                self.seen.append(refs[index].path)
                try:
                    vectors.append(embed_file(refs[index].path))
                    indices.append(index)
                except OSError:
                    bad.append((index, BadImage(refs[index].path, "truncated")))
            yield SimpleNamespace(
                indices=np.array(indices, dtype=np.int64),
                vectors=np.array(vectors, dtype=np.float32).reshape(len(indices), 48),
                bad=bad,
                decode_seconds=0.01,
                model_seconds=0.001,
            )
            if self.after_batch is not None:
                self.after_batch(start // batch_size + 1)


def embed_file(path):
    with Image.open(path) as image:
        grid = np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX), dtype=np.float32)
    return grid.reshape(-1) - 127.25


def draw(path, seed):
    """A file whose content is given by the seed alone."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    with open(path, "wb") as file:
        Image.fromarray(cells).resize((16, 16), Image.Resampling.NEAREST).save(file, "PNG")
