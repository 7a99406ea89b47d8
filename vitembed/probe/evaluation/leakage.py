"""Near duplicates: test images that a probe has as good as seen, and groups of copies to be kept on one side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from vitembed.probe.choose import content_keys
from vitembed.probe.inputs import device_name
from vitembed.probe.knn import nearest, unit_rows

NEAR_DUPLICATE = 0.995
"""Cosine, after the mean is subtracted, from which an image counts as a copy of another."""
SAME = 1e-3
"""Distance, in parts of the vectors' length, up to which two differ by rounding alone. That makes a copy also where the
mean leaves nothing to take an angle of, as when most images are one; float16 rounds by half of this."""
_CENTRAL = SAME / np.sqrt(1 - NEAR_DUPLICATE**2)
"""Rows further from the mean than this, in the same measure, and within ``SAME`` of each other are near duplicates."""
_ROWS, _COLUMNS = 512, 32768
"""Similarities at a time: 64 MiB."""
_ARITHMETIC = 1e-5
"""Distance, in parts of the vectors' length, of vectors of one image that were computed in different batches."""
_MOST_STEPS = 64
_ROUNDING = 1e-5
"""Of a float32 product. A pair that is grouped without need costs nothing, one that is missed would be a leak."""


@dataclass(frozen=True)
class Leak:
    """A test image and the training image that it is a near copy of."""

    test_row: int
    train_row: int
    similarity: float
    """Cosine of the centred vectors; 1 of those that are equal but for rounding."""


def leaks_across(
    vectors: Float[np.ndarray, "n d"], train: Int[np.ndarray, " t"], test: Int[np.ndarray, " m"], *, device: str
) -> list[Leak]:
    """Every test row with a training row within ``NEAR_DUPLICATE``, with the nearest one, in the order of ``test``.

    The mean of all rows is taken off first: vectors of many encoders share a large common part, which lifts every
    cosine. Rows that are equal but for rounding are copies whatever is left after that.
    """
    centre = vectors.mean(axis=0, dtype=np.float64)
    bank, queries = (unit_rows(vectors[rows] - centre) for rows in (train, test))
    similarities, neighbours = nearest(queries, bank, 1, device=device_name(device))
    found = {
        int(test[i]): Leak(int(test[i]), int(train[neighbours[i, 0]]), float(similarities[i, 0]))
        for i in np.flatnonzero(similarities[:, 0] >= NEAR_DUPLICATE).tolist()
    }
    central, centred, bar = _central_rows(vectors)
    is_train = np.zeros(len(vectors), dtype=bool)
    is_train[train] = True
    learned, tested = central[is_train[central]], np.intersect1d(central, test)
    for begin in range(0, len(tested) if len(learned) else 0, _ROWS):
        rows = tested[begin : begin + _ROWS]
        distances = _distances(centred[rows], centred[learned])
        nearest_rows = distances.argmin(axis=1)
        for row, place, distance in zip(rows.tolist(), nearest_rows.tolist(), distances.min(axis=1), strict=True):
            if distance <= bar:
                found[row] = Leak(row, int(learned[place]), 1.0)
    return [found[row] for row in test.tolist() if row in found]


def copy_groups(
    vectors: Float[np.ndarray, "n d"], *, device: str, groups: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """Number the rows so that near duplicates, and what hangs together through them, have one number.

    Every pair is compared, in blocks: ``n * n * d`` multiply-adds, memory linear in ``n``.

    Args:
        vectors: All rows, of training and test images.
        device: ``"auto"`` or a torch device.
        groups: Rows that belong together anyway stay together.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    num = len(vectors)
    numbers = np.arange(num) if groups is None else np.unique(groups, return_inverse=True)[1]
    unit = unit_rows(vectors - vectors.mean(axis=0, dtype=np.float64))
    for first, second in itertools.chain(_near_pairs(unit, device_name(device)), _same_central_pairs(vectors)):
        # Joining block by block keeps memory linear even where all images are copies of one.
        links = coo_matrix((np.ones(len(first), dtype=bool), (numbers[first], numbers[second])), shape=(num, num))
        numbers = connected_components(links, directed=False)[1][numbers]
    result: np.ndarray = np.unique(numbers, return_inverse=True)[1].astype(np.int64)
    return result


def _near_pairs(unit: Float32[np.ndarray, "n d"], device: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of row numbers of pairs within ``NEAR_DUPLICATE``, each pair once."""
    stored = torch.from_numpy(unit).to(device)
    for begin in range(0, len(unit), _ROWS):
        for left in range(begin, len(unit), _COLUMNS):
            near = stored[begin : begin + _ROWS] @ stored[left : left + _COLUMNS].T >= NEAR_DUPLICATE - _ROUNDING
            rows, columns = (part.cpu().numpy() for part in torch.nonzero(near, as_tuple=True))
            rows, columns = rows + begin, columns + left
            if (rows < columns).any():
                yield rows[rows < columns], columns[rows < columns]


def same_images(vectors: Float[np.ndarray, "n d"]) -> list[Int[np.ndarray, " _"]]:
    """Rows that are the same image by their vectors (equal, or as near as arithmetic is exact): two or more each.

    Vectors of one image can differ in the last digits, as it lies in another batch. Those are near on any line as
    well: only neighbours on one drawn at random are compared.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    _, first, copy_of = np.unique(content_keys(vectors.astype(np.float64), 0), return_index=True, return_inverse=True)
    distinct = vectors[first].astype(np.float64)
    distinct -= distinct.mean(axis=0)
    bar = _ARITHMETIC * _length(vectors)
    line = np.random.default_rng(0).standard_normal(vectors.shape[1])
    places = distinct @ (line / np.linalg.norm(line))
    order = np.argsort(places, kind="stable")
    pairs = []
    for step in range(1, min(_MOST_STEPS, len(order) - 1) + 1):
        left, right = order[:-step], order[step:]
        near = np.flatnonzero(places[right] - places[left] <= bar)
        if not len(near):
            break
        left, right = left[near], right[near]
        same = np.linalg.norm(distinct[left] - distinct[right], axis=1) <= bar
        pairs.append((left[same], right[same]))
    rows, columns = (np.concatenate([pair[side] for pair in pairs] or [first[:0]]) for side in (0, 1))
    links = coo_matrix((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(len(first), len(first)))
    numbers = connected_components(links, directed=False)[1][copy_of]
    sizes = np.bincount(numbers)
    by_number = np.split(np.argsort(numbers, kind="stable"), np.cumsum(sizes)[:-1])
    return [by_number[number] for number in np.flatnonzero(sizes > 1).tolist()]


def _length(vectors: Float[np.ndarray, "n d"]) -> float:
    """Root of the mean squared length."""
    return float(np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1).mean()))


def _central_rows(
    vectors: Float[np.ndarray, "n d"],
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, "n d"], float]:
    """Rows so near to the mean that rounding may turn them anywhere, all rows centred, and what distance is none."""
    length = _length(vectors)
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    central = np.flatnonzero(np.linalg.norm(centred, axis=1) <= _CENTRAL * length)
    return central, centred, SAME * length


def _distances(first: Float[np.ndarray, "m d"], second: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "m k"]:
    squares = np.square(first).sum(axis=1)[:, None] + np.square(second).sum(axis=1) - 2.0 * (first @ second.T)
    distances: np.ndarray = np.sqrt(np.maximum(squares, 0.0))
    return distances


def _same_central_pairs(vectors: Float[np.ndarray, "n d"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of row numbers of pairs among the central rows that are equal but for rounding."""
    central, centred, bar = _central_rows(vectors)
    for begin in range(0, len(central), _ROWS):
        rows = central[begin : begin + _ROWS]
        for left in range(begin, len(central), _COLUMNS):
            columns = central[left : left + _COLUMNS]
            near = np.nonzero(_distances(centred[rows], centred[columns]) <= bar)
            first, second = rows[near[0]], columns[near[1]]
            if (first < second).any():
                yield first[first < second], second[first < second]
