"""Where decoded images are kept between epochs: in memory, on disk, or nowhere; by what the machine has free."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vitembed.images.cache import ImageCache
from vitembed.images.cache_files import SPARE_BYTES, bytes_of, gigabytes
from vitembed.images.decode import DecodeOptions
from vitembed.images.memory import available_bytes
from vitembed.images.source import ImageRef

FEW_BYTES = 1 << 30
"""Up to this, and a quarter of the available memory, a cache is so quickly built that it is not worth a file."""


def choose_place(
    num_images: int, size: int, directory: Path, *, asked: str = "auto", alone: bool = True
) -> tuple[str, str]:
    """``ram``, ``disk`` or ``off`` for a cache of so many images, and the estimate and the choice in words.

    ``auto`` is memory while they are few; then disk, where a cache is built once for all runs and mapped (the system
    keeps what fits in memory); then half of the available memory; else nothing is kept.

    Args:
        num_images: Images.
        size: Side of a kept image in pixels.
        directory: Where the cache would be; need not exist yet.
        asked: What the user wants: ``auto``, or the place itself.
        alone: Whether one process uses it; several share one on disk.
    """
    needed, memory, disk = bytes_of(num_images, size), available_bytes(), free_bytes(directory)
    sizes = f"{gigabytes(needed)}; {gigabytes(memory)} of memory and {gigabytes(disk)} of disk are free"
    if asked == "off":
        return "off", f"kept nowhere, every pass decodes anew (a cache would take {sizes})"
    if asked == "disk":
        return "disk", f"kept in {directory} ({sizes})"
    if asked == "ram":
        return ("ram", f"kept in memory ({sizes})") if alone else _shared(directory, sizes)
    if alone and needed <= min(FEW_BYTES, memory // 4):
        return "ram", f"kept in memory ({sizes})"
    if needed + SPARE_BYTES <= disk:
        return "disk", f"kept in {directory} ({sizes})"
    if alone and needed <= memory // 2:
        return "ram", f"kept in memory, as the disk has no room ({sizes})"
    return "off", f"kept nowhere, as there is no room: every pass decodes anew ({sizes})"


def _shared(directory: Path, sizes: str) -> tuple[str, str]:
    return "disk", f"kept in {directory} and not in memory, as several processes share them ({sizes})"


def open_cache(
    place: str,
    refs: Sequence[ImageRef],
    directory: Path,
    *,
    size: int,
    options: DecodeOptions = DecodeOptions(),
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageCache:
    """The cache of these images at ``ram``, ``disk`` or ``off``, found or built; the same pixels from each.

    Raises:
        DataError: If there is no room for it.
    """
    if place == "ram":
        return ImageCache.in_memory(refs, size=size, options=options, num_workers=num_workers, progress=progress)
    build = ImageCache.build if place == "disk" else ImageCache.on_demand
    return build(refs, directory, size=size, options=options, num_workers=num_workers, progress=progress)


def free_bytes(directory: Path) -> int:
    """Free space of the disk that ``directory`` lies on or would lie on."""
    for folder in (directory, *directory.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            break
    return 0
