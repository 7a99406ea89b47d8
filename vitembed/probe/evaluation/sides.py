"""Which side of the split each image is on, and what is to be said about that."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool

from vitembed.errors import DataError
from vitembed.probe.split import given_split, grouped_split, stratified_split


def choose_sides(
    targets: np.ndarray,
    split: Any,
    groups: np.ndarray | None,
    test_share: float,
    seed: int,
    rng: np.random.Generator,
) -> tuple[Bool[np.ndarray, " n"], list[str]]:
    """Rows to test, after a look at whether anything can be learned and tested at all."""
    notes: list[str] = []
    if split is not None:
        is_test, notes = given_split(split, len(targets))
    elif np.bincount(targets).max() < 2:
        raise DataError(f"each of the {len(targets)} classes has one image: none is left to test on")
    elif groups is not None:
        is_test = grouped_split(targets, groups, test_share=test_share, seed=seed)
    else:
        is_test = stratified_split(targets, test_share=test_share, rng=rng)
    num_learned = len(np.unique(targets[~is_test]))
    if num_learned < 2:
        raise DataError(f"the training images are of {num_learned} class, probing needs at least 2")
    return is_test, notes


def remarks_on_classes(names: list[Any], targets: np.ndarray, is_test: np.ndarray) -> list[str]:
    """Classes that one side lacks."""
    num_train = np.bincount(targets[~is_test], minlength=len(names))
    num_test = np.bincount(targets[is_test], minlength=len(names))
    notes = []
    for lacking, what in (
        (num_test == 0, "never tested: no test images"),
        (num_train == 0, "never right: no training images"),
    ):
        if lacking.any():
            some = ", ".join(str(names[i]) for i in np.flatnonzero(lacking)[:3]) + (
                ", ..." if lacking.sum() > 3 else ""
            )
            num = int(lacking.sum())
            notes.append(f"{num} of {len(names)} classes {'is' if num == 1 else 'are'} {what} ({some})")
    return notes
