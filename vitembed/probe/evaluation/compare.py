"""Encoders side by side: judged on the same images and the same split, and every pair tested against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitembed.embeddings import Embeddings
from vitembed.errors import ConfigError, DataError
from vitembed.probe.evaluation.paired import PairedTest, compare_all
from vitembed.probe.evaluation.study import Study, study
from vitembed.probe.inputs import labels_of

COMPARED = ("linear", "knn", "attentive")


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Result of ``compare``."""

    studies: dict[str, Study]
    """By encoder, in the order given."""
    tests: dict[str, list[PairedTest]]
    """By probe (``linear``, ``knn``, ``attentive``): every pair of encoders."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "encoders": [{"model": name, **found.to_dict()} for name, found in self.studies.items()],
            "comparison": {probe: [test.to_dict() for test in tests] for probe, tests in self.tests.items()},
        }


def compare(
    encoders: Sequence[tuple[str, Embeddings]],
    *,
    tokens: Sequence[np.ndarray | None] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Comparison:
    """Judge encoders on the same images; all learn from the same ones and are tested on the same ones.

    Args:
        encoders: Names, and the embeddings of the same images in the same order, with their labels.
        tokens: As for ``study``, for each encoder.
        seed: As for ``study``.
        settings: As for ``study``. With ``group_copies`` the copies are those that the first encoder sees.

    Raises:
        ConfigError: If there are fewer than two encoders, or two of one name.
        DataError: If they are not of the same images with the same labels, or as ``study``.
    """
    names = [name for name, _ in encoders]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"comparing needs two or more encoders of different names, got {', '.join(names) or 'none'}")
    first = encoders[0][1]
    for name, embeddings in encoders:
        same = np.array_equal(labels_of(embeddings, None), labels_of(first, None))
        if embeddings.ids != first.ids or not same:
            raise DataError(f"the embeddings of {name} are not of the same images and labels as those of {names[0]}")
    studies: dict[str, Study] = {}
    for (name, embeddings), its_tokens in zip(encoders, tokens or [None] * len(encoders), strict=True):
        studies[name] = study(embeddings, tokens=its_tokens, seed=seed, **settings)
        fitted = studies[names[0]].fitted
        # The first one's split and groups for all.
        settings |= {"split": fitted.is_test, "groups": fitted.groups, "group_copies": False}
    fitted = studies[names[0]].fitted
    truth = fitted.targets[fitted.is_test]
    groups = None if fitted.groups is None else fitted.groups[fitted.is_test]
    return Comparison(
        studies=studies,
        tests={
            probe: compare_all(
                [(name, found.fitted.answers[probe] == truth) for name, found in studies.items()],
                seed=seed,
                groups=groups,
            )
            for probe in COMPARED
            if all(probe in found.fitted.answers for found in studies.values())
        },
    )
