"""What the probes take: arrays as scikit-learn does, or ``Embeddings`` with their labels inside."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from vitembed.embeddings import Embeddings, plain_array
from vitembed.errors import DataError

_NO_LABEL = "the probe needs a label for each row; leave out rows without"


def vectors_of(X: Any) -> Any:
    """The vectors ``[n, d]`` of ``Embeddings``, NumPy's array of a tensor; anything else is scikit-learn's to validate.

    Raises:
        ValueError: If it is a single vector.
    """
    X = X.vectors if isinstance(X, Embeddings) else plain_array(X)
    shape = getattr(X, "shape", ())
    if len(shape) == 1 and not hasattr(X, "iloc"):
        raise ValueError(
            f"X has shape {list(shape)}, expected vectors [n, d]. Reshape your data: X.reshape(1, -1) is one vector"
        )
    return X


def labels_of(X: Any, y: Any) -> Any:
    """``y`` when it is given, else the labels that the ``Embeddings`` carry.

    Raises:
        DataError: If ``X`` is ``Embeddings`` without labels and ``y`` is not given.
        ValueError: If a label is missing, or they are text and numbers mixed.
    """
    return checked_y(given_labels(X, y))


def given_labels(X: Any, y: Any) -> Any:
    """As ``labels_of``, for others to check.

    Raises:
        DataError: If ``X`` is ``Embeddings`` without labels and ``y`` is not given.
    """
    if y is not None or not isinstance(X, Embeddings):
        return plain_array(y)
    if X.labels is None:
        raise DataError("these embeddings carry no labels: give them as y, or build the embeddings with labels=")
    return X.labels


def checked_y(y: Any) -> Any:
    """Labels as scikit-learn takes them: arrays of tensors, text of any kind of text.

    Raises:
        ValueError: If a label is missing (None, NaN, NA), or they are text and numbers mixed.
    """
    y = plain_array(y)
    if y is None or hasattr(y, "toarray"):
        return y
    array = np.asarray(y)
    if array.dtype.kind == "f" and array.ndim == 1 and np.isnan(array).any():
        raise ValueError(f"y[{int(np.isnan(array).argmax())}] is NaN: {_NO_LABEL}")
    if array.dtype.kind in "US" and isinstance(y, (list, tuple)) and array.ndim == 1:
        array = np.array(y, dtype=object)  # NumPy would make text of whatever lies beside text
    if array.dtype.kind != "O" or array.ndim != 1:
        return y if array.dtype.kind != "T" else array.astype(str)
    labels = array.tolist()
    for row, label in enumerate(labels):
        if label is None or type(label).__name__ in ("NAType", "NaTType") or label != label:
            raise ValueError(f"y[{row}] is {label!r}: {_NO_LABEL}")
    if all(isinstance(label, str) for label in labels):
        return array.astype(str)
    if any(isinstance(label, str) for label in labels):
        kinds = sorted({type(label).__name__ for label in labels})
        raise ValueError(f"y holds labels of mixed types ({', '.join(kinds)}): expected all text or all whole numbers")
    if all(isinstance(label, (bool, int, np.integer, np.bool_)) for label in labels):
        return np.array([int(label) for label in labels])
    return y


def validated(probe: Any, *data: Any, **settings: Any) -> Any:
    """scikit-learn's ``validate_data``, whose complaints are cut to one line.

    Raises:
        ValueError: As scikit-learn.
    """
    try:
        with quiet():
            return validate_data(probe, *data, **settings)
    except ValueError as error:
        first, *rest = str(error).splitlines() or [""]
        if not rest:
            raise
        kept = [line for line in rest if line.startswith("Reshape your data")]
        raise type(error)(" ".join([first.rstrip(":"), *kept])) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without scikit-learn's warnings about its own future, and that many classes could be a regression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than", category=UserWarning)
        yield


def device_name(device: str) -> str:
    """Resolve a device setting: ``auto`` is CUDA when there, else the CPU."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
