"""The images that a run learns from, listed in its folder: what came, went or changed since is known later.

A file counts as unchanged while size and times are those of the list, else if its content is: all of a file of up to
1 MB is compared, 16 parts of a larger one. So a copied or checked out folder is the same one, and a file that was
overwritten by another of the same size is not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitembed.atomic import atomic_path
from vitembed.errors import printable
from vitembed.images.source import ImageRef
from vitembed.pretrain.keep.files import IMAGES_FILE

_FORMAT = 1
_WHOLE_BYTES = 1 << 20
_PARTS, _PART_BYTES = 16, 1 << 14
_READERS = 8


@dataclass(frozen=True)
class ListedImage:
    """One image of a run as it was when the run began."""

    path: str
    size: int
    """In bytes; -1: it was gone."""
    times: tuple[int, int]
    """When content and status changed last, in ns."""
    content: str
    """Hash of what was read of it, in hex; empty: it was gone."""
    facts: list[str | None]
    """Label, part of the split and group, of fine-tuning."""


@dataclass(frozen=True)
class ImageChanges:
    """What is different from the list."""

    added: list[str]
    removed: list[str]
    """Not among the images of today; the file may still be there."""
    changed: list[str]
    lost: list[str]
    """Those of the list that are gone from the disk, or changed: the run cannot be finished on them."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        parts = [("added", self.added), ("removed", self.removed), ("changed", self.changed)]
        first = next(paths[0] for _, paths in parts if paths)
        return f"{', '.join(f'{len(paths):,} {word}' for word, paths in parts if paths)} (first: {printable(first)})"


def write_image_list(run_dir: Path, refs: Sequence[ImageRef], facts: Sequence[Sequence[str | None]] = ()) -> None:
    """Write the list of a new run.

    Args:
        run_dir: Its folder.
        refs: Its images.
        facts: What else is known of each image.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        seen = list(pool.map(_look, [ref.path for ref in refs], chunksize=64))
    with atomic_path(run_dir / IMAGES_FILE) as temp, temp.open("w", encoding="ascii") as file:
        file.write(json.dumps({"format": _FORMAT, "num_images": len(refs)}) + "\n")
        for row, (ref, (size, times, content)) in enumerate(zip(refs, seen, strict=True)):
            known = list(facts[row]) if facts else []
            file.write(json.dumps([ref.path, size, *times, content, *known]) + "\n")


def read_image_list(run_dir: Path) -> list[ListedImage] | None:
    """The images of a run; None where there is no whole list, as of runs of earlier versions."""
    try:
        with (run_dir / IMAGES_FILE).open(encoding="ascii") as file:
            head = json.loads(next(file))
            rows = [json.loads(line) for line in file]
        if head["format"] != _FORMAT or head["num_images"] != len(rows):
            return None
        return [
            ListedImage(str(path), int(size), (int(modified), int(status)), str(content), facts)
            for path, size, modified, status, content, *facts in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None


def changes_since(listed: Sequence[ListedImage], refs: Sequence[ImageRef]) -> ImageChanges:
    """Compare the list with the images of today."""
    today, then = {ref.path for ref in refs}, {image.path for image in listed}
    with ThreadPoolExecutor(_READERS) as pool:
        same = list(pool.map(_is_same, listed, chunksize=64))
    lost = [image.path for image, is_same in zip(listed, same, strict=True) if not is_same]
    return ImageChanges(
        added=[ref.path for ref in refs if ref.path not in then],
        removed=[image.path for image in listed if image.path not in today],
        changed=[path for path in lost if path in today],
        lost=lost,
    )


def _look(path: str) -> tuple[int, tuple[int, int], str]:
    """Size, times and content of a file."""
    try:
        with open(path, "rb") as file:  # a plain string, which may hold surrogates
            status = os.fstat(file.fileno())
            return status.st_size, (status.st_mtime_ns, status.st_ctime_ns), _content(file.fileno(), status.st_size)
    except (OSError, ValueError):  # it vanished; decoding says so
        return -1, (-1, -1), ""


def _is_same(image: ListedImage) -> bool:
    try:
        status = os.stat(image.path)  # noqa: PTH116  # a plain string, which may hold surrogates
    except (OSError, ValueError):
        return image.size == -1
    if status.st_size != image.size:
        return False
    if (status.st_mtime_ns, status.st_ctime_ns) == image.times:
        return True
    return _look(image.path)[2] == image.content


def _content(descriptor: int, size: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    if size <= _WHOLE_BYTES:
        spans = [(0, size)]
    else:
        spans = [((size - _PART_BYTES) * part // (_PARTS - 1), _PART_BYTES) for part in range(_PARTS)]
    for start, length in spans:
        os.lseek(descriptor, start, os.SEEK_SET)
        while length > 0 and (data := os.read(descriptor, length)):
            digest.update(data)
            length -= len(data)
    return digest.hexdigest()
