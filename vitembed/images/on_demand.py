"""Images decoded anew each time they are asked for: training on sets that fit neither disk nor memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import UInt8
from PIL.Image import Resampling

from vitembed.errors import BadImage, DataError
from vitembed.images.decode import Decoded, DecodeOptions, decode_image
from vitembed.images.loaded import Loaded
from vitembed.images.loader import default_workers
from vitembed.images.source import ImageRef


def squashed(decoded: Decoded, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """The whole image as a square of ``size`` pixels."""
    return np.array(decoded.image.resize((size, size), Resampling.BICUBIC, box=decoded.box))


@dataclass(frozen=True)
class Squash:
    """Loads an image as such a square, wherever it is called: picklable, for processes that decode.

    Args:
        size: Side of the square in pixels.
        options: How to decode.
        keep: Off: decode it whole, to see that this can be done, and give no pixels.
    """

    size: int
    options: DecodeOptions = field(default_factory=DecodeOptions)
    keep: bool = True

    def __call__(self, ref: ImageRef) -> Loaded:
        """The square, and the size of the upright original."""
        decoded = decode_image(ref, self.options, target_px=self.size)
        if self.options.rules == 1:
            decoded = replace(decoded, box=None)
        pixels = squashed(decoded, self.size) if self.keep else np.empty((0, 0, 3), np.uint8)
        return Loaded(pixels, decoded.full_size, decoded.notes)


class OnDemandImages:
    """Stands in for the array of a cache's images: ``images[rows]`` decodes these rows, a thread per core.

    Nothing is kept, and no more is decoded than was asked for: memory holds these rows and one image per thread.

    Args:
        refs: The image of each row; each could be decoded when they were checked.
        size: Side of the squashed squares, in pixels.
        options: How to decode.
        num_workers: Threads; none: one per core; 0: in the caller's thread.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        refs: Sequence[ImageRef],
        *,
        size: int,
        options: DecodeOptions = DecodeOptions(),
        num_workers: int | None = None,
    ) -> None:
        self.refs = refs
        self.options = options
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.shape = (len(refs), size, size, 3)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, rows: np.ndarray | slice | Sequence[int]) -> UInt8[np.ndarray, "b s s 3"]:
        """The images of these rows, in their order, the same pixels each time.

        Raises:
            DataError: If one of them cannot be decoded any more: never is another put in its place.
            CancelledError: If ``close`` was called meanwhile.
        """
        wanted: list[int] = np.arange(len(self))[rows].tolist()
        images = np.empty((len(wanted), *self.shape[1:]), np.uint8)

        def fill(place: int, row: int) -> None:
            images[place] = self._decode(self.refs[row])

        if self.num_workers == 0:
            for place, row in enumerate(wanted):
                fill(place, row)
            return images
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="vitembed-decode")
            pending: list[Future[None]] = [self._pool.submit(fill, place, row) for place, row in enumerate(wanted)]
        try:
            for future in pending:
                future.result()
        except BaseException:
            for future in pending:
                future.cancel()
            raise
        return images

    def _decode(self, ref: ImageRef) -> UInt8[np.ndarray, "s s 3"]:
        try:
            return Squash(self.shape[1], self.options)(ref).pixels
        except BadImage as error:
            raise DataError(
                f"{error}; it could be read when the run checked its images, and nothing is put in its place: bring "
                "the file back and repeat the command (the run goes on where it was saved), or start anew with --fresh"
            ) from error

    def close(self) -> None:
        """End the threads after the images that they are at; what else was asked for is cancelled. Use may go on."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
