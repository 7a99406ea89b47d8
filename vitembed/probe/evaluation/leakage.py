"""Near duplicates: test images that a probe has as good as seen, and groups of copies to be kept on one side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from vitembed.probe.inputs import device_name
from vitembed.probe.knn import nearest, unit_rows

NEAR_DUPLICATE = 0.995
"""Cosine, after the mean is subtracted, from which an image counts as a copy of another."""
_ROWS, _COLUMNS = 512, 32768
"""Similarities at a time: 64 MiB."""
_ROUNDING = 1e-5
"""Of a float32 product. A pair that is grouped without need costs nothing, one that is missed would be a leak."""


@dataclass(frozen=True)
class Leak:
    """A test image and the training image that it is a near copy of."""

    test_row: int
    train_row: int
    similarity: float
    """Cosine of the centred vectors."""


def leaks_across(
    vectors: Float[np.ndarray, "n d"], train: Int[np.ndarray, " t"], test: Int[np.ndarray, " m"], *, device: str
) -> list[Leak]:
    """Every test row with a training row within ``NEAR_DUPLICATE``, with the nearest one, in the order of ``test``.

    The mean of all rows is taken off first: vectors of many encoders share a large common part, which lifts every
    cosine.
    """
    centre = vectors.mean(axis=0, dtype=np.float64)
    bank, queries = (unit_rows(vectors[rows] - centre) for rows in (train, test))
    similarities, neighbours = nearest(queries, bank, 1, device=device_name(device))
    return [
        Leak(int(test[i]), int(train[neighbours[i, 0]]), float(similarities[i, 0]))
        for i in np.flatnonzero(similarities[:, 0] >= NEAR_DUPLICATE).tolist()
    ]


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
    for first, second in _near_pairs(unit, device_name(device)):
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
