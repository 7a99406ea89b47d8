"""What an update has to do: the folder as it is against the catalogue as it was, mostly by stat calls alone."""
# ruff: noqa: PTH100
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from vitembed.collection.catalog import Row
from vitembed.errors import BadImage
from vitembed.images.extras import is_installed_now
from vitembed.images.formats import open_regular
from vitembed.images.source import FileEntry, is_image

HASH_BYTES = 20
_LOOK_THREADS = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Work:
    """An image to embed."""

    entry: FileEntry
    known: bool
    """Whether the path is in the catalogue, so that this is a change."""
    content_hash: bytes | None
    """None: not read yet."""


@dataclass
class Plan:
    """The steps of an update, in the order in which they are taken."""

    deleted: list[int] = field(default_factory=list)
    """Rows whose file is gone."""
    moved: list[tuple[int, FileEntry]] = field(default_factory=list)
    """Rows whose file is now elsewhere, and where."""
    touched: list[tuple[int, FileEntry]] = field(default_factory=list)
    """Rows whose file has a new stat and the same content."""
    copied: list[tuple[Row, Work]] = field(default_factory=list)
    """Rows whose vector serves for another file of the same content."""
    bad: list[tuple[FileEntry, BadImage]] = field(default_factory=list)
    other: list[FileEntry] = field(default_factory=list)
    embed: list[Work] = field(default_factory=list)
    known_bad: list[BadImage] = field(default_factory=list)
    """Still bad as recorded, and what the walk could not read."""
    num_unchanged: int = 0
    num_other: int = 0
    """Files that are no images and do not claim to be, known ones included."""

    def changes_catalog(self) -> bool:
        """Whether there is something to record before the first image is embedded."""
        return bool(self.deleted or self.moved or self.touched or self.copied or self.bad or self.other)


def make_plan(
    rows: Iterable[Row],
    entries: Sequence[FileEntry],
    unreadable: Sequence[BadImage],
    inputs: Sequence[str | os.PathLike[str]],
    *,
    retry_bad: bool = False,
) -> Plan:
    """Compare files with rows. Opens only files that are new or whose stat differs.

    Args:
        rows: The catalogue.
        entries: Files found in ``inputs``.
        unreadable: What could not be looked into: rows below are left alone while the folder is there.
        inputs: Rows of files below these that are gone from disk are to be deleted.
        retry_bad: Judge files once more that are recorded as bad.
    """
    by_path = {row.path: row for row in rows if not row.external}
    named = {os.path.abspath(os.fsdecode(item)) for item in inputs}
    plan = Plan(known_bad=list(unreadable))
    doubtful: list[tuple[FileEntry, Row | None]] = []
    for entry in entries:
        row = by_path.get(entry.path)
        if row is None or (row.size, row.mtime_ns) != (entry.size, entry.mtime_ns):
            doubtful.append((entry, row))
        elif row.status == "ok":
            plan.num_unchanged += 1
        elif row.status == "bad" and not retry_bad and not is_installed_now(row.reason or ""):
            plan.known_bad.append(BadImage(entry.path, row.reason or "bad"))
        elif row.status == "other" and entry.path not in named:
            plan.num_other += 1
        else:
            doubtful.append((entry, row))

    gone = _gone(by_path, entries, unreadable, named)
    _judge(plan, doubtful, by_path, gone, named)
    moved = {row for row, _ in plan.moved}
    plan.deleted = [by_path[path].id for path in gone if by_path[path].id not in moved]
    return plan


def hash_content(entry: FileEntry) -> bytes | None:
    """BLAKE2b of the file, or None if it is no longer the one that ``entry`` saw."""
    try:
        with open_regular(entry.path) as file:
            digest = hashlib.blake2b(digest_size=HASH_BYTES)
            while block := file.read(1 << 20):
                digest.update(block)
            status = os.fstat(file.fileno())
    except (BadImage, OSError):
        return None
    return digest.digest() if (status.st_size, status.st_mtime_ns) == (entry.size, entry.mtime_ns) else None


def _judge(
    plan: Plan,
    doubtful: Sequence[tuple[FileEntry, Row | None]],
    by_path: dict[str, Row],
    gone: set[str],
    named: set[str],
) -> None:
    """Sort files whose content has to be looked at into the plan."""
    twins = {row.content_hash: row for row in by_path.values() if row.status == "ok" and row.content_hash is not None}
    sizes = {row.size for row in twins.values()}
    moved = set[int]()

    def look(item: tuple[FileEntry, Row | None]) -> tuple[bool, bytes | None] | BadImage:
        entry = item[0]
        try:
            # Only a file of a known size can have known content.
            return is_image(entry.path, named=entry.path in named), hash_content(entry) if entry.size in sizes else None
        except BadImage as error:
            return error

    for (entry, row), seen in _in_threads(look, doubtful):
        if isinstance(seen, BadImage):
            plan.bad.append((entry, seen))
            continue
        looks, content_hash = seen
        had_vector = row is not None and row.status == "ok"
        twin = None if content_hash is None else twins.get(content_hash)
        if not looks:
            plan.other.append(entry)
            plan.num_other += 1
        elif row is not None and had_vector and content_hash is not None and row.content_hash == content_hash:
            plan.touched.append((row.id, entry))
            plan.num_unchanged += 1
        elif twin is None:
            plan.embed.append(Work(entry, had_vector, content_hash))
        elif twin.id not in moved and (twin.path in gone or not os.path.lexists(twin.path)):
            # Not on disk though not in ``gone``: it was moved here from a folder that is not among the inputs.
            plan.moved.append((twin.id, entry))
            moved.add(twin.id)
        else:
            plan.copied.append((twin, Work(entry, had_vector, content_hash)))


def _in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
    """Items with results, in order. In small slices, so that an interrupt does not wait for a million files."""
    with ThreadPoolExecutor(_LOOK_THREADS) as pool:
        for start in range(0, len(items), 256):
            part = items[start : start + 256]
            yield from zip(part, pool.map(function, part), strict=True)


def _gone(
    by_path: dict[str, Row], entries: Sequence[FileEntry], unreadable: Sequence[BadImage], named: set[str]
) -> set[str]:
    """Paths of rows below the inputs that the walk did not find."""
    found = {entry.path for entry in entries}
    closed = [error.path for error in unreadable if os.path.lexists(error.path)]
    vanished = {error.path for error in unreadable} - set(closed)
    return {
        path
        for path in by_path
        if path not in found and (path in vanished or (_is_below(path, named) and not _is_below(path, closed)))
    }


def _is_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)
