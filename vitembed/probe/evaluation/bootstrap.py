"""Bootstrap intervals of what is no plain share: balanced accuracy, macro F1 and AUROC.

Drawing m images anew with replacement is drawing how often each counts, so a draw is a row of weights: nothing is
resampled, and a thousand draws are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Int

from vitembed.probe.evaluation.wilson import FEW, wilson_interval

NUM_DRAWS = 1000
_BLOCK = 2**22
"""Weights at a time: 32 MiB."""


def class_means(
    hits: np.ndarray, of_truth: np.ndarray, of_predicted: np.ndarray
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Balanced accuracy and macro F1 from right answers, images and answers of each class, ``[..., c]``.

    Classes without images have no recall, and classes that were never answered either have no F1: they do not count.
    """
    tested, seen = of_truth > 0, of_truth + of_predicted > 0
    recall = np.divide(hits, of_truth, out=np.zeros(hits.shape), where=tested)
    f1 = np.divide(2 * hits, of_truth + of_predicted, out=np.zeros(hits.shape), where=seen)
    return np.asarray(recall.sum(axis=-1) / tested.sum(axis=-1)), np.asarray(f1.sum(axis=-1) / seen.sum(axis=-1))


def class_mean_intervals(
    predicted: Int[np.ndarray, " m"],
    truth: Int[np.ndarray, " m"],
    num_classes: int,
    *,
    rng: np.random.Generator,
    groups: Int[np.ndarray, " m"] | None = None,
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of balanced accuracy and macro F1: percentile bootstrap of 1,000 draws over images or groups.

    With fewer than 10 right or wrong answers each end lies at least as far out as Wilson's for the accuracy.
    """
    # Images with the same truth and answer are the same here: cells of the confusion matrix stand for them.
    cells, cell_of = np.unique(truth * num_classes + predicted, return_inverse=True)
    cell_truth, cell_answer = cells // num_classes, cells % num_classes
    hit = np.flatnonzero(cell_truth == cell_answer)
    drawn = []
    for counts in _drawn_counts(cell_of, len(cells), groups, rng):
        of_truth = _summed(counts, cell_truth, num_classes)
        of_answer = _summed(counts, cell_answer, num_classes)
        hits = _summed(counts[:, hit], cell_truth[hit], num_classes)
        drawn.append(np.stack(class_means(hits, of_truth, of_answer)))
    right = predicted == truth
    num, num_right = len(right), int(right.sum())
    room = (0.0, 0.0)
    if min(num_right, num - num_right) < FEW:
        low, high = wilson_interval(num_right, num)
        room = (num_right / num - low, high - num_right / num)
    hits, of_truth, of_answer = (np.bincount(part, minlength=num_classes) for part in (truth[right], truth, predicted))
    values = class_means(hits, of_truth, of_answer)
    first, second = (
        _widened(float(value), draws, room) for value, draws in zip(values, np.concatenate(drawn, axis=1), strict=True)
    )
    return first, second


def auroc(positive: Float[np.ndarray, " m"], truth: Int[np.ndarray, " m"]) -> float | None:
    """Area under the receiver's curve: the chance that an image of class 1 scores above one of class 0, ties half.

    Returns:
        None when the images are of one class.

    Source: Hanley & McNeil 1982, Radiology 143:29-36 (the Wilcoxon statistic).
    """
    if len(np.unique(truth)) < 2:
        return None
    return float(_areas_of(positive, truth)(np.ones((1, len(truth))))[0])


def auroc_interval(
    positive: Float[np.ndarray, " m"],
    truth: Int[np.ndarray, " m"],
    *,
    rng: np.random.Generator,
    groups: Int[np.ndarray, " m"] | None = None,
) -> tuple[float, float]:
    """95 % interval of ``auroc``: percentile bootstrap of 1,000 draws; draws without either class do not count.

    Where the two classes overlap by less than one image every draw gives the same; there the end is Wilson's for as
    many images as the smaller class has.
    """
    areas_of = _areas_of(positive, truth)
    # Draws weigh images, so each image is a cell of its own.
    areas = [areas_of(weights) for weights in _drawn_counts(np.arange(len(truth)), len(truth), groups, rng)]
    area = float(areas_of(np.ones((1, len(truth))))[0])
    fewest = int(np.bincount(truth, minlength=2).min())
    overlap = (1 - area) * fewest, area * fewest
    low, high = wilson_interval(area * fewest, fewest)
    room = (area - low if overlap[0] < 1 else 0.0, high - area if overlap[1] < 1 else 0.0)
    drawn = np.concatenate(areas)
    return _widened(area, drawn[np.isfinite(drawn)], room)


def _areas_of(positive: np.ndarray, truth: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from weights ``[b, m]`` to areas ``[b]``; NaN where a class has no weight."""
    order = np.argsort(positive, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(positive[order]) != 0])
    is_one = truth[order] == 1

    def areas(weights: np.ndarray) -> np.ndarray:
        sorted_weights = weights[:, order]
        ones = np.add.reduceat(sorted_weights * is_one, starts, axis=1)
        zeros = np.add.reduceat(sorted_weights * ~is_one, starts, axis=1)
        below = np.cumsum(zeros, axis=1) - zeros / 2
        total = ones.sum(axis=1) * zeros.sum(axis=1)
        found: np.ndarray = np.divide(
            (ones * below).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0
        )
        return found

    return areas


def _drawn_counts(
    cell_of: np.ndarray, num_cells: int, groups: np.ndarray | None, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """How many images of each cell a draw holds, ``[b, num_cells]``, in blocks."""
    if groups is None:
        shares = np.bincount(cell_of, minlength=num_cells) / len(cell_of)
        block = max(1, _BLOCK // num_cells)
        for begin in range(0, NUM_DRAWS, block):
            yield rng.multinomial(len(cell_of), shares, size=min(block, NUM_DRAWS - begin))
        return
    from scipy.sparse import coo_matrix

    used, group_of = np.unique(groups, return_inverse=True)
    content = coo_matrix((np.ones(len(cell_of)), (group_of, cell_of)), shape=(len(used), num_cells)).tocsr()
    block = max(1, _BLOCK // max(num_cells, len(used)))
    for begin in range(0, NUM_DRAWS, block):
        size = min(block, NUM_DRAWS - begin)
        drawn = rng.multinomial(len(used), np.full(len(used), 1 / len(used)), size=size)
        yield np.asarray((content.T @ drawn.T).T)


def _summed(counts: np.ndarray, class_of: np.ndarray, num_classes: int) -> np.ndarray:
    """Add the cells ``[b, cells]`` of each class."""
    from scipy.sparse import coo_matrix

    to_class = coo_matrix((np.ones(len(class_of)), (class_of, np.arange(len(class_of)))), (num_classes, len(class_of)))
    return np.asarray((to_class.tocsr() @ counts.T).T)


def _widened(value: float, draws: np.ndarray, room: tuple[float, float]) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975]) if len(draws) else (value, value)
    below, above = room
    low = min(float(low), value, value - below) if below else float(low)
    high = max(float(high), value, value + above) if above else float(high)
    return max(0.0, low), min(1.0, high)
