"""The images of a session as it looks at them: how alike they are, and the random order that tells a fair sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from vitembed.embeddings import unit_rows
from vitembed.probe.labelling.choosing import copy_cosine, random_order, without_copies

LAST_COSINE = 0.999
"""From this cosine on images are never asked about beside each other, however few others are left."""


class Pool:
    """Vectors of all images, labelled or not.

    Args:
        vectors: ``[n, d]`` as they are given; what a probe learns from.
        ids: A name for each.
        seed: Decides the random order.

    Raises:
        DataError: If a vector is zero.
    """

    def __init__(self, vectors: Float[np.ndarray, "n d"], ids: Sequence[str], seed: int) -> None:
        self.given = vectors
        self.unit: np.ndarray = unit_rows(vectors)
        """Rows of length 1: what images are compared by."""
        self.order: list[int] = random_order(ids, seed).tolist()
        self.copy_cosine = copy_cosine(self.unit, np.random.default_rng(seed))
        self._nearest = np.full(len(ids), -1.0, dtype=np.float32)

    def answered(self, rows: Sequence[int], *, anew: bool = False) -> None:
        """Take note of images that have an answer now; ``anew``: they are all that have one."""
        if anew:
            self._nearest[:] = -1.0
        for start in range(0, len(rows), 64):
            cosines = self.unit @ self.unit[list(rows[start : start + 64])].T
            np.maximum(self._nearest, cosines.max(axis=1), out=self._nearest)

    def free(self, taken: Iterable[int]) -> Bool[np.ndarray, " n"]:
        """Which images may be asked about: none of ``taken``, and no copy of an answered one."""
        mask: np.ndarray = self._nearest < self.copy_cosine
        mask[list(taken)] = False
        return mask

    def loosen(self) -> None:
        """Let images pass that are only near to an answered one, as when nothing else is left to ask about."""
        self.copy_cosine = max(self.copy_cosine, LAST_COSINE)

    def distinct(self, rows: np.ndarray, num: int, beside: Sequence[int]) -> list[int]:
        """The first ``num`` of these rows that are no copies of each other or of ``beside``."""
        return without_copies(self.unit, rows, num, bar=self.copy_cosine, beside=beside)
