"""Labels that are likely wrong: a probe that never saw the image is sure of another class."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold

from vitembed.probe.choose import content_keys
from vitembed.probe.evaluation.abstain import MIN_ANSWERS, calibrate, is_sure
from vitembed.probe.linear import LinearProbe

NUM_FOLDS = 5
_TOL = 1e-3
"""Probabilities right to two digits are enough for bars that are means."""
SLACK = 0.05
"""How much less often than the surest answers those that accuse may agree with the labels: the share of accusations
that the probe's own mistakes are allowed to add."""
LEAST_AGREEMENT = 0.5
"""A probe whose surest answers disagree with more than half of the labels is believed no more than they are."""


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
    apart have low bars for all, and a class of which the probe is never sure accuses nobody. Nor does an answer that is
    less sure than those that are right: how often the surest twentieth of the answers disagrees with the labels is
    about how many labels are wrong, and answers count as far down as they disagree at most ``SLACK`` more often.

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
    trusted = trusted_confidence(confidence[judged], agrees[judged])
    accused = (suggested != targets) & (reached.max(axis=1) > given) & is_sure(confidence, trusted) & judged
    rows = np.flatnonzero(accused)
    margin = prob[rows, suggested[rows]] - given[rows]
    return [
        LabelError(row, int(targets[row]), int(suggested[row]), float(prob[row, suggested[row]]), float(given[row]))
        for row in rows[np.argsort(-margin, kind="stable")].tolist()
    ]


def trusted_confidence(confidence: Float[np.ndarray, " m"], agrees: Bool[np.ndarray, " m"]) -> float | None:
    """Confidence from which on a disagreement says more of the label than of the probe; none: there is none.

    Args:
        confidence: Of each answer.
        agrees: Whether it is the image's label.
    """
    if not len(confidence):
        return None
    order = np.argsort(-confidence, kind="stable")
    agreement = np.cumsum(agrees[order]) / np.arange(1, len(order) + 1)
    fewest = min(len(order), max(MIN_ANSWERS, len(order) // 20))
    target = agreement[fewest - 1 :].max() - SLACK
    if target < LEAST_AGREEMENT:
        return None
    return calibrate(confidence, agrees, target_precision=float(target)).threshold


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
