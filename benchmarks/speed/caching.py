"""Building a cache against the bare loop of scaled decodes."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speed.pairs import Pair, in_turn
from vitembed.images.cache import ImageCache
from vitembed.images.decode import decode_image
from vitembed.images.loader import default_workers
from vitembed.images.on_demand import squashed
from vitembed.images.source import find_images


def cache_against_decode(folder: Path, work: Path, size: int, *, pairs: int = 3) -> tuple[Pair, Pair]:
    """Seconds of ``ImageCache.build`` and of decoding in as many threads and keeping nothing; and processor time."""
    refs = find_images([folder]).refs
    number = itertools.count()

    def build() -> None:
        ImageCache.build(refs, work / f"cache{next(number)}", size=size)

    def decode() -> None:
        with ThreadPoolExecutor(default_workers()) as pool:
            list(pool.map(lambda ref: squashed(decode_image(ref, target_px=size), size) is None, refs))

    return in_turn(build, decode, pairs=pairs), in_turn(build, decode, pairs=pairs, clock=with_children)


def with_children() -> float:
    """Processor seconds of this process and of all that it has started and seen end."""
    return sum(os.times()[:4])


def workers_against_one(folder: Path, size: int, *, pairs: int = 3) -> Pair:
    """Seconds with a decoding process per core and with one."""
    refs = find_images([folder]).refs
    return in_turn(
        lambda: ImageCache.in_memory(refs, size=size),
        lambda: ImageCache.in_memory(refs, size=size, num_workers=1),
        pairs=pairs,
    )
