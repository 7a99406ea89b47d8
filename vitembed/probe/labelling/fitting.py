"""The probe of a labelling session: one fixed penalty, as accurate as what is told of it."""

from __future__ import annotations

import warnings

import numpy as np
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning

from vitembed.probe.linear import LinearProbe

C = 0.05
"""Penalty of the probe, fixed: from 30 to 1,000 labels within a point of the best (benchmarks/label.py), and steadier
than one that a hold-out of a few dozen labels would choose."""
TOL = 1e-3
"""Of the solver: probabilities right to two digits, as they are told."""


def fit_probe(vectors: Float[np.ndarray, "n d"], labels: np.ndarray, *, device: str, tol: float = TOL) -> LinearProbe:
    """A linear probe on labelled vectors; labels ``[n]``, names or numbers of two classes at least.

    ``tol`` is the solver's, as ``LinearProbe`` has it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LinearProbe(C, tol=tol, device=device).fit(vectors, labels)
