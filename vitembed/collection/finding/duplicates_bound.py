"""Pairs of unit vectors that reach a cosine, without computing most of the others.

Of each vector its coordinates along a few principal axes are kept, and the length of the rest. The cosine of two
vectors is the product of the former plus that of the two rests, which is at most the product of their lengths
(Cauchy-Schwarz): a bound for a tenth of the arithmetic. Only pairs whose bound reaches the threshold are computed, so
nothing is ever missed; where the bound tells too little, all pairs of the two blocks are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

NUM_AXES = 32
SAMPLE_ROWS = 4_096
"""Of which the axes are made; any axes are right, these prune the most."""
_WORTH = 0.002  # share of pairs beyond which they are computed as a matrix product, faster and in less memory
_REST_SLACK = 1e-6  # on the square of a rest, and on the bound: many times what rounding to float32 can do
_BOUND_SLACK = 1e-5


class Near(NamedTuple):
    """For each row of one block its nearest in another, as far as they reach the threshold."""

    rows: Int[np.ndarray, " p"]
    nearest: Int[np.ndarray, " p"]
    """Rows of the other block; the first of equally near ones."""
    cosines: Float[np.ndarray, " p"]


def principal_axes(sample: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d a"] | None:
    """Orthonormal axes, float32; None where there are so few dimensions that a bound would not pay."""
    if sample.shape[1] < 3 * NUM_AXES or not len(sample):
        return None
    wide = sample.astype(np.float64)
    _, axes = np.linalg.eigh(wide.T @ wide)  # ascending
    return np.ascontiguousarray(axes[:, -NUM_AXES:].astype(np.float32))


def shorten(vectors: Float[np.ndarray, "n d"], axes: Float[np.ndarray, "d a"]) -> Float[np.ndarray, "n b"]:
    """Coordinates of unit vectors along the axes, and the length of the rest as one more: b = a + 1.

    The product of two such rows is at least the cosine of the two vectors, rounding aside.
    """
    along = vectors @ axes
    rest = np.sqrt(np.maximum(0, 1 - np.square(along, dtype=np.float64).sum(axis=1)) + _REST_SLACK)
    return np.concatenate([along, rest[:, None].astype(np.float32)], axis=1)


def nearest_pairs(
    block: Float[np.ndarray, "n d"],
    others: Float[np.ndarray, "k d"],
    threshold: float,
    short_block: Float[np.ndarray, "n b"] | None = None,
    short_others: Float[np.ndarray, "k b"] | None = None,
) -> Near:
    """Each row's nearest of the others, for the rows where it has at least this cosine.

    Args:
        block: Unit vectors, float32.
        others: Unit vectors, float32.
        threshold: A cosine.
        short_block: The same by ``shorten``; without it every pair is computed.
        short_others: Likewise, along the same axes.
    """
    if not len(block) or not len(others):
        return Near(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    if short_block is not None and short_others is not None:
        possible = np.flatnonzero((short_block @ short_others.T).ravel() >= threshold - _BOUND_SLACK)
        if len(possible) <= _WORTH * len(block) * len(others):
            return _best(block, others, threshold, *np.divmod(possible, len(others)))
    cosines = block @ others.T
    nearest = cosines.argmax(axis=1)
    found = cosines[np.arange(len(block)), nearest]
    rows = np.flatnonzero(found >= threshold)
    return Near(rows, nearest[rows], found[rows])


def _best(block: np.ndarray, others: np.ndarray, threshold: float, rows: np.ndarray, columns: np.ndarray) -> Near:
    """Of pairs in the order of their rows, the nearest of each row."""
    cosines = np.einsum("pd,pd->p", block[rows], others[columns])
    reached = cosines >= threshold
    rows, columns, cosines = rows[reached], columns[reached], cosines[reached]
    # By row, then from the nearest on, then by column: the first of each row is the one.
    order = np.lexsort((columns, -cosines, rows))
    first = order[np.flatnonzero(np.diff(rows[order], prepend=-1))]
    return Near(rows[first], columns[first], cosines[first])
