"""What an update has to do: the folder as it is against the catalogue as it was, mostly by stat calls alone."""
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from vitembed.collection.catalog import Row
from vitembed.collection.lost import Kept, Offline, judge_lost
from vitembed.errors import BadImage
from vitembed.images.extras import is_installed_now
from vitembed.images.formats import open_regular
from vitembed.images.source import FileEntry, Walk, is_image, stat_facts

HASH_BYTES = 20
_LOOK_THREADS = 4
_CLOCK_STEP_NS = 20_000_000
"""Times of files are behind the clock by up to one tick of the kernel."""

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
    returned: list[Work] = field(default_factory=list)
    """Files whose content was here before and whose vectors were kept."""
    bad: list[tuple[FileEntry, BadImage]] = field(default_factory=list)
    other: list[FileEntry] = field(default_factory=list)
    embed: list[Work] = field(default_factory=list)
    links: dict[str, list[Work]] = field(default_factory=dict)
    """By path of an image to embed: other paths of the very same file, which get its vector."""
    offline: list[Offline] = field(default_factory=list)
    """Inputs or folders below them that are gone, wholly or mostly, and whose rows are kept."""
    missing: list[BadImage] = field(default_factory=list)
    """Inputs that do not exist and of which nothing is known."""
    roots: dict[str, bool] = field(default_factory=dict)
    """Folders to remember as indexed, and whether they are mount points."""
    dropped_roots: list[str] = field(default_factory=list)
    """Folders that are not there any more, of which nothing is left."""
    known_bad: list[BadImage] = field(default_factory=list)
    """Still bad as recorded, and what the walk could not read."""
    num_unchanged: int = 0
    num_other: int = 0
    """Files that are no images and do not claim to be, known ones included."""
    num_links: int = 0
    """Images that are the same file as another one, reached in another way (by a link, or through a linked folder)."""
    passed_over: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    def changes_catalog(self) -> bool:
        """Whether there is something to record before the first image is embedded."""
        files = self.deleted or self.moved or self.touched or self.copied or self.returned or self.bad or self.other
        return bool(files or self.roots or self.dropped_roots)


def make_plan(
    rows: Iterable[Row],
    walked: Walk,
    *,
    roots: Mapping[str, bool] | None = None,
    gone_sizes: Set[int] = frozenset(),
    is_kept: Callable[[bytes], bool] = lambda _: False,
    written_ns: int = 0,
    retry_bad: bool = False,
    prune: bool = False,
) -> Plan:
    """Compare files with rows. Opens only files that are new or whose stat differs.

    Args:
        rows: The catalogue.
        walked: The files as they are.
        roots: Folders that were indexed before, and whether they were mount points.
        gone_sizes: Sizes of files that are gone and whose vectors are kept.
        is_kept: Whether the vector of a content hash is kept.
        written_ns: When the catalogue was last written; 0: not known.
        retry_bad: Judge files once more that are recorded as bad.
        prune: Delete rows of files that are gone also where most of a folder is.
    """
    by_path = {row.path: row for row in rows if not row.external}
    known_roots = dict(roots or {})
    plan = Plan(known_bad=list(walked.bad), passed_over=walked.passed_over, unfinished=walked.unfinished)
    doubtful: list[tuple[FileEntry, Row | None]] = []
    others = set[str]()
    swapped = _may_be_swapped(walked.entries, by_path, written_ns)
    for entry in walked.entries:
        row = by_path.get(entry.path)
        if row is None or (row.size, row.mtime_ns) != (entry.size, entry.mtime_ns) or entry.path in swapped:
            doubtful.append((entry, row))
        elif row.status == "ok":
            plan.num_unchanged += 1
        elif row.status == "bad" and not retry_bad and not is_installed_now(row.reason or ""):
            plan.known_bad.append(BadImage(entry.path, row.reason or "bad"))
        elif row.status == "other" and entry.path not in walked.named:
            plan.num_other += 1
            others.add(entry.path)
        else:
            doubtful.append((entry, row))

    lost = judge_lost(by_path, walked, known_roots)
    _judge(plan, doubtful, by_path, lost.candidates, walked.named, Kept(frozenset(gone_sizes), is_kept))
    moved = {row for row, _ in plan.moved}
    decision = lost.decide({path for path in lost.candidates if by_path[path].id in moved}, prune=prune)
    plan.deleted = [by_path[path].id for path in decision.deleted]
    plan.offline, plan.missing = decision.offline, decision.missing
    plan.known_bad = [error for error in plan.known_bad if error.path not in decision.kept]
    plan.roots = {path: kind for path, kind in decision.roots.items() if known_roots.get(path) is not kind}
    plan.dropped_roots = decision.dropped
    others.update(entry.path for entry in plan.other)
    plan.num_links = _num_links(entry for entry in walked.entries if entry.path not in others)
    return plan


def _may_be_swapped(entries: Iterable[FileEntry], by_path: Mapping[str, Row], written_ns: int) -> set[str]:
    """Find files whose size and time are those of their row, and of another row too: one may have taken its name.

    As where bitmaps of one size and one second swap their names. Only files that were renamed or written since the
    catalogue was are looked at, as everything else is known by a stat call.
    """
    if not written_ns:
        return set()
    fresh: dict[tuple[int, int], list[str]] = {}
    for entry in entries:
        if entry.ctime_ns >= written_ns - _CLOCK_STEP_NS and entry.path in by_path:
            fresh.setdefault((entry.size, entry.mtime_ns), []).append(entry.path)
    if not fresh:
        return set()
    counts = Counter(key for row in by_path.values() if (key := (row.size, row.mtime_ns)) in fresh)
    return {path for key, paths in fresh.items() if counts[key] > 1 for path in paths}


def _num_links(entries: Iterable[FileEntry]) -> int:
    """How many of the files are one that came before."""
    seen, num = set[tuple[int, int]](), 0
    for entry in entries:
        if entry.inode:
            num += (entry.device, entry.inode) in seen
            seen.add((entry.device, entry.inode))
    return num


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
    return digest.digest() if stat_facts(status) == (entry.size, entry.mtime_ns) else None


def _judge(
    plan: Plan,
    doubtful: Sequence[tuple[FileEntry, Row | None]],
    by_path: dict[str, Row],
    gone: Set[str],
    named: Set[str],
    kept: Kept,
) -> None:
    """Sort files whose content has to be looked at into the plan."""
    twins = {row.content_hash: row for row in by_path.values() if row.status == "ok" and row.content_hash is not None}
    sizes = {row.size for row in twins.values()} | kept.sizes
    moved = set[int]()
    first: dict[tuple[int, int], str] = {}
    """Of each file that is to be embedded, the path under which it is."""

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
        elif twin is None and content_hash is not None and kept.has(content_hash):
            plan.returned.append(Work(entry, had_vector, content_hash))
        elif twin is None:
            work, same = Work(entry, had_vector, content_hash), (entry.device, entry.inode)
            if entry.inode and same in first:
                plan.links.setdefault(first[same], []).append(work)
            else:
                plan.embed.append(work)
                first.setdefault(same, entry.path)
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
