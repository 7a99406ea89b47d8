"""Fine-tuned against frozen, on the same test images: accuracies, differences, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from vitembed.probe.evaluation.abstain import AbstainRule, calibrate
from vitembed.probe.evaluation.paired import PairedTest, compare_all
from vitembed.probe.report import ProbeReport
from vitembed.probe.scores import Scores, score

TUNED = "fine-tuned"
SIGNIFICANT = 0.05


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether fine-tuning paid."""

    tone: Literal["gain", "none", "worse"]
    words: str
    """One sentence."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"tone": self.tone, "words": self.words}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """The fine-tuned classifier beside the probes on the frozen encoder, all on the same test images."""

    frozen: ProbeReport
    tuned: Scores
    tests: list[PairedTest]
    """Of the fine-tuned classifier against the linear probe and against k-NN."""
    verdict: Verdict
    abstain: AbstainRule
    """From which probability on the fine-tuned classifier's answers count, found on the test images."""
    classes: list[dict[str, Any]]
    """By class: test images, and the share of them that the linear probe and the fine-tuned classifier got right."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; accuracies in 0..1."""
        report = self.frozen
        return {
            "num_images": report.num_images,
            "num_classes": report.num_classes,
            "num_train": report.num_train,
            "num_test": report.num_test,
            "num_near_duplicates": report.num_near_duplicates,
            "majority": report.majority.to_dict(),
            "knn": {**report.knn.to_dict(), "k": report.k},
            "linear": {**report.linear.to_dict(), "C": report.C},
            "finetuned": self.tuned.to_dict(),
            "tests": [test.to_dict() for test in self.tests],
            "verdict": self.verdict.to_dict(),
            "abstain": self.abstain.to_dict(),
            "classes": self.classes,
            "notes": list(report.notes),
        }


def compare(
    report: ProbeReport, probabilities: Float[np.ndarray, "m c"], *, seed: int, target_precision: float
) -> Comparison:
    """Compare the answers of the fine-tuned classifier with those of the probes.

    Args:
        report: Of the frozen encoder.
        probabilities: The classifier's for the report's test images and all its classes.
        seed: Decides the bootstrap draws.
        target_precision: As for ``calibrate``; copies of training images have no say in it, where there are others.
    """
    fitted = report.fitted
    truth = fitted.targets[fitted.test]
    groups = None if fitted.groups is None else fitted.groups[fitted.test]
    if groups is not None:  # numbers without gaps
        groups = np.unique(groups, return_inverse=True)[1].astype(np.int64)
    answers = probabilities.argmax(axis=1)
    right = answers == truth
    tests = [
        compare_all([(name, fitted.answers[key] == truth), (TUNED, right)], seed=seed, groups=groups)[0]
        for name, key in (("linear", "linear"), (f"{report.k}-NN", "knn"))
    ]
    fresh = ~fitted.is_copy if not fitted.is_copy.all() else fitted.is_copy
    return Comparison(
        frozen=report,
        tuned=score(
            answers,
            truth,
            len(fitted.names),
            rng=np.random.default_rng([seed, 2]),
            groups=groups,
            positive=probabilities[:, 1] if len(fitted.names) == 2 else None,
        ),
        tests=tests,
        verdict=verdict(tests),
        abstain=calibrate(probabilities.max(axis=1)[fresh], right[fresh], target_precision=target_precision),
        classes=[
            {
                "label": row.label,
                "num_train": row.num_train,
                "num_test": row.num_test,
                "linear_recall": row.linear_recall,
                "finetuned_recall": float(right[truth == number].mean()) if row.num_test else None,
            }
            for number, row in enumerate(report.classes)
        ],
    )


def verdict(tests: list[PairedTest]) -> Verdict:
    """What the differences say: a gain is one over the better of the two frozen probes.

    A difference counts where its 95 % interval leaves 0 out and the paired test agrees; where only one of them does,
    too little is known.
    """
    test = min(tests, key=lambda each: each.difference)  # against the better probe
    what = "the linear probe" if test.first == "linear" else f"{test.first} on the frozen encoder"
    low, high = test.ci95
    points = f"{100 * test.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}) against {what}"
    certain = test.p < SIGNIFICANT
    if low > 0 and certain:
        return Verdict(tone="gain", words=f"fine-tuning gains {points}")
    if high < 0 and certain:
        return Verdict(
            tone="worse", words=f"fine-tuning made it worse, {points}: keep the frozen encoder and the probe"
        )
    return Verdict(tone="none", words=f"no gain shown, {points}: keep the frozen encoder and the probe")
