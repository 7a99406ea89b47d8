"""Labels that are likely wrong: a probe that never saw the image is sure of another class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold

from vitembed.probe.choose import content_keys
from vitembed.probe.evaluation.abstain import calibrate, is_sure
from vitembed.probe.linear import LinearProbe

NUM_FOLDS = 5
_TOL = 1e-3
"""Probabilities right to two digits are enough for bars that are means."""
AGREEMENT = 0.7
"""Three labels in ten may be wrong before nobody is believed any more."""


@dataclass(frozen=True)
class LabelError:
    """A label to look at."""

    row: int
    label: int
    suggested: int
    probability: float
    """Of the suggested class, by a probe that did not learn from this image."""
    label_probability: float
    """Of the class that it is labelled with."""


def find_label_errors(
    vectors: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " n"],
    *,
    C: float,
    seed: int = 0,
    groups: Int[np.ndarray, " n"] | None = None,
    device: str = "auto",
) -> list[LabelError]:
    """Images whose label a probe disagrees with that learned from the others, the surest first.

    Confident learning: the bar of a class is the mean probability that images labelled so get for it. An image is
    listed when another class is the most probable one of those whose bar it reaches. So classes that are hard to tell
    apart have low bars for all, and a class of which the probe is never sure accuses nobody. Nor does a probe that is
    often wrong when it is sure: only answers count from the confidence on from which 70 % agree with the labels.

    Args:
        vectors: Of training and test images together.
        targets: Their class numbers.
        C: Penalty of the probes.
        seed: Decides the five folds.
        groups: Rows that are not to judge each other; without them, rows of equal content (a copy would confirm its own
            wrong label).
        device: ``"auto"`` or a torch device.

    Source: Northcutt et al. 2021, arXiv:1911.00068, section 3.1 (the confident joint) and the margin of section 3.3.
    """
    prob = out_of_fold(vectors, targets, C=C, seed=seed, groups=groups, device=device)
    return confident_disagreement(prob, targets)


def confident_disagreement(prob: Float[np.ndarray, "n c"], targets: Int[np.ndarray, " n"]) -> list[LabelError]:
    """The rule of ``find_label_errors`` on probabilities; rows of NaN, which nobody judged, are passed over."""
    judged = np.isfinite(prob).all(axis=1)
    given = np.where(judged, prob[np.arange(len(prob)), targets], 0.0)
    num = np.bincount(targets[judged], minlength=prob.shape[1])
    sums = np.bincount(targets[judged], weights=given[judged], minlength=prob.shape[1])
    bars = np.divide(sums, num, out=np.full(prob.shape[1], np.inf), where=num > 0)
    reached = np.where((prob >= bars) & judged[:, None], prob, -1.0)
    suggested = reached.argmax(axis=1)
    confidence = np.where(judged, prob.max(axis=1), 0.0)
    agrees = prob.argmax(axis=1) == targets
    trusted = calibrate(confidence[judged], agrees[judged], target_precision=AGREEMENT).threshold
    accused = (suggested != targets) & (reached.max(axis=1) > given) & is_sure(confidence, trusted) & judged
    rows = np.flatnonzero(accused)
    margin = prob[rows, suggested[rows]] - given[rows]
    return [
        LabelError(row, int(targets[row]), int(suggested[row]), float(prob[row, suggested[row]]), float(given[row]))
        for row in rows[np.argsort(-margin, kind="stable")].tolist()
    ]


def out_of_fold(
    vectors: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, " n"],
    *,
    C: float,
    seed: int = 0,
    groups: Int[np.ndarray, " n"] | None = None,
    device: str = "auto",
) -> Float[np.ndarray, "n c"]:
    """Class probabilities of each row from a linear probe that learned from the other folds alone.

    Classes that are missing in the other folds have probability 0. Rows are NaN where nothing was learned, as with
    one class left.
    """
    kept_together = np.unique(content_keys(vectors.astype(np.float64), seed), return_inverse=True)[1]
    if groups is not None:
        kept_together = groups
    num_classes = int(targets.max()) + 1
    prob = np.full((len(targets), num_classes), np.nan)
    num_folds = min(NUM_FOLDS, len(np.unique(kept_together)), int(np.bincount(targets).max()))
    if num_folds < 2:
        return prob
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small classes, and the last digits of the weights
        warnings.simplefilter("ignore", ConvergenceWarning)
        for train, held in folds.split(vectors, targets, kept_together):
            if len(np.unique(targets[train])) < 2 or not len(held):
                continue
            probe = LinearProbe(C, tol=_TOL, device=device).fit(vectors[train], targets[train])
            prob[held] = 0.0
            prob[np.ix_(held, probe.classes_)] = probe.predict_proba(vectors[held])
    return prob
