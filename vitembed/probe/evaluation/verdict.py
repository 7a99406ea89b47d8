"""What a study says in plain words: is there something to build on, and what spoils the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vitembed.probe.evaluation.study import Study


@dataclass(frozen=True)
class ProbeVerdict:
    """A headline and a few sentences."""

    tone: Literal["good", "unsure", "bad"]
    headline: str
    sentences: list[str]


def verdict(study: Study) -> ProbeVerdict:
    """Judge by intervals, not by the numbers alone."""
    report = study.report
    best = max(("linear", report.linear), ("knn", report.knn), key=lambda item: item[1].accuracy)
    low, high = best[1].ci95
    probe = "a linear probe" if best[0] == "linear" else f"{report.k}-NN"
    sentences: list[str] = []
    tone: Literal["good", "unsure", "bad"] = "good"
    beaten = report.majority.accuracy
    if high <= beaten:
        tone = "bad"
        headline = "The vectors do not tell these classes apart"
        sentences.append(f"Always answering with the largest class is right {100 * beaten:.1f} % of the time.")
    elif low <= beaten:
        tone = "unsure"
        headline = "Too few test images to say that the vectors tell these classes apart"
        sentences.append(
            f"The interval holds {100 * beaten:.1f} %, what always answering with the largest class gives: label more "
            "images."
        )
    else:
        headline = f"{100 * best[1].accuracy:.1f} % of new images named rightly by {probe}"
        sentences.append(
            f"With images like these between {100 * low:.1f} and {100 * high:.1f} %; always answering with the largest "
            f"class gives {100 * beaten:.1f} %."
        )
    gap = best[1].accuracy - best[1].balanced_accuracy
    if gap > 0.05:
        sentences.append(
            f"Small classes fare worse: averaged over classes it is {100 * best[1].balanced_accuracy:.1f} %."
        )
    if report.num_near_duplicates:
        tone = "unsure" if tone == "good" else tone
    sentences += [f"{note[0].upper()}{note[1:]}." for note in report.notes]
    if report.linear.accuracy > report.majority.accuracy and len(study.few_shot) > 1:
        last, before = study.few_shot[-1], study.few_shot[-2]
        gain = last.accuracy - before.accuracy
        error = math.hypot(*(np.std(point.accuracies) / math.sqrt(len(point.accuracies)) for point in (last, before)))
        if gain > max(0.01, 2 * error):
            sentences.append(
                f"More labels help: from {before.shots} to {last.shots} of each class gained {100 * gain:.1f} points."
            )
    if study.label_errors:
        num = len(study.label_errors)
        sentences.append(
            f"{num:,} label{'s are' if num > 1 else ' is'} contradicted by a probe that had not seen "
            f"{'them' if num > 1 else 'it'}: wrong labels are among these, and so are pictures that are merely hard."
        )
    return ProbeVerdict(tone, headline, sentences)
