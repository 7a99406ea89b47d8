"""The files of an image cache: found whole or not at all, built by one process at a time, resumed after a kill.

A cache is a folder named by a hash of what it was made from, so an unchanged set of files finds it again and a changed
one never does: ``pixels.u8`` (uint8 [n, s, s, 3], raw), ``aspect.f32`` (float32 [n], raw, little-endian) and
``cache.json`` (format, key, number of rows, positions and reasons of bad images). It is written as ``NAME.partial``
with a ``progress.json`` and takes its name only when whole. The two that were used last are kept.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32, UInt8

from vitembed.atomic import atomic_path, fsync_directory, make_folders
from vitembed.errors import DamagedFile, DataError, printable
from vitembed.images.source import ImageRef
from vitembed.lock import locked
from vitembed.seal import read_document

_FORMAT = 1
_SAVE_SECONDS = 10.0
SPARE_BYTES = 64 << 20
"""Left free on the disk."""
_KEPT_OTHERS = 1
_NAME = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"(\.tmp\.\d+\.)?(pixels\.u8|aspect\.f32|cache\.json|progress\.json)")
_WAYS_ON = (
    "make room and run again, it goes on where it was; or make the cached images smaller (data.cache_size), "
    "or keep nothing (--cache off)"
)


@dataclass(frozen=True)
class Rows:
    """Some images of a set, in its order."""

    images: UInt8[np.ndarray, "n s s 3"]
    """The good ones."""
    aspect: Float32[np.ndarray, " n"]
    """Width / height of the originals."""
    bad: dict[int, str]
    """Reason by position in the set, of those that have no row."""


def bytes_of(num_rows: int, size: int) -> int:
    """Bytes on disk of so many rows."""
    return num_rows * (_pixel_bytes(size) + 4)


def find_or_build(
    directory: Path,
    refs: Sequence[ImageRef],
    *,
    size: int,
    variant: dict[str, Any],
    make_rows: Callable[[int], Generator[Rows, None, None]],
    progress: Callable[[int, int], None] | None,
) -> Rows:
    """All rows of these images: a read-only memory map, of a cache that is there or is built now.

    Args:
        directory: Holds the caches, one folder each.
        refs: Images, in the order of the rows.
        size: Side of a row's image; 0 keeps no pixels, only which images are good, and their aspect.
        variant: Whatever else the rows depend on, as JSON types.
        make_rows: Gives the rows of ``refs[start:]``.
        progress: Called with images done and images in all.

    Raises:
        DataError: If the disk has no room or cannot be written.
    """
    key = _key(refs, size, variant)
    target = directory / key[:32]
    try:
        make_folders(directory)
        with locked(target.with_suffix(".lock")):
            if _open(target, key, size, len(refs)) is None:
                _build(target, key, size, len(refs), make_rows, progress)
                _forget_others(target)
            rows = _open(target, key, size, len(refs))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = f"the disk is full; {_WAYS_ON}" if full else error.strerror
        raise DataError(f"image cache in {printable(directory)}: {cause}") from error
    assert rows is not None, "a cache that was just published is whole"
    return rows


def _key(refs: Sequence[ImageRef], size: int, variant: dict[str, Any]) -> str:
    """Hash of everything that the rows depend on: which files, as they are now, and what is done to them."""
    digest = hashlib.sha256(json.dumps([_FORMAT, size, variant], sort_keys=True).encode())
    for ref in refs:
        try:
            status = os.stat(ref.path)  # noqa: PTH116 - a plain string, which may hold surrogates
            # The time of the last change of status as well: who overwrites a file can set back its other times.
            now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except (OSError, ValueError):
            now = (-1, -1, -1)
        digest.update(json.dumps([ref.path, ref.frame, *now]).encode())
    return digest.hexdigest()


def _open(target: Path, key: str, size: int, num_images: int) -> Rows | None:
    """The rows if the cache is there and whole, else None."""
    meta = _read_json(target / "cache.json")
    if meta is None or meta.get("format") != _FORMAT or meta.get("key") != key:
        return None
    num_rows, bad = int(meta["rows"]), _bad_from_json(meta["bad"])
    pixels, aspect = target / "pixels.u8", target / "aspect.f32"
    whole = _file_size(pixels) == num_rows * _pixel_bytes(size) and _file_size(aspect) == num_rows * 4
    if not whole or num_rows + len(bad) != num_images:
        return None
    shape = (num_rows, size, size, 3)
    # An empty file cannot be mapped.
    images = np.memmap(pixels, np.uint8, "r", shape=shape) if num_rows and size else np.zeros(shape, np.uint8)
    return Rows(images, np.fromfile(aspect, "<f4").astype(np.float32), bad)


def _build(
    target: Path,
    key: str,
    size: int,
    num_images: int,
    make_rows: Callable[[int], Generator[Rows, None, None]],
    progress: Callable[[int, int], None] | None,
) -> None:
    partial = target.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    done, bad = _resume(partial, key, size)
    _check_room(partial, bytes_of(num_images - done, size))

    def save() -> None:
        # Rows first, then the count: what is counted is on disk.
        for file in (pixels, aspect):
            file.flush()
            os.fsync(file.fileno())
        counted = [[position, reason] for position, reason in sorted(bad.items()) if position < done]
        _write_json(partial / "progress.json", {"key": key, "done": done, "bad": counted})

    num_rows = done - len(bad)
    with (
        _open_at(partial / "pixels.u8", num_rows * _pixel_bytes(size)) as pixels,
        _open_at(partial / "aspect.f32", num_rows * 4) as aspect,
    ):
        saved = time.monotonic()
        try:
            with contextlib.closing(make_rows(done)) as batches:
                for rows in batches:
                    pixels.write(rows.images.tobytes())
                    aspect.write(rows.aspect.astype("<f4").tobytes())
                    bad |= rows.bad
                    done += len(rows.images) + len(rows.bad)
                    if time.monotonic() - saved > _SAVE_SECONDS:
                        save()
                        saved = time.monotonic()
                    if progress is not None:
                        progress(done, num_images)
        except BaseException:
            # A full disk may also refuse this; the last save then holds.
            with contextlib.suppress(OSError):
                save()
            raise
        save()
    listed = [[position, reason] for position, reason in sorted(bad.items())]
    _write_json(partial / "cache.json", {"format": _FORMAT, "key": key, "rows": done - len(bad), "bad": listed})
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)
    fsync_directory(target.parent)


def _forget_others(target: Path) -> None:
    """Delete the caches beside this one but the last used: a set that grows daily would fill the disk otherwise.

    A cache that is being built is left alone. One that is mapped stays readable to who has it, and where the system
    refuses to delete a mapped file, what is left is not whole and so never used.
    """
    others = [lock for lock in target.parent.glob("*.lock") if lock.stem != target.name and _is_cache(lock)]
    for lock in sorted(others, key=lambda lock: lock.stat().st_mtime_ns, reverse=True)[_KEPT_OTHERS:]:
        # The lock itself stays: another process may be waiting for it.
        with contextlib.suppress(BlockingIOError), locked(lock, wait=False):
            for folder in (lock.with_suffix(""), lock.with_suffix(".partial")):
                shutil.rmtree(folder, ignore_errors=True)


def _is_cache(lock: Path) -> bool:
    """Whether what this lock is named after is a cache of ours, or nothing yet: a user may have locks of his own."""
    folders = [lock.with_suffix(""), lock.with_suffix(".partial")]
    files = {file.name for folder in folders if folder.is_dir() for file in folder.iterdir()}
    return _NAME.fullmatch(lock.stem) is not None and all(_FILE.fullmatch(name) for name in files)


def _resume(partial: Path, key: str, size: int) -> tuple[int, dict[int, str]]:
    """Images done, and the bad ones among them, of a build of the same cache that was interrupted."""
    state = _read_json(partial / "progress.json")
    if state is None or state.get("key") != key:
        return 0, {}
    done, bad = int(state["done"]), _bad_from_json(state["bad"])
    num_rows = done - len(bad)
    pixels, aspect = _file_size(partial / "pixels.u8"), _file_size(partial / "aspect.f32")
    return (done, bad) if pixels >= num_rows * _pixel_bytes(size) and aspect >= num_rows * 4 else (0, {})


def _open_at(path: Path, position: int) -> BinaryIO:
    """Open the file at its end, which is cut to its first ``position`` bytes."""
    path.touch()
    os.truncate(path, position)
    return path.open("ab")


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise DataError(
            f"the image cache needs {gigabytes(needed)} in {printable(folder.parent)}, {gigabytes(free)} are free: "
            "make room there (or choose another workspace), make the cached images smaller (data.cache_size), "
            "or keep nothing (--cache off: slower, every pass decodes anew)"
        )


def gigabytes(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / 1e9:.1f} GB"


def _pixel_bytes(size: int) -> int:
    return size * size * 3


def _bad_from_json(listed: list[Any]) -> dict[int, str]:
    return {int(position): str(reason) for position, reason in listed}


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = read_document(path)
    except (FileNotFoundError, DamagedFile):
        return None
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_path(path) as temp:
        temp.write_text(json.dumps(value), encoding="utf-8")
