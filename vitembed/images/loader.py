"""Image references to batches of pixels, decoded by threads ahead of the model, in order, bad images set aside."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from vitembed.errors import BadImage
from vitembed.images.source import ImageRef


@dataclass(frozen=True)
class Batch:
    """Decoded images with their positions, so that pixels can never slip to a neighbour's name."""

    indices: Int64[np.ndarray, " b"]
    """Positions in the references that were asked for, rising."""
    images: UInt8[np.ndarray, "b s s 3"]
    """RGB pixels, row by row those of ``indices``."""
    bad: list[tuple[int, BadImage]]
    """Position and reason of each image that was met on the way and could not be decoded."""
    decode_seconds: float
    """Time that the workers spent on these images, summed over workers."""


_Result = tuple[np.ndarray | BadImage, float]


def load_batches(
    refs: Sequence[ImageRef],
    load: Callable[[ImageRef], np.ndarray],
    *,
    batch_size: int,
    num_workers: int | None = None,
    prefetch: int = 3,
) -> Generator[Batch, None, None]:
    """Batches of decoded images in the order of ``refs``; every position comes up once, in ``indices`` or in ``bad``.

    Batches hold ``batch_size`` good images, except the last. Where ``batch_size`` images in a row are bad and no good
    one is waiting, they are yielded as a batch of no images.

    Closing the generator, or an exception in ``load``, cancels what is queued and waits only for the images that are
    being decoded at that moment.

    Args:
        refs: Images to load.
        load: Gives uint8 [s, s, 3], the same size for all, or raises ``BadImage``; called from several threads.
            ``Preprocess.load`` is one.
        batch_size: Good images per batch.
        num_workers: Threads (Pillow frees the interpreter lock while decoding); default one per core, 0 loads in the
            caller's thread.
        prefetch: Batches that are decoded ahead.

    Raises:
        ValueError: If ``batch_size`` or ``prefetch`` is below 1 or ``num_workers`` below 0.
    """
    if batch_size < 1 or prefetch < 1 or (num_workers is not None and num_workers < 0):
        raise ValueError(
            f"batch_size ({batch_size}) and prefetch ({prefetch}) must be at least 1, "
            f"num_workers ({num_workers}) at least 0"
        )
    workers = default_workers() if num_workers is None else num_workers
    return _collect(refs, load, batch_size, workers, batch_size * prefetch)


def default_workers() -> int:
    """One thread per core that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _collect(
    refs: Sequence[ImageRef], load: Callable[[ImageRef], np.ndarray], batch_size: int, workers: int, look_ahead: int
) -> Generator[Batch, None, None]:
    indices, images, bad, seconds = list[int](), list[np.ndarray](), list[tuple[int, BadImage]](), 0.0
    side = 0
    results = _ordered(refs, load, workers, look_ahead) if workers else (_timed(load, ref) for ref in refs)
    try:
        for position, (result, took) in enumerate(results):
            seconds += took
            if isinstance(result, BadImage):
                bad.append((position, result))
            else:
                indices.append(position)
                images.append(result)
                side = len(result)
            if len(images) == batch_size or (not images and len(bad) == batch_size):
                yield _batch(indices, images, bad, seconds, side)
                indices, images, bad, seconds = [], [], [], 0.0
        if images or bad:
            yield _batch(indices, images, bad, seconds, side)
    finally:
        results.close()


def _ordered(
    refs: Sequence[ImageRef], load: Callable[[ImageRef], np.ndarray], workers: int, look_ahead: int
) -> Generator[_Result, None, None]:
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


def _timed(load: Callable[[ImageRef], np.ndarray], ref: ImageRef) -> _Result:
    start = time.perf_counter()
    try:
        result: np.ndarray | BadImage = load(ref)
    except BadImage as error:
        result = error
    return result, time.perf_counter() - start


def _batch(
    indices: list[int], images: list[np.ndarray], bad: list[tuple[int, BadImage]], seconds: float, side: int
) -> Batch:
    pixels = np.stack(images) if images else np.zeros((0, side, side, 3), np.uint8)
    return Batch(np.array(indices, np.int64), pixels, bad, seconds)
