"""The one place where FAISS is imported."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

faiss: Any = importlib.import_module("faiss")  # untyped: its stubs lack much of what is used here

METRIC: int = faiss.METRIC_INNER_PRODUCT
"""Of unit vectors that is the cosine."""


def bits(ids: np.ndarray) -> np.ndarray:
    """One bit for each id up to the largest, as FAISS numbers them: from the low end of each byte."""
    flags = np.zeros(int(ids[-1]) + 1 if len(ids) else 1, bool)
    flags[ids] = True
    return np.packbits(flags, bitorder="little")
