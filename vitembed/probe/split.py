"""Which images a probe learns from and which it is tested on."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from sklearn.model_selection import StratifiedGroupKFold

from vitembed.errors import DataError

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of parts as people write them (in lower case), and what they mean here."""


def given_split(split: Any, num: int) -> tuple[Bool[np.ndarray, " n"], list[str]]:
    """Read a split that came with the data: which rows are tested, and remarks.

    Args:
        split: ``train``, ``val`` or ``test`` for each row (also ``validation`` and the like), or a boolean array that
            is True for test rows. Without ``test`` rows ``val`` is tested; with them ``val`` joins ``train``, as the
            probes choose their settings inside what they learn from.
        num: Rows there are.

    Raises:
        DataError: If a name is unknown, the length is wrong, or one side is empty.
    """
    parts = np.asarray(split)
    if parts.shape != (num,):
        raise DataError(f"the split has shape {list(parts.shape)}, expected one entry for each of {num} images")
    notes = []
    if parts.dtype == np.bool_:
        is_test = parts
    else:
        names = [SPLIT_NAMES.get(str(part).strip().lower()) for part in parts.tolist()]
        if None in names:
            raise DataError(f"unknown split {parts.tolist()[names.index(None)]!r}: expected train, val or test")
        known = np.array(names)
        tested = "test" if (known == "test").any() else "val"
        is_test = known == tested
        if tested == "test" and (known == "val").any():
            notes.append(f"{int((known == 'val').sum())} val images joined train: the probes are tested on test")
    if is_test.all() or not is_test.any():
        raise DataError(f"the split has {int((~is_test).sum())} train and {int(is_test.sum())} test images, needs both")
    return is_test, notes


def stratified_split(
    targets: Int[np.ndarray, " n"], *, test_share: float, rng: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    """Draw about ``test_share`` of each class as test rows: at least one, and never all of a class.

    Rows of a class with one member are never tested.
    """
    shuffled = rng.permutation(len(targets))
    order = shuffled[np.argsort(targets[shuffled], kind="stable")]
    counts = np.bincount(targets)
    rank = np.arange(len(targets)) - (np.cumsum(counts) - counts)[targets[order]]
    num_test = np.clip(np.rint(counts * test_share), 1, np.maximum(counts - 1, 0))
    is_test = np.zeros(len(targets), dtype=bool)
    is_test[order] = rank < num_test[targets[order]]
    is_test &= counts[targets] > 1
    return is_test


def grouped_split(
    targets: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"], *, test_share: float, seed: int
) -> Bool[np.ndarray, " n"]:
    """Draw about ``test_share`` of the rows as test rows, whole groups at a time, classes balanced where groups allow.

    Raises:
        DataError: If there are fewer groups than the share needs.
    """
    num_folds = max(2, round(1 / test_share))
    num_groups = len(np.unique(groups))
    if num_groups < num_folds:
        what = "all images are one group, which" if num_groups == 1 else f"{num_groups} groups"
        raise DataError(f"{what} cannot be split into {num_folds} parts (test_share={test_share:g})")
    folds = StratifiedGroupKFold(min(num_folds, int(np.bincount(targets).max())), shuffle=True, random_state=seed)
    is_test = np.zeros(len(targets), dtype=bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about small classes; the report says it in its own words
        _, rows = next(folds.split(np.zeros(len(targets)), targets, groups))
    is_test[rows] = True
    return is_test
