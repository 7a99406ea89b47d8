"""What accuracy to expect on the images that nobody labelled, from those answers that were asked at random.

Images that were picked are no fair sample: typical ones are easier than average, uncertain ones harder. Those drawn at
random are judged by probes that did not learn from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vitembed.errors import counted
from vitembed.probe.evaluation.abstain import MIN_ANSWERS, AbstainRule, calibrate
from vitembed.probe.evaluation.label_errors import out_of_fold
from vitembed.probe.evaluation.wilson import wilson_interval
from vitembed.probe.labelling.fitting import C, fit_probe

MIN_RANDOM = 10
"""Fewer random answers than this tell too little to give a number: 9 right of 9 are 70 % or more."""
MAX_FOLDS = 10
HARDLY = 0.03
"""Where a doubling of the labels brought surely less than this, more of them are said to hardly pay."""


@dataclass(frozen=True, kw_only=True)
class ExpectedAccuracy:
    """How right the probe will be on the other images, as far as the answers tell; shares in 0..1."""

    accuracy: float | None
    """Of answers drawn at random, judged by probes that did not learn from them; None: too few to tell."""
    ci95: tuple[float, float] | None
    """Wilson's interval of it."""
    num_random: int
    num_labelled: int
    out_of_fold: float | None
    """Of all answers, the informative ones too, which are no fair sample; given while ``num_random`` is below 20. None
    with a single class."""
    with_half: float | None
    """``accuracy`` of probes that learned from half of the labels: what the last doubling brought."""
    gain_ci95: tuple[float, float] | None
    """Interval of ``accuracy - with_half``, paired."""
    abstain: AbstainRule | None
    """From which probability on answers are right often enough; None with fewer than 20 answers to tell by."""
    num_sure: int
    """Images without a label for which the probe is that sure."""
    num_left: int
    """Images without a label."""

    def lines(self) -> list[str]:
        """The same in words, for people."""
        if self.accuracy is None or self.ci95 is None:
            found = [
                f"expected accuracy: too few to tell, {self.num_random} of {self.num_labelled} labels are of images "
                f"drawn at random ({MIN_RANDOM} are needed)"
            ]
            if self.out_of_fold is not None:
                found.append(
                    f"out of fold {_percent(self.out_of_fold)} of all labels are told right, but they are no fair "
                    "sample: typical images are easier than average, uncertain ones harder"
                )
        else:
            low, high = self.ci95
            found = [
                f"expected accuracy: {_percent(self.accuracy)} (95 % interval {_percent(low)} to {_percent(high)}), "
                f"by {counted(self.num_random, 'image')} drawn at random"
            ]
        if self.abstain is not None:
            target = f"{100 * self.abstain.target_precision:g} %"
            if self.abstain.threshold is None:
                found.append(f"no probability is high enough yet for {target} of such answers to be right")
            else:
                found.append(
                    f"{self.num_sure:,} of {self.num_left:,} other images get an answer that is right about {target} "
                    f"of the time (probability {self.abstain.threshold:.2f} or more)"
                )
        if self.with_half is not None and self.gain_ci95 is not None:
            low, high = self.gain_ci95
            if low > 0:
                verdict = "more labels still pay"
            elif high < HARDLY:
                verdict = "more labels hardly pay any more"
            else:
                verdict = "too near to tell whether more pay"
            found.append(f"half of the labels gave {_percent(self.with_half)}: {verdict}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "accuracy": self.accuracy,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "num_random": self.num_random,
            "num_labelled": self.num_labelled,
            "out_of_fold": self.out_of_fold,
            "with_half": self.with_half,
            "gain_ci95": None if self.gain_ci95 is None else list(self.gain_ci95),
            "abstain": None if self.abstain is None else self.abstain.to_dict(),
            "num_sure": self.num_sure,
            "num_left": self.num_left,
        }


def expect(
    vectors: Float[np.ndarray, "m d"],
    targets: Int[np.ndarray, " m"],
    drawn: Bool[np.ndarray, " m"],
    *,
    confidence: Float[np.ndarray, " r"],
    seed: int = 0,
    target_precision: float = 0.95,
    device: str = "auto",
) -> ExpectedAccuracy:
    """Judge a linear probe by the answers that it learned from, each by a probe that did not see it.

    A tenth at most of the random answers is held out at a time, and all others are learned from: those probes know
    nearly as much as the one in use, so that the number is hardly too low.

    Args:
        vectors: Of the labelled images.
        targets: Their class numbers; two classes at least occur.
        drawn: Which of them were drawn at random.
        confidence: Of the probe in use, for the images without a label.
        seed: Decides the folds.
        target_precision: How often answers are to be right from which the probe does not abstain.
        device: ``"auto"`` or a torch device.
    """
    rng = np.random.default_rng(seed)
    num_random = int(drawn.sum())
    accuracy = ci95 = overall = with_half = gain_ci95 = rule = None
    confident, right = np.zeros(0), np.zeros(0, dtype=bool)
    if num_random >= MIN_RANDOM:
        confident, right, right_by_half = _cross_fit(vectors, targets, drawn, rng, device)
        accuracy, ci95 = float(right.mean()), wilson_interval(int(right.sum()), num_random)
        with_half, gain_ci95 = float(right_by_half.mean()), _mean_interval(right - right_by_half)
    if num_random < MIN_ANSWERS:
        prob = out_of_fold(vectors, targets, C=C, seed=seed, device=device)
        judged = np.isfinite(prob).all(axis=1)
        if judged.any():
            right = prob[judged].argmax(axis=1) == targets[judged]
            confident, overall = prob[judged].max(axis=1), float(right.mean())
    if len(right) >= MIN_ANSWERS:
        rule = calibrate(confident, right, target_precision=target_precision)
    sure = 0 if rule is None or rule.threshold is None else int((confidence >= rule.threshold).sum())
    return ExpectedAccuracy(
        accuracy=accuracy,
        ci95=ci95,
        num_random=num_random,
        num_labelled=len(targets),
        out_of_fold=overall,
        with_half=with_half,
        gain_ci95=gain_ci95,
        abstain=rule,
        num_sure=sure,
        num_left=len(confidence),
    )


def _mean_interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean of differences in -1..1; never narrower than what unseen ones could make of it."""
    num, mean = len(differences), float(differences.mean())
    half = max(1.96 * float(differences.std(ddof=1)) / math.sqrt(num), 3 / num)  # the rule of three
    return mean - half, mean + half


def _cross_fit(
    vectors: np.ndarray, targets: np.ndarray, drawn: np.ndarray, rng: np.random.Generator, device: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each random answer: confidence, whether right, and how often right by probes of half the labels."""
    rows = rng.permutation(np.flatnonzero(drawn))
    confident = np.zeros(len(targets))
    right = np.zeros(len(targets), dtype=bool)
    by_half = np.zeros(len(targets))
    for held in np.array_split(rows, min(MAX_FOLDS, len(rows))):
        train = np.setdiff1d(np.arange(len(targets)), held)
        answer, confident[held] = _answers(vectors, targets, train, held, device)
        right[held] = answer == targets[held]
        for half in _halves(train, targets, rng):
            by_half[held] += 0.5 * (_answers(vectors, targets, half, held, device)[0] == targets[held])
    return confident[drawn], right[drawn], by_half[drawn]


def _halves(train: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two halves with each class in both as evenly as can be."""
    shuffled = rng.permutation(train)
    ordered = shuffled[np.argsort(targets[shuffled], kind="stable")]
    return ordered[::2], ordered[1::2]


def _answers(
    vectors: np.ndarray, targets: np.ndarray, train: np.ndarray, held: np.ndarray, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers and confidences for the held-out rows; the only class where there is one alone to learn."""
    known = np.unique(targets[train])
    if len(known) < 2:
        return np.full(len(held), known[0]), np.ones(len(held))
    probe = fit_probe(vectors[train], targets[train], device=device)
    prob = probe.predict_proba(vectors[held])
    return probe.classes_[prob.argmax(axis=1)], prob.max(axis=1)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
