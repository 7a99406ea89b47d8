"""Exact and near duplicates in a collection, with a suggestion which image to keep. Nothing is ever deleted.

The rule, which leaves no room for chains of likeness: all images are put in order of preference (most pixels, then most
bytes, then oldest, then by path). Going down that order, an image that no earlier kept one is near to is kept; every
other one joins the kept image it is most like. So each image of a group is a near-duplicate of the very image that is
suggested to be kept, and two images that are alike only through a third never make a group.

A file that has several names (links) is one image. Pairs whose bytes differ are compared as whole images too
(``whole_image``), where a model that crops the middle cannot have seen them in full.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.finding.duplicates_bound import SAMPLE_ROWS, nearest_pairs, principal_axes, shorten
from vitembed.collection.finding.facts import ImageFacts
from vitembed.collection.finding.whole_image import are_alike, is_long, whole_image
from vitembed.collection.same_file import link_rank
from vitembed.collection.search import common_threshold
from vitembed.errors import DataError, counted
from vitembed.images.source import stat_facts

DUPLICATE_THRESHOLD = 0.98
RULE = (
    "every image of a group has at least this cosine with the image to keep, which has the most pixels, "
    "then the most bytes, then is the oldest, then the first by path"
)
_ROUNDING = 1e-6
"""What float32 sums of unit vectors differ by."""
_MAX_COMPARED = 50
"""Images of one group that a further one is compared with as a whole."""
ROWS_AT_ONCE = 2_048
"""Two blocks of so many vectors and the cosines between them are in memory at a time: 20 MB at width 384."""


@dataclass(frozen=True)
class Duplicate:
    """One image of a group, besides the one to keep."""

    image: ImageFacts
    score: float
    """Cosine with the image to keep."""
    exact: bool
    """Whether the files are the same byte for byte."""
    freed_bytes: int
    """What deleting the file frees; 0 where it has hard links, as its content then stays."""


@dataclass(frozen=True)
class Link:
    """Another name of a file of the group: not one more image."""

    image: ImageFacts
    to: str
    """The name under which the file is in the group."""
    kind: Literal["symbolic link", "linked folder", "hard link"]


@dataclass(frozen=True)
class LookAlike:
    """Two images that reach the threshold and are no copies: they differ beside the middle that the encoder sees."""

    paths: tuple[str, str]
    score: float


@dataclass(frozen=True)
class DuplicateGroup:
    """An image to keep and what is nearly the same."""

    keep: ImageFacts
    reason: str
    """Why this one."""
    others: list[Duplicate]
    """Most alike first, then by path."""
    links: list[Link] = field(default_factory=list)
    """Other names of these files."""


@dataclass(frozen=True)
class Duplicates:
    """What was found."""

    groups: list[DuplicateGroup]
    """Largest first, then by path."""
    num_images: int
    """Files; those with several names count once."""
    threshold: float | None
    """None: only files that are the same byte for byte."""
    notes: list[str]
    look_alikes: list[LookAlike] = field(default_factory=list)
    """Pairs that are alike in the middle alone."""

    @property
    def num_extra(self) -> int:
        """Images besides those to keep."""
        return sum(len(group.others) for group in self.groups)

    @property
    def extra_bytes(self) -> int:
        """What deleting them frees, as far as it is known."""
        return sum(other.freed_bytes for group in self.groups for other in group.others)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; ``"groups": [{"keep": {...}, "reason": "...", "others": [{...}, ...]}, ...]``."""
        return {
            "num_images": self.num_images,
            "threshold": self.threshold,
            "rule": RULE if self.threshold is not None else "files of a group are the same byte for byte",
            "num_extra": self.num_extra,
            "extra_bytes": self.extra_bytes,
            "groups": [
                {
                    "keep": _described(group.keep),
                    "reason": group.reason,
                    "others": [
                        {
                            **_described(other.image),
                            "score": other.score,
                            "exact": other.exact,
                            "freed_bytes": other.freed_bytes,
                        }
                        for other in group.others
                    ],
                    **(
                        {"links": [{"path": x.image.path, "to": x.to, "kind": x.kind} for x in group.links]}
                        if group.links
                        else {}
                    ),
                }
                for group in self.groups
            ],
            "look_alikes": [{"paths": list(pair.paths), "score": pair.score} for pair in self.look_alikes],
        }

    def write_sheet(self, path: str | os.PathLike[str], *, max_groups: int = 200) -> None:
        """Write the groups as one HTML page, the image to keep on top of each; the largest ``max_groups`` of them."""
        from vitembed.collection.sheet import SheetImage, SheetRow, write_sheet

        rows = []
        for group in self.groups[:max_groups]:
            keep = SheetImage(group.keep.path, [f"keep: {group.reason}", _size(group.keep), group.keep.path], "good")
            others = [
                SheetImage(
                    other.image.path,
                    ["same bytes" if other.exact else f"{other.score:.4f}", _size(other.image), other.image.path],
                )
                for other in group.others
            ]
            links = [SheetImage(each.image.path, [each.kind, f"to {each.to}", each.image.path]) for each in group.links]
            rows.append(SheetRow(keep, [*others, *links]))
        left = len(self.groups) - len(rows)
        rule = "same bytes" if self.threshold is None else f"cosine of {self.threshold:g} or more with the one to keep"
        note = (
            f"{counted(len(self.groups), 'group')}, {counted(self.num_extra, 'image')} besides those to keep ({rule})"
        )
        write_sheet(path, "Duplicates", rows, "; ".join([note, *self.notes, *([f"{left:,} more"] if left else [])]))


def find_duplicates(
    collection: Collection,
    *,
    threshold: float = DUPLICATE_THRESHOLD,
    exact_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Groups of images that are the same or nearly so, by the rule of this module.

    Every pair of vectors is compared, by a bound where that decides, block by block from temporary files, so memory
    does not grow with the pairs that are found. Images whose file has changed or gone since it was indexed are left out
    and counted in the notes.

    Args:
        collection: Where to look.
        threshold: Least cosine of a near-duplicate, above 0.
        exact_only: Look at the files' content hashes alone.
        progress: Called with the number of images compared and the total.

    Raises:
        DataError: If the threshold is no cosine above 0.
    """
    if not 0 < threshold <= 1:
        raise DataError(f"threshold is {threshold}, expected a cosine above 0 and at most 1")
    images = sorted(enumerate(collection.facts()), key=lambda pair: _preference(pair[1]))
    order = [place for place, _ in images]
    facts = [image for _, image in images]
    if exact_only:
        keeper, scores = _same_bytes(facts)
    else:
        keeper, scores = _near(collection, order, facts, min(threshold, 1 - _ROUNDING), progress)
    work = _Groups(collection, facts, keeper, scores, None if exact_only else threshold)
    groups = work.make()
    notes = []
    if work.num_stale:
        notes.append(f"{counted(work.num_stale, 'image')} left out, changed or gone since the last index: index again")
    if work.num_links:
        notes.append(f"{counted(work.num_links, 'other name')} of the same files (links): not counted as images")
    if work.look_alikes:
        notes.append(
            f"{counted(len(work.look_alikes), 'pair')} alike only in the middle, which is what the encoder sees: no "
            "copies, not counted (--json lists them)"
        )
    if work.num_unseen:
        notes.append(
            f"{counted(work.num_unseen, 'pair')} compared by vectors alone: there are no files to compare as "
            "whole images"
        )
    if not exact_only and (warning := common_threshold(collection.background(), threshold)):
        notes.append(warning)
    num_images = len(facts) - work.num_links
    return Duplicates(groups, num_images, None if exact_only else threshold, notes, work.look_alikes)


def _preference(image: ImageFacts) -> tuple[int, int, int, bytes]:
    return -image.num_pixels, -image.size, _age(image), os.fsencode(image.path)


def _age(image: ImageFacts) -> int:
    """The time in the file, to be compared; a file without one is the newest. Zero is what programs write for none."""
    return 2**63 if image.mtime_ns in (-1, 0) else image.mtime_ns


def _same_bytes(facts: Sequence[ImageFacts]) -> tuple[np.ndarray, np.ndarray]:
    first: dict[bytes, int] = {}
    keeper = np.arange(len(facts))
    for place, image in enumerate(facts):
        if image.content_hash is not None:
            keeper[place] = first.setdefault(image.content_hash, place)
    return keeper, np.ones(len(facts), np.float32)


def _near(
    collection: Collection,
    order: Sequence[int],
    facts: Sequence[ImageFacts],
    threshold: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """For each image, in the order of preference, the one to keep (itself, if it is one) and the cosine with it."""
    num = len(order)
    keeper, scores = np.arange(num), np.ones(num, np.float32)
    best = np.full(num, -2.0, np.float32)  # with the kept images so far
    nearest = np.full(num, -1)
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as short_file:
        vectors = _ordered_vectors(collection, order, file)
        for place, first in enumerate(_same_bytes(facts)[0].tolist()):
            if first != place:  # the same bytes: embedded in another batch the vector may differ in its last digits
                vectors[place] = vectors[first]
        short = _shortened(vectors, short_file)
        for start in range(0, num, ROWS_AT_ONCE):
            block = np.asarray(vectors[start : start + ROWS_AT_ONCE])
            kept = _keep_in_block(block, start, threshold, best, nearest)
            places = kept + start
            for later in range(start + len(block), num, ROWS_AT_ONCE):
                part = slice(later, later + ROWS_AT_ONCE)
                shorts = (None, None) if short is None else (np.asarray(short[part]), np.asarray(short[places]))
                found = nearest_pairs(np.asarray(vectors[part]), block[kept], threshold, *shorts)
                rows = found.rows + later
                better = found.cosines > best[rows]
                best[rows[better]] = found.cosines[better]
                nearest[rows[better]] = places[found.nearest[better]]
            if progress is not None:
                # Of the triangle of pairs, not of the rows: the first blocks have the most to be compared with.
                done = start + len(block)
                progress(num - round((num - done) ** 2 / num), num)
    joined = best >= threshold
    keeper[joined], scores[joined] = nearest[joined], best[joined]
    return keeper, scores


def _keep_in_block(
    block: np.ndarray, start: int, threshold: float, best: np.ndarray, nearest: np.ndarray
) -> np.ndarray:
    """Rows of the block that are kept, int64; ``best`` and ``nearest`` of its other rows are changed in place."""
    cosines = block @ block.T
    is_kept = best[start : start + len(block)] < threshold
    rows, columns = np.nonzero(np.tril(cosines >= threshold, -1))
    borders = np.flatnonzero(np.diff(rows, prepend=-1, append=len(block)))
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        row, earlier = int(rows[first]), columns[first:last]
        earlier = earlier[is_kept[earlier]]
        if not len(earlier):
            continue
        closest = int(earlier[cosines[row, earlier].argmax()])
        if cosines[row, closest] > best[start + row]:
            best[start + row], nearest[start + row] = cosines[row, closest], start + closest
        is_kept[row] = False
    return np.flatnonzero(is_kept)


def _shortened(vectors: np.ndarray, file: Any) -> np.ndarray | None:
    """All of them by ``shorten``, in a file as the vectors are; None where that would not pay."""
    axes = principal_axes(np.asarray(vectors[:: max(1, len(vectors) // SAMPLE_ROWS)]))
    if axes is None:
        return None
    short = np.memmap(file, np.float32, "w+", shape=(len(vectors), axes.shape[1] + 1))
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        short[part] = shorten(np.asarray(vectors[part]), axes)
    return short


def _ordered_vectors(collection: Collection, order: Sequence[int], file: Any) -> np.ndarray:
    """All vectors, float32 ``[n, d]``, in a file: the system keeps as much of it in memory as there is room for."""
    if not order:
        return np.zeros((0, collection.dim), np.float32)
    place_of = np.empty(len(order), np.int64)
    place_of[np.array(order)] = np.arange(len(order))
    vectors = np.memmap(file, np.float32, "w+", shape=(len(order), collection.dim))
    done = 0
    for ids, chunk in collection.vector_chunks():
        if done + len(ids) > len(order):
            raise DataError("the collection has changed meanwhile: run the command again")
        vectors[place_of[done : done + len(ids)]] = chunk
        done += len(ids)
    if done != len(order):
        raise DataError("the collection has changed meanwhile: run the command again")
    return vectors


@dataclass(frozen=True)
class _File:
    """A file of a group, with all its names in the collection."""

    places: list[int]
    """Of its names, the file's own path before links to it."""
    rank: int
    """``link_rank`` of the first name."""
    num_links: int
    """Hard links that the file system counts; 0: not known."""


class _Groups:
    """From images with the one to keep to groups of files that are copies."""

    def __init__(
        self,
        collection: Collection,
        facts: Sequence[ImageFacts],
        keeper: np.ndarray,
        scores: np.ndarray,
        threshold: float | None,
    ) -> None:
        self._collection = collection
        self._facts = facts
        self._keeper = keeper
        self._scores = scores
        self._threshold = threshold
        self.num_stale = self.num_links = self.num_unseen = 0
        self.look_alikes = list[LookAlike]()

    def make(self) -> list[DuplicateGroup]:
        members: dict[int, list[int]] = {}
        for place in np.flatnonzero(self._keeper != np.arange(len(self._facts))).tolist():
            members.setdefault(int(self._keeper[place]), []).append(place)
        groups = list[DuplicateGroup]()
        for leader, places in members.items():
            files = self._files([leader, *places])
            if not files or leader not in files[0].places:
                self.num_stale += int(not any(leader in file.places for file in files))
                continue
            groups += self._copies(files)
        groups.sort(key=lambda group: (-len(group.others), os.fsencode(group.keep.path)))
        return groups

    def _files(self, places: Sequence[int]) -> list[_File]:
        """The files behind the names, in the order of preference; names whose file has changed or gone are left out."""
        names: dict[object, list[int]] = {}
        hard_links = dict[object, int]()
        for place in places:
            image = self._facts[place]
            status = None if image.external or image.size < 0 else _status(image.path)
            if not (image.external or image.size < 0) and (
                status is None or stat_facts(status) != (image.size, image.mtime_ns)
            ):
                self.num_stale += place != places[0]
                continue
            key: object = place if status is None or not status.st_ino else (status.st_dev, status.st_ino)
            names.setdefault(key, []).append(place)
            hard_links[key] = 0 if status is None else status.st_nlink
        files = []
        for key, same in names.items():
            ranks = {place: 0 if self._facts[place].external else link_rank(self._facts[place].path) for place in same}
            same.sort(key=lambda place: (ranks[place], os.fsencode(self._facts[place].path)))
            files.append(_File(same, ranks[same[0]], hard_links[key]))
            self.num_links += len(same) - 1
        return files

    def _copies(self, files: Sequence[_File]) -> list[DuplicateGroup]:
        """Groups in which all are copies of the one to keep; mostly one."""
        kept: list[tuple[_File, list[tuple[_File, float]]]] = [(files[0], [])]
        pictures = dict[int, np.ndarray | None]()
        for file in files[1:]:
            best: tuple[float, int] | None = None
            for number, (leader, others) in enumerate(kept[:_MAX_COMPARED]):
                score = self._score(leader, file)
                if score is None:
                    continue
                if self._is_copy(leader, file, pictures):
                    others.append((file, score))
                    break
                best = best or (score, number)
            else:
                if best is not None:
                    paths = self._first(kept[best[1]][0]).path, self._first(file).path
                    self.look_alikes.append(LookAlike(paths, best[0]))
                kept.append((file, []))
        groups = [self._group(leader, others) for leader, others in kept if others]
        return [group for group in groups if group.others]

    def _score(self, leader: _File, file: _File) -> float | None:
        """The cosine of two files, if it reaches the threshold."""
        if self._is_same(leader, file):
            return 1.0
        for place in file.places:
            if int(self._keeper[place]) in leader.places:
                return float(min(1.0, self._scores[place]))
        first, second = (self._collection.vector(self._first(each).path) for each in (leader, file))
        if first is None or second is None or self._threshold is None:
            return None
        score = min(1.0, float(first @ second))
        return score if score >= self._threshold else None

    def _is_copy(self, leader: _File, file: _File, pictures: dict[int, np.ndarray | None]) -> bool:
        if self._is_same(leader, file):
            return True
        first, second = self._first(leader), self._first(file)
        if first.external or second.external or min(first.size, second.size) < 0:
            self.num_unseen += 1
            return True
        if not is_long(first.width, first.height) and not is_long(second.width, second.height):
            return True
        for each in (leader, file):
            if each.places[0] not in pictures:
                pictures[each.places[0]] = whole_image(self._first(each).path)
        left, right = pictures[leader.places[0]], pictures[file.places[0]]
        return left is not None and right is not None and are_alike(left, right)

    def _group(self, leader: _File, others: Sequence[tuple[_File, float]]) -> DuplicateGroup:
        # Of equal content rather the original than a link to a file elsewhere.
        originals = [file for file, _ in others if file.rank < leader.rank and self._is_same(leader, file)]
        if originals:
            best = min(originals, key=lambda file: file.rank)
            others = [(leader if file is best else file, score) for file, score in others]
            leader = best
        keep = self._first(leader)
        extra, links = list[Duplicate](), self._links(leader)
        for file, score in others:
            image = self._first(file)
            if file.rank == 2:  # all its names are symbolic links, to a file that is not in the collection
                links.append(Link(image, os.path.realpath(image.path), "symbolic link"))
                continue
            freed = max(0, image.size) if file.num_links <= 1 else 0
            extra.append(Duplicate(image, score, self._is_same(leader, file), freed))
            links += self._links(file)
        extra.sort(key=lambda other: (not other.exact, -other.score, os.fsencode(other.image.path)))
        return DuplicateGroup(keep, _reason(keep, [other.image for other in extra]), extra, links)

    def _links(self, file: _File) -> list[Link]:
        first, *rest = (self._facts[place] for place in file.places)
        kinds: tuple[Literal["hard link", "linked folder", "symbolic link"], ...]
        kinds = ("hard link", "linked folder", "symbolic link")
        return [Link(image, first.path, kinds[link_rank(image.path)]) for image in rest]

    def _is_same(self, leader: _File, file: _File) -> bool:
        content = self._first(leader).content_hash
        return content is not None and content == self._first(file).content_hash

    def _first(self, file: _File) -> ImageFacts:
        return self._facts[file.places[0]]


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116  # paths stay strings: names that are not UTF-8
    except (OSError, ValueError):
        return None


def _reason(keep: ImageFacts, others: Sequence[ImageFacts]) -> str:
    """The first point of the order in which the image is ahead of every other one."""
    if all(keep.num_pixels > other.num_pixels for other in others):
        return "most pixels"
    same = [other for other in others if other.num_pixels == keep.num_pixels]
    if all(keep.size > other.size for other in same):
        return "most bytes"
    same = [other for other in same if other.size == keep.size]
    if all(_age(keep) < _age(other) for other in same):
        return "oldest"
    return "first by path"


def _described(image: ImageFacts) -> dict[str, Any]:
    size = {} if image.width is None else {"width": image.width, "height": image.height}
    return {"path": image.path, **size, **({} if image.size < 0 else {"bytes": image.size})}


def _size(image: ImageFacts) -> str:
    parts = [] if image.width is None else [f"{image.width} x {image.height} px"]
    return ", ".join([*parts, *([] if image.size < 0 else [f"{image.size:,} bytes"])])
