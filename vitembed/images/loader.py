"""Image references to batches of pixels, decoded ahead of the model, in order, bad images set aside.

By threads of this process (Pillow frees the interpreter lock while decoding) or, ``isolated``, by processes of their
own, which cost a quarter of a second to start, decode as fast, and survive what a decoder may do (``pool.py``).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int64, UInt8

from vitembed.config.ranges import BATCH_SIZE, NUM_WORKERS, check_numbers
from vitembed.errors import BadImage
from vitembed.images.loaded import Loaded
from vitembed.images.pool import load_in_processes
from vitembed.images.source import ImageRef

_IMAGES_WORTH_A_PROCESS = 8


@dataclass(frozen=True)
class Batch:
    """Decoded images with their positions, so that pixels can never slip to a neighbour's name."""

    indices: Int64[np.ndarray, " b"]
    """Positions in the references that were asked for, rising."""
    images: UInt8[np.ndarray, "b s s 3"]
    """RGB pixels, row by row those of ``indices``."""
    bad: list[tuple[int, BadImage]]
    """Position and reason of each image that was met on the way and could not be decoded."""
    image_sizes: Int64[np.ndarray, "b 2"]
    """Width and height of the upright originals, in pixels; 0 where ``load`` does not tell."""
    decode_seconds: float
    """Time that the workers spent on these images, summed over workers."""
    notes: list[tuple[int, str]] = field(default_factory=list)
    """Position and words for each odd thing about the files of ``indices``."""


_Load = Callable[[ImageRef], np.ndarray | Loaded]
_Result = tuple[np.ndarray | Loaded | BadImage, float]


def load_batches(
    refs: Sequence[ImageRef],
    load: _Load,
    *,
    batch_size: int,
    num_workers: int | None = None,
    prefetch: int = 3,
    isolated: bool = False,
    also: Callable[[ImageRef], Loaded] | None = None,
) -> Generator[Batch, None, None]:
    """Batches of decoded images in the order of ``refs``; every position comes up once, in ``indices`` or in ``bad``.

    Batches hold ``batch_size`` good images, except the last. Where ``batch_size`` images in a row are bad and no good
    one is waiting, they are yielded as a batch of no images.

    Closing the generator, or an exception in ``load``, cancels what is queued and waits only for the images that are
    being decoded at that moment.

    Args:
        refs: Images to load.
        load: Gives uint8 [s, s, 3], the same size for all, alone or as ``Loaded``, or raises ``BadImage``; called from
            several threads. ``Preprocess.load`` and ``Preprocess.load_image`` are such.
        batch_size: Good images per batch.
        num_workers: Threads or processes; default one per core, 0 loads in the caller's thread.
        prefetch: Batches that are decoded ahead.
        isolated: Load in processes, so that a crash or a hang costs one image; ``load`` must be picklable then, and
            give ``Loaded``.
        also: A second way to load, in one more process where there are processes (``load_in_processes``).

    Raises:
        ConfigError: If ``batch_size``, ``num_workers`` or ``prefetch`` is out of range.
    """
    check_numbers(
        batch_size=(batch_size, BATCH_SIZE), num_workers=(num_workers, NUM_WORKERS), prefetch=(prefetch, BATCH_SIZE)
    )
    workers = default_workers() if num_workers is None else num_workers
    look_ahead = batch_size * prefetch
    results: Generator[_Result, None, None]
    if not workers:
        results = (_timed(load, ref) for ref in refs)
    elif isolated:
        # No more processes than images to be shared out among them.
        workers = max(1, min(workers, len(refs) // _IMAGES_WORTH_A_PROCESS))
        results = load_in_processes(
            refs,
            load,  # type: ignore[arg-type]
            num_workers=workers,
            look_ahead=look_ahead,
            also=also,
        )
    else:
        results = _in_threads(refs, load, workers, look_ahead)
    return _collect(results, batch_size)


def default_workers() -> int:
    """One thread per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _collect(results: Generator[_Result, None, None], batch_size: int) -> Generator[Batch, None, None]:
    indices, images, sizes = list[int](), list[np.ndarray](), list[tuple[int, int]]()
    bad, notes, seconds = list[tuple[int, BadImage]](), list[tuple[int, str]](), 0.0
    side = 0
    try:
        for position, (result, took) in enumerate(results):
            seconds += took
            if isinstance(result, BadImage):
                bad.append((position, result))
            else:
                pixels, size, odd = result if isinstance(result, Loaded) else Loaded(result, (0, 0))
                notes += [(position, words) for words in odd]
                indices.append(position)
                images.append(pixels)
                sizes.append(size)
                side = len(pixels)
            if len(images) == batch_size or (not images and len(bad) == batch_size):
                yield _batch(indices, images, sizes, bad, notes, seconds, side)
                indices, images, sizes, bad, notes, seconds = [], [], [], [], [], 0.0
        if images or bad:
            yield _batch(indices, images, sizes, bad, notes, seconds, side)
    finally:
        results.close()


def _in_threads(refs: Sequence[ImageRef], load: _Load, workers: int, look_ahead: int) -> Generator[_Result, None, None]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vitembed-decode")
    pending = deque[Future[_Result]]()
    try:
        for ref in refs:
            pending.append(pool.submit(_timed, load, ref))
            if len(pending) >= look_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _timed(load: _Load, ref: ImageRef) -> _Result:
    start = time.perf_counter()
    try:
        result: np.ndarray | Loaded | BadImage = load(ref)
    except BadImage as error:
        result = error
    return result, time.perf_counter() - start


def _batch(
    indices: list[int],
    images: list[np.ndarray],
    sizes: list[tuple[int, int]],
    bad: list[tuple[int, BadImage]],
    notes: list[tuple[int, str]],
    seconds: float,
    side: int,
) -> Batch:
    pixels = np.stack(images) if images else np.zeros((0, side, side, 3), np.uint8)
    image_sizes = np.array(sizes, np.int64).reshape(-1, 2)
    return Batch(np.array(indices, np.int64), pixels, bad, image_sizes, seconds, notes)
