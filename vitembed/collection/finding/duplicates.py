"""Exact and near duplicates in a collection, with a suggestion which image to keep. Nothing is ever deleted.

The rule, which leaves no room for chains of likeness: all images are put in order of preference (most pixels, then most
bytes, then oldest, then by path). Going down that order, an image that no earlier kept one is near to is kept; every
other one joins the kept image it is most like. So each image of a group is a near-duplicate of the very image that is
suggested to be kept, and two images that are alike only through a third never make a group.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.external import stat_of
from vitembed.collection.finding.duplicates_bound import SAMPLE_ROWS, nearest_pairs, principal_axes, shorten
from vitembed.collection.finding.facts import ImageFacts
from vitembed.collection.search import common_threshold
from vitembed.errors import DataError

DUPLICATE_THRESHOLD = 0.98
RULE = (
    "every image of a group has at least this cosine with the image to keep, which has the most pixels, "
    "then the most bytes, then is the oldest, then the first by path"
)
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


@dataclass(frozen=True)
class DuplicateGroup:
    """An image to keep and what is nearly the same."""

    keep: ImageFacts
    reason: str
    """Why this one."""
    others: list[Duplicate]
    """Most alike first, then by path."""


@dataclass(frozen=True)
class Duplicates:
    """What was found."""

    groups: list[DuplicateGroup]
    """Largest first, then by path."""
    num_images: int
    threshold: float | None
    """None: only files that are the same byte for byte."""
    notes: list[str]

    @property
    def num_extra(self) -> int:
        """Images besides those to keep."""
        return sum(len(group.others) for group in self.groups)

    @property
    def extra_bytes(self) -> int:
        """Their size, as far as it is known."""
        return sum(max(0, other.image.size) for group in self.groups for other in group.others)

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
                        {**_described(other.image), "score": other.score, "exact": other.exact}
                        for other in group.others
                    ],
                }
                for group in self.groups
            ],
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
            rows.append(SheetRow(keep, others))
        left = len(self.groups) - len(rows)
        rule = "same bytes" if self.threshold is None else f"cosine of {self.threshold:g} or more with the one to keep"
        note = f"{len(self.groups):,} groups, {self.num_extra:,} images besides those to keep ({rule})"
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
        keeper, scores = _near(collection, order, threshold, progress)
    groups, num_stale = _groups(facts, keeper, scores)
    notes = []
    if num_stale:
        notes.append(f"{num_stale:,} images have changed or gone since they were indexed and are left out: index again")
    if not exact_only and (warning := common_threshold(collection.background(), threshold)):
        notes.append(warning)
    return Duplicates(groups, len(facts), None if exact_only else threshold, notes)


def _preference(image: ImageFacts) -> tuple[int, int, int, bytes]:
    oldest = image.mtime_ns if image.mtime_ns >= 0 else 2**63
    return -image.num_pixels, -image.size, oldest, os.fsencode(image.path)


def _same_bytes(facts: Sequence[ImageFacts]) -> tuple[np.ndarray, np.ndarray]:
    first: dict[bytes, int] = {}
    keeper = np.arange(len(facts))
    for place, image in enumerate(facts):
        if image.content_hash is not None:
            keeper[place] = first.setdefault(image.content_hash, place)
    return keeper, np.ones(len(facts), np.float32)


def _near(
    collection: Collection, order: Sequence[int], threshold: float, progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """For each image, in the order of preference, the one to keep (itself, if it is one) and the cosine with it."""
    num = len(order)
    keeper, scores = np.arange(num), np.ones(num, np.float32)
    best = np.full(num, -2.0, np.float32)  # with the kept images so far
    nearest = np.full(num, -1)
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as short_file:
        vectors = _ordered_vectors(collection, order, file)
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
        # Stored rounded, so not quite of length 1: a copy would not reach a threshold of 1.
        vectors[place_of[done : done + len(ids)]] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
        done += len(ids)
    if done != len(order):
        raise DataError("the collection has changed meanwhile: run the command again")
    return vectors


def _groups(facts: Sequence[ImageFacts], keeper: np.ndarray, scores: np.ndarray) -> tuple[list[DuplicateGroup], int]:
    members: dict[int, list[int]] = {}
    for place in np.flatnonzero(keeper != np.arange(len(facts))).tolist():
        members.setdefault(int(keeper[place]), []).append(place)
    groups, stale = list[DuplicateGroup](), 0
    for leader, places in members.items():
        fresh = [place for place in places if _is_fresh(facts[place])]
        stale += len(places) - len(fresh)
        if not _is_fresh(facts[leader]):
            stale += 1
            continue
        keep = facts[leader]
        others = [
            Duplicate(
                facts[place],
                float(min(1.0, scores[place])),
                keep.content_hash is not None and facts[place].content_hash == keep.content_hash,
            )
            for place in fresh
        ]
        if others:
            others.sort(key=lambda other: (not other.exact, -other.score, os.fsencode(other.image.path)))
            groups.append(DuplicateGroup(keep, _reason(keep, [other.image for other in others]), others))
    groups.sort(key=lambda group: (-len(group.others), os.fsencode(group.keep.path)))
    return groups, stale


def _is_fresh(image: ImageFacts) -> bool:
    """Whether the file is still the one that was indexed; of a vector from elsewhere nobody can tell."""
    if image.external or image.size < 0:
        return True
    return stat_of(image.path) == (image.size, image.mtime_ns)


def _reason(keep: ImageFacts, others: Sequence[ImageFacts]) -> str:
    """The first point of the order in which the image is ahead of every other one."""
    if all(keep.num_pixels > other.num_pixels for other in others):
        return "most pixels"
    same = [other for other in others if other.num_pixels == keep.num_pixels]
    if all(keep.size > other.size for other in same):
        return "most bytes"
    same = [other for other in same if other.size == keep.size]
    if all(keep.mtime_ns < other.mtime_ns or other.mtime_ns < 0 for other in same) and keep.mtime_ns >= 0:
        return "oldest"
    return "first by path"


def _described(image: ImageFacts) -> dict[str, Any]:
    size = {} if image.width is None else {"width": image.width, "height": image.height}
    return {"path": image.path, **size, **({} if image.size < 0 else {"bytes": image.size})}


def _size(image: ImageFacts) -> str:
    parts = [] if image.width is None else [f"{image.width} x {image.height} px"]
    return ", ".join([*parts, *([] if image.size < 0 else [f"{image.size:,} bytes"])])
