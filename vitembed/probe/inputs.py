"""What the probes take: arrays as scikit-learn does, or ``Embeddings`` with their labels inside."""

from __future__ import annotations

from typing import Any

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError


def vectors_of(X: Any) -> Any:
    """Unwrap the vectors ``[n, d]`` of ``Embeddings``; anything else passes unchanged, for scikit-learn to validate."""
    return X.vectors if isinstance(X, Embeddings) else X


def labels_of(X: Any, y: Any) -> Any:
    """``y`` when it is given, else the labels that the ``Embeddings`` carry.

    Raises:
        DataError: If ``X`` is ``Embeddings`` without labels and ``y`` is not given.
    """
    if y is not None or not isinstance(X, Embeddings):
        return y
    if X.labels is None:
        raise DataError("these embeddings carry no labels: give them as y, or build the embeddings with labels=")
    return X.labels


def device_name(device: str) -> str:
    """Resolve a device setting: ``auto`` is CUDA when there, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
