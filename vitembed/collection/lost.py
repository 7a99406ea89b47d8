"""Which rows of an update are of deleted files, and which are of a drive or folder that is away for the moment.

A drive that is not mounted looks like a folder from which somebody has deleted everything. So the rows of a folder that
was indexed are kept as *offline*, whoever took its files away, when the folder is missing or cannot be read, when it
was a mount point and is none now, when none of its images is there any more, or when more than half of them are gone
and these are at least ``MIN_OFFLINE``. Only ``prune`` takes such rows out.
"""
# ruff: noqa: PTH120
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from vitembed.collection.catalog import Row
from vitembed.errors import BadImage
from vitembed.images.source import Walk, is_mount

MIN_OFFLINE = 4
"""Where some images of a folder are left: so many must be gone before it counts as mostly gone, so that two of three
can be deleted by hand."""
_LIST = "@"
"""Begins the name of a list, whose images are counted together; no absolute path begins like this."""


@dataclass(frozen=True, slots=True)
class Offline:
    """A folder, file or list whose images are kept though they are not there."""

    path: str
    """Absolute; a list's name begins with ``@``."""
    reason: str
    """One short phrase, such as ``no such file or folder`` or ``12 of its 14 images are gone``."""
    num_images: int
    """Images that are kept."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of the vectors of files that are gone."""

    sizes: Set[int]
    """Of the files."""
    has: Callable[[bytes], bool]
    """Whether there is one for a content hash."""


@dataclass
class Decision:
    """What becomes of the rows whose file was not found."""

    deleted: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    offline: list[Offline] = field(default_factory=list)
    missing: list[BadImage] = field(default_factory=list)
    roots: dict[str, bool] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


class Above:
    """The watched paths at or above a path, from the top down; each folder is looked at once."""

    def __init__(self, watched: Set[str]) -> None:
        self._watched = watched
        self._known: dict[str, tuple[str, ...]] = {}

    def __call__(self, path: str) -> tuple[str, ...]:
        """Give them."""
        above = self._of_folder(os.path.dirname(path))
        return (*above, path) if path in self._watched else above

    def _of_folder(self, folder: str) -> tuple[str, ...]:
        unknown = []
        while folder not in self._known:
            unknown.append(folder)
            parent = os.path.dirname(folder)
            if parent == folder:
                break
            folder = parent
        found = self._known.get(folder, ())
        for folder in reversed(unknown):
            found = (*found, folder) if folder in self._watched else found
            self._known[folder] = found
        return found


class Lost:
    """Rows whose file the walk did not find, and how much is left of the folders that they were in."""

    def __init__(
        self, by_path: Mapping[str, Row], walked: Walk, known_roots: Mapping[str, bool], above_input: Above
    ) -> None:
        self._by_path = by_path
        self._walked = walked
        self._known_roots = known_roots
        self._reasons = {error.path: error.reason for error in walked.missing}
        """Of inputs that are missing or cannot be read."""
        self._closed = {error.path for error in (*walked.bad, *walked.missing) if os.path.lexists(error.path)}
        lists = {path: name for name, paths in walked.lists.items() for path in paths}
        roots = {*walked.inputs, *walked.roots, *(root for root in known_roots if above_input(root))}
        ignored = {*walked.passed_over, *walked.unfinished}
        above = Above({*roots, *self._closed, *lists, *ignored})
        found = {entry.path for entry in walked.entries}
        self.candidates = set[str]()
        """Paths of rows that are to go, if their folder has not gone as a whole."""
        self._unwanted = set[str]()
        """Of these, what this version passes over."""
        self._unreadable = set[str]()
        self._groups: dict[str, tuple[str, ...]] = {}
        """By candidate: the roots above it, and the list that it is in."""
        self._totals: Counter[str] = Counter()
        if not any(path not in found and above_input(path) for path in by_path):
            return  # as nearly always: how much is left need not be counted
        for path, row in by_path.items():
            if not above_input(path):
                continue
            chain = above(path)
            groups = tuple(item for item in chain if item in roots)
            groups += tuple({lists[item] for item in chain if item in lists})
            is_found = path in found
            if not is_found:
                last = next((item for item in reversed(chain) if item in ignored or item in roots), None)
                if last is not None and last not in roots:
                    self.candidates.add(path)
                    self._unwanted.add(path)
                    continue
                if any(item in ignored for item in chain):
                    continue  # a folder that was named outright once, and is not now
                if any(item in self._closed for item in chain):
                    self._unreadable.add(path)
                else:
                    self.candidates.add(path)
                self._groups[path] = groups
            if row.status == "ok":
                self._totals.update(groups)

    def decide(self, moved: Set[str], *, prune: bool) -> Decision:
        """What becomes of them.

        Args:
            moved: Candidates whose file was found elsewhere.
            prune: Take out what is gone in any case.
        """
        done = Decision(roots=dict(self._walked.roots))
        by_group: dict[str, list[str]] = {}
        totals = self._totals.copy()
        for path, groups in self._groups.items():
            if path in moved:
                if self._by_path[path].status == "ok":
                    totals.subtract(groups)
            else:
                for group in groups:
                    by_group.setdefault(group, []).append(path)
        for group in sorted(by_group, key=len, reverse=True):  # what lies deeper first
            # What cannot be read is left as it is, and listed; it is the folder itself that may be away.
            unreadable = set[str]() if group in self._reasons else self._unreadable
            lost = [path for path in by_group[group] if path not in done.kept and path not in unreadable]
            images = [path for path in lost if self._by_path[path].status == "ok"]
            reason = self._why_offline(group, len(images), totals[group])
            if reason is None or not lost:
                continue
            is_closed = group in self._closed
            if prune and not is_closed:
                continue
            done.kept.update(lost)
            for path in images:
                totals.subtract(self._groups[path])
            if images:
                done.offline.append(Offline(group, reason, len(images)))
        done.deleted = [path for path in self.candidates if path not in moved and path not in done.kept]
        self._settle_roots(done, {group for groups in self._groups.values() for group in groups}, prune)
        done.offline.sort(key=lambda item: os.fsencode(item.path))
        return done

    def _why_offline(self, group: str, num_lost: int, total: int) -> str | None:
        if group in self._reasons:
            return self._reasons[group]
        if not num_lost:
            return None
        if self._known_roots.get(group) and not self._walked.roots.get(group, is_mount(group)):
            return "it was a drive or share, and nothing is mounted there now"
        if not group.startswith(_LIST) and not os.path.lexists(group):
            return "no such file or folder"
        if num_lost == total:
            return "none of its images is there"
        if num_lost >= MIN_OFFLINE and 2 * num_lost > total:
            return f"{num_lost:,} of its {total:,} images are gone"
        return None

    def _settle_roots(self, done: Decision, groups: Set[str], prune: bool) -> None:
        """Decide which folders to remember from now on, and which missing inputs are unknown."""
        away = {item.path for item in done.offline}
        for path in away:
            done.roots.pop(path, None)  # as it was when it was whole
        for error in self._walked.missing:
            known = error.path in self._known_roots or error.path in groups
            if error.path not in away and not (known and prune):
                done.missing.append(error)
        for root in self._known_roots:
            if root not in away and not os.path.lexists(root) and (root in groups or root in self._reasons):
                done.dropped.append(root)
                done.roots.pop(root, None)


def judge_lost(by_path: Mapping[str, Row], walked: Walk, known_roots: Mapping[str, bool]) -> Lost:
    """Compare rows below the inputs with what the walk found.

    Args:
        by_path: The rows of files.
        walked: The files as they are.
        known_roots: Folders that were indexed before, and whether they were mount points.
    """
    inputs = {*walked.inputs, *(path for paths in walked.lists.values() for path in paths)}
    return Lost(by_path, walked, known_roots, Above(inputs))
