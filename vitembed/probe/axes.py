"""Scales and principal axes of weighted inputs: where a diagonal is a good model of correlated vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

MAX_GRAM = 4096
"""Largest side of the matrix whose eigenvectors are the axes; wider inputs are not rotated (minutes, gigabytes)."""
SMALL_PRODUCT = 2**26
"""Multiply-adds (about 5 ms of one core) below which a matrix product is not worth a second thread."""


@contextmanager
def threads_for(product: int) -> Iterator[None]:
    """Run the block on one CPU thread if its matrix products are small (``product`` multiply-adds), then restore.

    A product split over threads waits for the last of them: on a busy 2-core machine a fit of 5,000 x 384 vectors with
    10 classes took 37 s so, and 3 s on one thread. The setting is torch's and holds for the process.
    """
    before = torch.get_num_threads()
    if product < SMALL_PRODUCT:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def moments(
    X: Float[np.ndarray, "n d"], weights: Float[np.ndarray, " n"], *, scaled: bool
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Weighted mean and standard deviation of each feature; 1 for those that do not vary beyond rounding.

    Without ``scaled`` every deviation is given as 1.
    """
    mean: np.ndarray = np.average(X, axis=0, weights=weights)
    if not scaled:
        return mean, np.ones_like(mean)
    variance = np.average((X - mean) ** 2, axis=0, weights=weights)
    rounding = (len(X) * np.finfo(np.float64).eps * np.abs(mean)) ** 2
    return mean, np.where(variance <= rounding, 1.0, np.sqrt(variance))


@dataclass(frozen=True)
class Axes:
    """Inputs in their principal axes, for any number of solves."""

    inputs: Float[Tensor, "n r"]
    rotation: Float[Tensor, "d r"] | None
    """Orthonormal columns; None when the inputs are as they were."""
    spectrum: Float[Tensor, " r"]
    """Weighted mean square of each column."""

    def to_features(self, weight: Float[Tensor, "k r"]) -> Float[Tensor, "k d"]:
        """Weights on the axes as weights on the original features."""
        return weight if self.rotation is None else weight @ self.rotation.T


def principal_axes(inputs: Float[Tensor, "n d"], weights: Float[Tensor, " n"], *, max_gram: int = MAX_GRAM) -> Axes:
    """Rotate centred inputs into the eigenvectors of their weighted covariance.

    Directions without variance are dropped: the penalty alone sets their weights, to 0. With fewer rows than
    features this leaves at most ``n`` columns.
    """
    share = (weights / weights.sum()).sqrt()[:, None]
    n, d = inputs.shape
    if min(n, d) > max_gram:
        return Axes(inputs, None, (inputs * share).square().sum(dim=0))
    scaled = inputs * share
    if n >= d:
        spectrum, rotation = torch.linalg.eigh(scaled.T @ scaled)
        kept = spectrum > spectrum[-1] * d * torch.finfo(inputs.dtype).eps
        rotation = rotation[:, kept]
    else:
        # The same axes from the n x n side: scaled = U S V^T, so V = scaled^T U / S.
        spectrum, left = torch.linalg.eigh(scaled @ scaled.T)
        kept = spectrum > spectrum[-1] * n * torch.finfo(inputs.dtype).eps
        rotation = scaled.T @ (left[:, kept] / spectrum[kept].sqrt())
    return Axes(inputs @ rotation, rotation, spectrum[kept])
