"""What a run is trained on, in numbers: how many images, how large, grey or in colour, and what was left out."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitembed.errors import BadImage
from vitembed.images.cache import ImageCache
from vitembed.images.grey import is_grey

NUM_SAMPLES = 200
"""Images whose headers and pixels are looked at, evenly spaced."""


@dataclass(frozen=True)
class DataSummary:
    """Facts about a set of images."""

    num_images: int
    """Images trained on."""
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None
    """Width and height in pixels of the smallest, the median (each side by itself) and the largest; none: unknown."""
    num_sampled: int
    """Images that sizes and colours were read from."""
    grey_share: float
    """Share of grey images; 0..1."""
    formats: list[tuple[str, int]]
    """Formats among the sample, the most frequent first."""
    bad: list[tuple[str, list[str]]]
    """Reasons for which files were left out, the most frequent first, and the files."""

    @property
    def num_bad(self) -> int:
        """Files that look like images and were left out."""
        return sum(len(paths) for _, paths in self.bad)


def summarise(cache: ImageCache, bad: Sequence[BadImage]) -> DataSummary:
    """Look at an evenly spaced sample of the images.

    Args:
        cache: Decoded images.
        bad: Files that were left out.
    """
    rows = np.unique(np.linspace(0, len(cache) - 1, min(NUM_SAMPLES, len(cache))).astype(np.int64))
    sizes, formats = [], collections.Counter[str]()
    for row in rows:
        try:
            with Image.open(cache.refs[row].path) as image:  # reads the header only
                sizes.append(image.size)
                formats[str(image.format)] += 1
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # it was readable when it was decoded; its size is not known, which is no reason to stop
    grey = [is_grey(image) for image in np.asarray(cache.images[rows])]
    by_reason = collections.defaultdict[str, list[str]](list)
    for problem in bad:
        by_reason[problem.reason].append(problem.path)
    return DataSummary(
        num_images=len(cache),
        sizes=_three(sizes) if sizes else None,
        num_sampled=len(rows),
        grey_share=float(np.mean(grey)),
        formats=formats.most_common(),
        bad=sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])),
    )


def _three(sizes: list[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    median = tuple(round(statistics.median(size[axis] for size in sizes)) for axis in (0, 1))
    return by_area[0], (median[0], median[1]), by_area[-1]
