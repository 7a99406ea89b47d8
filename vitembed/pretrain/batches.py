"""Batches of decoded images for a training run: every batch follows from the seed and the step alone.

So a run that was interrupted goes on with the very batches it would have seen, without replaying the earlier ones.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitembed.images.cache import ImageCache


class ImageBatch(TypedDict):
    """What a training step gets."""

    images: Tensor
    """uint8 [b, s, s, c]: whole images squashed to squares."""
    aspect: Tensor
    """float32 [b]: width over height of the originals."""


class BatchStream:
    """An endless stream of batches; each pass over the images has its own order, the last odd images are left out.

    Args:
        cache: Decoded images.
        batch_size: Images per step and process; fewer when there are not so many images.
        seed: Decides every order.
        rank: This process among ``world_size``.
        world_size: Processes that share the images.
        first_step: Called at the start of iteration; tells which step comes next.
        subset: Rows of the cache that are trained on, [m]; none: all.
        pin_memory: Put batches where a CUDA GPU fetches them by itself, so that no step waits for the copy.
    """

    def __init__(
        self,
        cache: ImageCache,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_step: Callable[[], int] = lambda: 0,
        pin_memory: bool = False,
        subset: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.cache = cache
        self.subset = subset
        self.num_images = len(cache.refs) if subset is None else len(subset)
        self.batch_size = min(batch_size, self.num_images // world_size)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.first_step = first_step
        self.pin_memory = pin_memory
        self.steps_per_epoch = self.num_images // (self.batch_size * world_size)
        # One tuple, so that a thread sees the old pair or the new one.
        self._last_order: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def rows(self, step: int) -> npt.NDArray[np.int64]:
        """Rows of the cache that this process sees in a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = (place * self.world_size + self.rank) * self.batch_size
        return self._order(epoch)[start : start + self.batch_size]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """All rows in the order of an epoch, kept until another is asked for: a step is not to cost an epoch's work."""
        known, order = self._last_order
        if known != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
            if self.subset is not None:
                order = self.subset[order]
            self._last_order = (epoch, order)
        return order

    def batch(self, step: int) -> ImageBatch:
        """The batch of a step."""
        rows = self.rows(step)
        images = torch.from_numpy(np.ascontiguousarray(self.cache.images[rows]))
        aspect = torch.from_numpy(np.ascontiguousarray(self.cache.aspect[rows]))
        if self.pin_memory:
            images, aspect = images.pin_memory(), aspect.pin_memory()
        return {"images": images, "aspect": aspect}

    def __iter__(self) -> Iterator[ImageBatch]:
        """Batches from ``first_step`` on, read two ahead by a thread."""
        ready: queue.Queue[ImageBatch | BaseException] = queue.Queue(maxsize=2)
        done = threading.Event()

        def put(item: ImageBatch | BaseException) -> None:
            while not done.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def read() -> None:
            step = self.first_step()
            try:
                while not done.is_set():
                    put(self.batch(step))
                    step += 1
            except BaseException as error:  # handed to the training thread, which raises it
                put(error)

        reader = threading.Thread(target=read, name="vitembed-batches", daemon=True)
        reader.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            done.set()
            self.cache.close()
            reader.join()
