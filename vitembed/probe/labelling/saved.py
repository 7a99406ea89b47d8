"""The probe of a labelling session as a file for ``vitembed classify``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError
from vitembed.probe.labelling.estimate import expect
from vitembed.probe.labelling.fitting import C, fit_probe
from vitembed.probe.labelling.session import LabelSession
from vitembed.probe.saving import SavedProbe


def saved_probe(
    session: LabelSession, vectors: Embeddings, meta: Mapping[str, Any], *, target_precision: float = 0.95
) -> SavedProbe:
    """Fit a probe on all labels of a session, to be saved.

    ``classify`` gives a probe the encoder's vectors as they are, while a collection keeps unit vectors: so the labelled
    images' own vectors are needed here.

    Args:
        session: Whose labels to learn from.
        vectors: As ``Encoder.embed`` gives them, of the labelled images at least; others are passed over.
        meta: JSON-safe facts to keep, beside the expected accuracy.
        target_precision: How often answers are to be right from which ``classify`` does not abstain. With fewer than
            20 labels that could tell, it abstains always.

    Raises:
        DataError: If the vectors are unit ones or of unknown origin, lack a labelled image, or only one class has
            labels.
    """
    if not vectors.fingerprint:
        raise DataError("a probe can be saved only for vectors with a fingerprint, as embed writes them")
    if vectors.meta.get("normalized"):
        raise DataError("a probe is saved for vectors as the encoder gives them, these are scaled to length 1")
    if not session.is_fitted():
        raise DataError("a probe needs labels of two classes or more: answer some more before --save")
    place = {name: row for row, name in enumerate(vectors.ids)}
    labelled = [(row, label) for row, label in enumerate(session.labels) if label is not None]
    missing = [session.ids[row] for row, _ in labelled if session.ids[row] not in place]
    if missing:
        raise DataError(f"{len(missing)} labelled images have no vector here, such as {missing[0]!r}")
    inputs = vectors.vectors[[place[session.ids[row]] for row, _ in labelled]]
    labels = np.array([label for _, label in labelled])
    probe = fit_probe(inputs, labels, device=session.device, tol=2e-4)  # kept, so a digit more
    worth = expect(
        inputs,
        np.searchsorted(probe.classes_, labels),
        np.array([session.chosen(row) == "random" for row, _ in labelled]),
        confidence=np.zeros(0),
        seed=session.seed,
        target_precision=target_precision,
        device=session.device,
    )
    rule = worth.abstain
    return SavedProbe(
        classes=probe.classes_.tolist(),
        coef=probe.coef_,
        intercept=probe.intercept_,
        fingerprint=vectors.fingerprint,
        threshold=None if rule is None else rule.threshold,
        meta={
            **meta,
            "num_train": len(labels),
            "C": C,
            "seed": session.seed,
            "labelled": {
                "num_random": worth.num_random,
                "accuracy": worth.accuracy,
                "ci95": None if worth.ci95 is None else list(worth.ci95),
                "out_of_fold": worth.out_of_fold,
            },
            **({} if rule is None else {"abstain": rule.to_dict()}),
        },
    )
