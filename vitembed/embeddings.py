"""The record that everything after the encoder works on: vectors, their ids, and which encoder made them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitembed.errors import DataError, printable


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors with an id each and the fingerprint of the encoder they come from.

    Raises:
        DataError: If shapes, lengths or types do not fit, or a vector is not finite.
    """

    vectors: np.ndarray
    """float32 ``[n, d]``, contiguous; other real types are converted."""
    ids: list[str]
    """One per row: the path as ``os.fsdecode`` gives it, or any other name."""
    fingerprint: str
    """Which encoder and preprocessing made the vectors; empty when unknown."""
    labels: np.ndarray | None = None
    """``[n]``, text or int64."""
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON-safe provenance: model name, pool, img_size, normalized, version."""

    def __post_init__(self) -> None:
        if hasattr(self.vectors, "toarray"):
            raise DataError("vectors are a sparse matrix, expected a dense one: give vectors.toarray()")
        vectors = np.asarray(plain_array(self.vectors))
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise DataError(f"vectors have shape {list(vectors.shape)}, expected [n, d] with d >= 1")
        if vectors.dtype.kind not in "fiu":
            raise DataError(f"vectors have type {vectors.dtype}, expected real numbers")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and is refused as that
            vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise DataError(f"vector {row} of {len(vectors)} holds NaN or infinity")
        if len(self.ids) != len(vectors):
            raise DataError(f"{len(self.ids)} ids for {len(vectors)} vectors")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "ids", checked_ids(self.ids))
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(plain_array(self.labels), len(vectors)))

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | np.ndarray | list[int]) -> Embeddings:
        """Chosen rows: a slice, a boolean mask ``[n]`` or row numbers."""
        if isinstance(rows, slice):
            chosen = np.arange(len(self))[rows]
        else:
            index = np.asarray(rows)
            chosen = np.arange(len(self))[index if index.size else index.astype(np.int64)]
        return replace(
            self,
            vectors=self.vectors[chosen],
            ids=[self.ids[row] for row in chosen.tolist()],
            labels=None if self.labels is None else self.labels[chosen],
        )

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self.vectors.shape[1])

    def normalized(self) -> Embeddings:
        """Give the same with rows of length 1, so that inner products are cosines.

        Raises:
            DataError: If a vector is zero, as it has no direction.
        """
        return replace(self, vectors=unit_rows(self.vectors), meta={**self.meta, "normalized": True})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file whose suffix names the format: npy, npz, parquet, csv or safetensors.

        npy and csv cannot carry the fingerprint, so a file ``<path>.json`` is written beside them. Files are replaced
        whole or not at all. Loading gives the same bits back from every format.

        Raises:
            DataError: If the suffix is unknown, the folder cannot be written, or an id does not fit the format.
        """
        from vitembed.vector_files import save_embeddings

        save_embeddings(self, Path(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Read what ``save`` wrote, or vectors from elsewhere (the fingerprint is then empty).

        What the file is, its content says. Of a table the vector is a column of lists (``vector``, ``embedding``) or
        one series of numbered columns (``v0, v1, ...``); ids are ``id``, ``path``, ``image_path``, ``filename`` and the
        like in any case, or the index that pandas wrote along, else row numbers; other columns are left out, with a
        line in the log.

        Raises:
            DataError: If the file is absent, damaged, or holds no vectors. Nothing in it is ever executed (no pickle).
        """
        from vitembed.vector_files import load_embeddings

        return load_embeddings(Path(path))


def plain_array(values: Any) -> Any:
    """NumPy's array of a torch tensor, on whatever device, of whatever type, with or without a gradient.

    bfloat16, which NumPy lacks, becomes float32; a list of tensors becomes one array. Anything else passes unchanged.
    """
    if hasattr(values, "detach") and hasattr(values, "cpu"):
        tensor = values.detach().cpu()
        if getattr(tensor, "is_sparse", False):
            tensor = tensor.to_dense()
        return (tensor.float() if "bfloat16" in str(tensor.dtype) or "float8" in str(tensor.dtype) else tensor).numpy()
    if isinstance(values, (list, tuple)) and values and all(hasattr(value, "detach") for value in values):
        return np.stack([plain_array(value) for value in values])
    if getattr(getattr(values, "dtype", None), "name", "") == "bfloat16":  # of ml_dtypes
        return values.astype(np.float32)
    return values


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 ``[n, d]``; the length is taken in float64, so that tiny and huge rows are fine.

    Raises:
        DataError: If a row is zero or not finite.
    """
    unit = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), 1024):  # blocks that stay in the processor's cache: 5 times as fast
        exact = np.asarray(vectors[start : start + 1024], dtype=np.float64)
        norms = np.sqrt(np.square(exact).sum(axis=1, keepdims=True))
        wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        if len(wrong):
            kind = "is zero" if norms[wrong[0], 0] == 0 else "holds NaN or infinity"
            raise DataError(f"vector {start + wrong[0]} of {len(vectors)} {kind}: it has no direction to compare")
        unit[start : start + 1024] = exact / norms
    return unit


def refuse_copies(ids: Sequence[str]) -> None:
    """Refuse an id that occurs more than once.

    Raises:
        DataError: Naming the first and its rows.
    """
    num_copies = len(ids) - len(set(ids))
    if num_copies:
        seen = dict[str, int]()
        row = next(row for row, name in enumerate(ids) if seen.setdefault(name, row) != row)
        what = "1 id occurs" if num_copies == 1 else f"{num_copies} ids occur"
        raise DataError(
            f"{what} more than once: {printable(ids[row])!r} in rows {seen[ids[row]]} and {row} (rows count from 0)"
        )


def checked_ids(ids: Iterable[Any]) -> list[str]:
    """Ids as text: paths and whole numbers are taken too.

    Raises:
        DataError: If one is anything else, such as None or NaN.
    """
    found = list(ids)
    for row, name in enumerate(found):
        if type(name) is str:
            continue
        if isinstance(name, (str, bytes, os.PathLike)):
            found[row] = str(os.fsdecode(name))
        elif isinstance(name, (int, np.integer)) and not isinstance(name, bool):
            found[row] = str(name)
        else:
            raise DataError(f"the id of row {row} is {name!r}, expected text (rows count from 0)")
    return found


def _checked_labels(labels: np.ndarray, num_rows: int) -> np.ndarray:
    array: np.ndarray = np.asarray(labels)
    if array.dtype == object:
        if not all(isinstance(label, str) for label in array.ravel()):
            raise DataError("labels of mixed types, expected all text or all int")
        array = array.astype(str)
    if array.shape != (num_rows,):
        raise DataError(f"labels have shape {list(array.shape)}, expected [{num_rows}]")
    if array.dtype.kind == "U":
        return array
    if array.dtype.kind in "iu":
        return array.astype(np.int64, copy=False)
    if not array.size:
        return array.astype(np.int64)
    raise DataError(f"labels have type {array.dtype}, expected text or int")
