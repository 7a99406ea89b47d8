"""Batches with labels, and which images teach, choose the epoch, and are tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vitembed.images.cache import ImageCache
from vitembed.pretrain.batches import BatchStream, ImageBatch
from vitembed.probe.split import grouped_split, stratified_split

MIN_VALIDATION = 50
"""With fewer, an epoch that seems better is mostly luck: the last one is taken then."""


class LabelledBatch(ImageBatch):
    """What a training step gets."""

    labels: Tensor
    """int64 [b]: class numbers."""


class LabelledStream(BatchStream):
    """A ``BatchStream`` whose batches carry labels.

    Args:
        cache: Decoded images.
        targets: Class number of each row of the cache, [n].
        batch_size: Images per step.
        seed: Decides every order.
        first_step: Called at the start of iteration; tells which step comes next.
        subset: Rows of the cache that are trained on.
        pin_memory: As for ``BatchStream``.
    """

    def __init__(
        self,
        cache: ImageCache,
        targets: npt.NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        first_step: Callable[[], int],
        subset: npt.NDArray[np.int64],
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            cache, batch_size=batch_size, seed=seed, first_step=first_step, pin_memory=pin_memory, subset=subset
        )
        self.targets = targets

    def batch(self, step: int) -> LabelledBatch:
        """The batch of a step."""
        images = super().batch(step)
        labels = torch.from_numpy(self.targets[self.rows(step)])
        return {**images, "labels": labels.pin_memory() if self.pin_memory else labels}


@dataclass(frozen=True, eq=False)
class Sides:
    """Which images do what; row numbers of all labelled images."""

    train: npt.NDArray[np.int64]
    """Learned from."""
    validation: npt.NDArray[np.int64]
    """Choose the epoch; may be empty."""
    test: npt.NDArray[np.int64]
    """Neither."""


def sides_of(
    targets: Int[np.ndarray, " n"],
    is_test: Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"] | None,
    *,
    validation_share: float,
    seed: int,
) -> Sides:
    """Take some of the training images to choose the epoch by; images of a group stay together.

    Args:
        targets: Class numbers of all images.
        is_test: The probe's split.
        groups: Images with the same number belong together.
        validation_share: Of the training images; none is taken where it would be fewer than ``MIN_VALIDATION``.
        seed: Decides the draw.
    """
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    nothing = np.empty(0, np.int64)
    if validation_share * len(train) < MIN_VALIDATION:
        return Sides(train, nothing, test)
    # Numbers without gaps: a class may be missing among the training images.
    _, known = np.unique(targets[train], return_inverse=True)
    if groups is None:
        chosen = stratified_split(known, test_share=validation_share, rng=np.random.default_rng([seed, 1]))
    else:
        _, known_groups = np.unique(groups[train], return_inverse=True)
        if len(np.unique(known_groups)) < max(2, round(1 / validation_share)):
            return Sides(train, nothing, test)
        chosen = grouped_split(known, known_groups, test_share=validation_share, seed=seed + 1)
        if len(np.unique(known[~chosen])) < len(np.unique(known)):  # a class that is one group has to be learned
            return Sides(train, nothing, test)
    return Sides(train[~chosen], train[chosen], test)
