"""A labelled set of vectors looked at from all sides: scores, how many labels it takes, mistakes, doubtful labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitembed.embeddings import Embeddings
from vitembed.probe.evaluation.abstain import DEFAULT_PRECISION, AbstainRule, calibrate
from vitembed.probe.evaluation.few_shot import FewShotPoint, few_shot_curve
from vitembed.probe.evaluation.label_errors import LabelError, find_label_errors
from vitembed.probe.evaluation.mistakes import Mistake, surest_mistakes
from vitembed.probe.report import Fitted, ProbeReport, evaluate

MAX_CLASSES_IN_MATRIX = 100
"""With more classes the JSON document holds the confused pairs alone."""
NUM_CONFUSED = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Result of ``study``; rows are those of the vectors."""

    report: ProbeReport
    ids: Sequence[str]
    """What each row is called: its path, or any name."""
    fingerprint: str
    """Of the encoder; empty when unknown."""
    seed: int
    few_shot: list[FewShotPoint]
    mistakes: list[Mistake]
    """Every wrong answer of the linear probe on the test rows, the surest first."""
    label_errors: list[LabelError]
    """Labels to look at, the surest first."""
    abstain: AbstainRule

    @property
    def fitted(self) -> Fitted:
        """What the numbers come from."""
        return self.report.fitted

    @cached_property
    def confusion(self) -> Int[np.ndarray, "c c"]:
        """Test images of each class (row) by the linear probe's answer (column)."""
        num = self.report.num_classes
        cells = self.fitted.targets[self.fitted.test] * num + self.fitted.answers["linear"]
        counts: np.ndarray = np.bincount(cells, minlength=num * num).reshape(num, num)
        return counts

    def confused(self, most: int = NUM_CONFUSED) -> list[tuple[int, int, int]]:
        """Class, wrong answer and how often, the most frequent first."""
        wrong = self.confusion * (1 - np.eye(len(self.confusion), dtype=np.int64))
        order = np.argsort(-wrong, axis=None, kind="stable")[:most]
        rows, columns = np.unravel_index(order, wrong.shape)
        return [(int(i), int(j), int(wrong[i, j])) for i, j in zip(rows, columns, strict=True) if wrong[i, j]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: the report's own fields, and the rest below them."""
        names, ids = self.fitted.names, self.ids
        small = len(names) <= MAX_CLASSES_IN_MATRIX
        return {
            **self.report.to_dict(),
            "seed": self.seed,
            "few_shot": [point.to_dict() for point in self.few_shot],
            "abstain": self.abstain.to_dict(),
            "confusion": self.confusion.tolist() if small else None,
            "confused": [{"label": names[i], "predicted": names[j], "count": num} for i, j, num in self.confused()],
            "leaks": [
                {"test": ids[leak.test_row], "train": ids[leak.train_row], "similarity": leak.similarity}
                for leak in self.fitted.leaks
            ],
            "contradictions": [
                [{"path": ids[row], "label": names[self.fitted.targets[row]]} for row in rows.tolist()]
                for rows in self.fitted.contradictions
            ],
            "mistakes": [
                {
                    "path": ids[wrong.row],
                    "label": names[wrong.truth],
                    "predicted": names[wrong.predicted],
                    "probability": wrong.probability,
                }
                for wrong in self.mistakes
            ],
            "label_errors": [
                {
                    "path": ids[doubt.row],
                    "label": names[doubt.label],
                    "suggested": names[doubt.suggested],
                    "probability": doubt.probability,
                    "label_probability": doubt.label_probability,
                }
                for doubt in self.label_errors
            ],
        }


def study(
    X: Any,
    labels: Any = None,
    *,
    split: Any = None,
    test_share: float = 0.25,
    seed: int = 0,
    groups: Any = None,
    group_copies: bool = False,
    tokens: Float[np.ndarray, "n t d"] | None = None,
    k: int = 20,
    num_draws: int = 5,
    target_precision: float = DEFAULT_PRECISION,
    device: str = "auto",
) -> Study:
    """``evaluate``, the few-shot curve, the surest mistakes, labels that are likely wrong, and when to abstain.

    Args:
        X: As for ``evaluate``, like the settings that are not named here.
        labels: As for ``evaluate``.
        split: As for ``evaluate``.
        test_share: As for ``evaluate``.
        seed: Decides everything random.
        groups: As for ``evaluate``.
        group_copies: As for ``evaluate``.
        tokens: As for ``evaluate``.
        k: As for ``evaluate``.
        num_draws: Random draws behind each point of the few-shot curve; 0: no curve.
        target_precision: How often answers shall be right at the threshold from which they count; see ``calibrate``.
            Test images with a copy among the training images have no say in it, where there are others.
        device: As for ``evaluate``.

    Raises:
        DataError: As ``evaluate``.
        ConfigError: As ``evaluate``; and if ``target_precision`` is not in 0..1.
    """
    calibrate(np.zeros(0), np.zeros(0, dtype=bool), target_precision=target_precision)  # before any work
    report = evaluate(
        X,
        labels,
        split=split,
        test_share=test_share,
        seed=seed,
        groups=groups,
        group_copies=group_copies,
        tokens=tokens,
        k=k,
        device=device,
    )
    fitted = report.fitted
    train, test = np.flatnonzero(~fitted.is_test), fitted.test
    vectors, targets = fitted.vectors, fitted.targets
    fresh = ~fitted.is_copy if not fitted.is_copy.all() else fitted.is_copy
    right = fitted.answers["linear"] == targets[test]
    return Study(
        report=report,
        ids=X.ids if isinstance(X, Embeddings) else [str(row) for row in range(len(targets))],
        fingerprint=X.fingerprint if isinstance(X, Embeddings) else "",
        seed=seed,
        few_shot=few_shot_curve(
            vectors[train],
            targets[train],
            vectors[test],
            targets[test],
            num_draws=num_draws,
            seed=seed,
            device=device,
        ),
        mistakes=surest_mistakes(fitted.probabilities, targets[test], test),
        label_errors=find_label_errors(vectors, targets, C=report.C, seed=seed, groups=fitted.groups, device=device),
        abstain=calibrate(fitted.probabilities.max(axis=1)[fresh], right[fresh], target_precision=target_precision),
    )
