"""Decode once, train many epochs: every image squashed to one uint8 square, on disk, in memory, or decoded anew."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from vitembed.errors import BadImage, DataError
from vitembed.images.cache_files import Rows, bytes_of, find_or_build, gigabytes
from vitembed.images.decode import DecodeOptions
from vitembed.images.loaded import note_lines
from vitembed.images.loader import load_batches
from vitembed.images.memory import available_bytes
from vitembed.images.on_demand import OnDemandImages, Squash
from vitembed.images.source import ImageRef

_BATCH = 64

log = logging.getLogger("vitembed")


@dataclass(frozen=True)
class ImageCache:
    """Good images of a set, in its order, as one array."""

    images: UInt8[np.ndarray, "n s s 3"] | OnDemandImages
    """Upright RGB, both sides squashed to s; a read-only memory map when on disk; ask for rows by ``images[rows]``."""
    aspect: Float32[np.ndarray, " n"]
    """Width / height of each upright original, so that crops can undo the squash."""
    refs: list[ImageRef]
    """Where each row comes from."""
    bad: list[BadImage]
    """Images that could not be decoded and have no row."""

    def __len__(self) -> int:
        return len(self.refs)

    def close(self) -> None:
        """Stop what decodes in the background; the cache may still be used."""
        if isinstance(self.images, OnDemandImages):
            self.images.close()

    @staticmethod
    def estimate_bytes(n: int, size: int) -> int:
        """Bytes that a cache of n images takes."""
        return bytes_of(n, size)

    @classmethod
    def build(
        cls,
        refs: Sequence[ImageRef],
        directory: str | os.PathLike[str],
        *,
        size: int,
        options: DecodeOptions = DecodeOptions(),
        num_workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageCache:
        """Find the cache of these images in ``directory``, or build it.

        A build that was interrupted goes on where it was (a killed one loses at most the last 10 seconds). Several
        processes may ask at once: one builds, the others wait. A cache whose files are not whole is built anew.

        Args:
            refs: Images, in the order of the rows.
            directory: Holds one folder per cache; made if needed.
            size: Side of the squashed squares, in pixels.
            options: How to decode; JPEG may decode scaled, at twice ``size`` or more.
            num_workers: Decoding processes; default one per core; 0: none, all in the caller's thread.
            progress: Called with images done and images in all, after each batch.

        Raises:
            DataError: If the disk has no room for it, or cannot be written.
        """
        refs = list(refs)
        rows = find_or_build(
            Path(directory),
            refs,
            size=size,
            variant=asdict(options),
            make_rows=functools.partial(_decode_all, refs, size, options, num_workers, True),
            progress=progress,
        )
        return _cache(rows, refs)

    @classmethod
    def in_memory(
        cls,
        refs: Sequence[ImageRef],
        *,
        size: int,
        options: DecodeOptions = DecodeOptions(),
        num_workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageCache:
        """Build the same in memory, with nothing on disk.

        Raises:
            DataError: If the machine has not the memory.
        """
        refs = list(refs)
        needed, available = cls.estimate_bytes(len(refs), size), available_bytes()
        if available and needed > available * 3 // 4:
            raise DataError(
                f"{len(refs)} images at {size} px take {gigabytes(needed)} of memory, {gigabytes(available)} are free: "
                "keep the cache on disk (--cache disk), make the cached images smaller (data.cache_size), "
                "or keep nothing (--cache off: slower, every pass decodes anew)"
            )
        # Untouched pages cost nothing, so the room of bad images need not be given back.
        images = np.empty((len(refs), size, size, 3), np.uint8)
        aspect = np.empty(len(refs), np.float32)
        num_rows, bad = 0, dict[int, str]()
        for rows in _decode_all(refs, size, options, num_workers, True, 0):
            end = num_rows + len(rows.images)
            images[num_rows:end], aspect[num_rows:end] = rows.images, rows.aspect
            num_rows = end
            bad |= rows.bad
            if progress is not None:
                progress(num_rows + len(bad), len(refs))
        return _cache(Rows(images[:num_rows], aspect[:num_rows], bad), refs)

    @classmethod
    def on_demand(
        cls,
        refs: Sequence[ImageRef],
        directory: str | os.PathLike[str],
        *,
        size: int,
        options: DecodeOptions = DecodeOptions(),
        num_workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ImageCache:
        """Keep no pixels: every image is decoded each time it is asked for, to the same pixels as ``build`` keeps.

        First each is decoded once to find the bad ones, as a row that fails later ends a run. What that found is kept
        in ``directory`` (4 bytes per image), goes on after an interruption, and holds while the files stay as they are.

        Args:
            refs: Images, in the order of the rows.
            directory: As in ``build``.
            size: Side of the squashed squares, in pixels.
            options: How to decode.
            num_workers: Decoding processes; default one per core; 0: none, all in the caller's thread.
            progress: Called with images done and images in all, after each batch.

        Raises:
            DataError: If the directory cannot be written.
        """
        refs = list(refs)
        rows = find_or_build(
            Path(directory),
            refs,
            size=0,
            variant={**asdict(options), "checked_at": size},
            make_rows=functools.partial(_decode_all, refs, size, options, num_workers, False),
            progress=progress,
        )
        checked = _cache(rows, refs)
        images = OnDemandImages(checked.refs, size=size, options=options, num_workers=num_workers)
        return ImageCache(images, checked.aspect, checked.refs, checked.bad)


def _cache(rows: Rows, refs: list[ImageRef]) -> ImageCache:
    good = [ref for position, ref in enumerate(refs) if position not in rows.bad]
    bad = [BadImage(refs[position].path, rows.bad[position]) for position in sorted(rows.bad)]
    return ImageCache(rows.images, rows.aspect, good, bad)


def _decode_all(
    refs: list[ImageRef], size: int, options: DecodeOptions, num_workers: int | None, keep: bool, start: int
) -> Generator[Rows, None, None]:
    """Rows of ``refs[start:]``; without ``keep`` images are decoded and forgotten."""
    todo, side = refs[start:], size if keep else 0
    load = Squash(size, options, keep)
    batches = load_batches(todo, load, batch_size=_BATCH, num_workers=num_workers, isolated=True)
    notes: list[tuple[str, str]] = []
    with contextlib.closing(batches):
        for batch in batches:
            notes += [(todo[place].path, words) for place, words in batch.notes]
            images = batch.images.reshape(len(batch.indices), side, side, 3)  # a batch of only bad images knows no size
            width, height = batch.image_sizes.T
            aspect = (width / height).astype(np.float32)
            yield Rows(images, aspect, {start + i: error.reason for i, error in batch.bad})
    for line in note_lines(notes):
        log.warning("%s", line)
