"""Labelled vectors as the evaluation takes them, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitembed.embeddings import plain_array
from vitembed.errors import DataError


def checked_labels(labels: Any) -> tuple[list[Any], Int[np.ndarray, " n"]]:
    """Distinct labels (str or int), sorted, and each row's place among them."""
    if labels is None:
        raise DataError("probing needs a label for each image")
    array = np.asarray(plain_array(labels))
    if array.ndim != 1:
        raise DataError(f"labels have shape {list(array.shape)}, expected one for each image")
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.tolist()):
        array = array.astype(np.str_)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iuU":
        gone = next((row for row, label in enumerate(array.tolist()) if label is None or label != label), None)
        hint = "" if gone is None else f"; row {gone} (rows count from 0) has none: leave it out"
        raise DataError(f"labels have type {array.dtype}, expected text or whole numbers{hint}")
    names, targets = np.unique(array, return_inverse=True)
    if len(names) < 2:
        held = f"1: {names.tolist()[0]!r}" if len(names) else "none"
        raise DataError(f"probing needs at least 2 classes, the labels hold {held}")
    return names.tolist(), targets.astype(np.int64)


def checked_vectors(X: Any, num: int) -> Float[np.ndarray, "n d"]:
    """Finite float32 or float64 vectors, as many as there are labels."""
    if hasattr(X, "toarray"):
        raise DataError("the vectors are a sparse matrix, expected a dense one: give X.toarray()")
    vectors = np.asarray(plain_array(X))
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise DataError(f"vectors have shape {list(vectors.shape)} and type {vectors.dtype}, expected numbers [n, d]")
    if len(vectors) != num:
        raise DataError(f"{num} labels for {len(vectors)} vectors")
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float32 if vectors.dtype.kind == "f" else np.float64)
    if not np.isfinite(vectors).all():
        raise DataError("the vectors hold NaN or infinity")
    return vectors


def checked_groups(groups: Any, num: int) -> Int[np.ndarray, " n"]:
    """Groups numbered from 0."""
    array = np.asarray(groups)
    if array.shape != (num,):
        raise DataError(f"groups have shape {list(array.shape)}, expected one for each of {num} images")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)
