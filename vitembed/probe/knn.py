"""k-nearest-neighbour probe: the classifier that needs no training, as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from vitembed.probe.inputs import device_name, labels_of, quiet, validated, vectors_of

DINOV2_KS = (10, 20, 100, 200)
"""The numbers of neighbours in DINOv2's ``eval/knn.py`` (Oquab et al. 2023, arXiv:2304.07193); it reports each."""
QUERY_BLOCK = 512
BANK_BLOCK = 32768
"""Similarities are computed 512 x 32,768 at a time: 64 MiB, whatever the number of vectors."""
SLACK = 16
"""Candidates beyond k that the float32 product hands to the exact ranking, so that rounding cannot cost a neighbour."""
MOST_CANDIDATES = 4096
"""Where more bank rows than this are too close to call in float32, all are compared in float64, far slower."""


class KNNProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Votes of the k most similar vectors by cosine, weighted with ``exp(similarity / temperature)``.

    Exact: every stored vector is compared, and where float32 cannot tell neighbours apart float64 does. Equal
    similarities are ranked by row number. Memory: ``4 n d`` bytes for the stored vectors (1.5 GB at 1,000,000 x 384),
    once more on a GPU, and for any number of queries under 250 MB beside them.

    Args:
        k: Neighbours that vote, >= 1. With fewer stored vectors all of them vote.
        temperature: Softmax temperature of the votes, > 0; small values trust the nearest.
        device: ``"auto"`` (CUDA when there, else CPU) or any torch device, for the products.

    Attributes:
        classes_: Labels, sorted.
        vectors_: float32 ``[n, d]``, the stored vectors with unit length (zero vectors stay zero).
        targets_: int64 ``[n]``, positions in ``classes_``.

    Source: Wu et al. 2018, arXiv:1805.01978, section 3.4, with k = 20 of DINOv2's protocol (``eval/knn.py``, k in 10,
    20, 100, 200; T = 0.07).
    """

    def __init__(self, k: Any = 20, *, temperature: Any = 0.07, device: Any = "auto") -> None:
        # Any: scikit-learn asks that the constructor takes whatever comes and that ``fit`` judges it.
        self.k = k
        self.temperature = temperature
        self.device = device

    def fit(self, X: Any, y: Any = None) -> KNNProbe:
        """Store vectors ``[n, d]`` and labels ``[n]``, or ``Embeddings`` that carry labels.

        Raises:
            ValueError: If the data is not what scikit-learn takes, or a setting is out of range.
            DataError: If ``X`` is ``Embeddings`` without labels and no ``y`` is given.
        """
        _check_k(self.k)
        if not 0 < self.temperature < np.inf:
            raise ValueError(f"temperature={self.temperature!r}: expected a number > 0")
        X, y = validated(self, vectors_of(X), labels_of(X, y), dtype=[np.float32, np.float64])
        with quiet():
            check_classification_targets(y)
        self.classes_, targets = np.unique(y, return_inverse=True)
        self.targets_ = targets.astype(np.int64)
        self.vectors_ = unit_rows(X)
        return self

    def kneighbors(self, X: Any, k: int | None = None) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
        """Cosine similarities of each row's nearest stored vectors, best first, and their row numbers.

        Args:
            X: Vectors ``[q, d]`` or ``Embeddings``.
            k: How many; the probe's own ``k`` by default, at most the number of stored vectors.
        """
        check_is_fitted(self)
        X = validated(self, vectors_of(X), dtype=[np.float32, np.float64], reset=False)
        k = self.k if k is None else k
        _check_k(k)
        return nearest(unit_rows(X), self.vectors_, k, device=device_name(self.device))

    def predict_proba(self, X: Any) -> Float64[np.ndarray, "q c"]:
        """Share of the votes for each class, in the order of ``classes_``; rows sum to 1."""
        return self._shares(*self.kneighbors(X))

    def accuracy_by_k(self, X: Any, y: Any = None, ks: Sequence[int] = DINOV2_KS) -> dict[int, float]:
        """Accuracy in 0..1 for several numbers of neighbours, from one search: DINOv2's protocol as it comes.

        Numbers beyond that of the stored vectors let all of them vote.
        """
        truth = np.asarray(labels_of(X, y))
        similarities, neighbours = self.kneighbors(X, max(ks))
        if truth.shape != (len(neighbours),):
            raise ValueError(f"y has shape {list(truth.shape)}, expected one label for each of {len(neighbours)} rows")
        answers = {k: self._shares(similarities[:, :k], neighbours[:, :k]).argmax(axis=1) for k in ks}
        return {k: float((self.classes_[answer] == truth).mean()) for k, answer in answers.items()}

    def _shares(
        self, similarities: Float64[np.ndarray, "q k"], neighbours: Int64[np.ndarray, "q k"]
    ) -> Float64[np.ndarray, "q c"]:
        votes = np.exp((similarities - similarities[:, :1]) / self.temperature)
        votes /= votes.sum(axis=1, keepdims=True)
        num_classes = len(self.classes_)
        cells = np.arange(len(votes))[:, None] * num_classes + self.targets_[neighbours]
        shares = np.bincount(cells.ravel(), weights=votes.ravel(), minlength=len(votes) * num_classes)
        result: np.ndarray = shares.reshape(len(votes), num_classes)
        return result

    def predict(self, X: Any) -> np.ndarray:
        """Label with the most votes for each row; of equals the first in ``classes_``."""
        shares = self.predict_proba(X)
        labels: np.ndarray = self.classes_[shares.argmax(axis=1)]
        return labels

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Accuracy in 0..1 on vectors and labels, or on ``Embeddings`` that carry labels."""
        with quiet():
            return float(super().score(X, labels_of(X, y), sample_weight))


def unit_rows(vectors: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Rows scaled to length 1; rows of zeros stay zero."""
    unit = np.empty(vectors.shape, dtype=np.float32)
    for begin in range(0, len(vectors), BANK_BLOCK):
        block = vectors[begin : begin + BANK_BLOCK].astype(np.float64)
        # Dividing by the largest entry first keeps the squares of huge and tiny rows in range.
        peak = np.abs(block).max(axis=1, keepdims=True)
        block /= np.where(peak == 0, 1.0, peak)
        length = np.linalg.norm(block, axis=1, keepdims=True)
        block /= np.where(length == 0, 1.0, length)
        unit[begin : begin + BANK_BLOCK] = block
    return unit


def nearest(
    queries: Float32[np.ndarray, "q d"], bank: Float32[np.ndarray, "n d"], k: int, *, device: str = "cpu"
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"]]:
    """Similarities and row numbers of the k bank rows with the largest inner product, best first.

    A float32 matrix product proposes candidates, float64 products rank them, so the result does not depend on how
    queries are batched. Queries for which a row that is no candidate could belong to the k, by the error that float32
    made on the candidates, get more of them. ``k`` is clipped to the number of rows. FAISS's flat index is not
    used: its batch search took 0.9 to 1.9 times as long (20,000 x 384, one thread, idle and loaded machine; 12 times on
    small sets; ``benchmarks/probe.py``), and it ranks by float32 alone.
    """
    k = min(k, len(bank))
    similarities = np.empty((len(queries), k), dtype=np.float64)
    neighbours = np.empty((len(queries), k), dtype=np.int64)
    stored = torch.from_numpy(bank).to(device)
    for begin in range(0, len(queries), QUERY_BLOCK):
        open_rows = np.arange(begin, min(begin + QUERY_BLOCK, len(queries)))
        wide = k + SLACK
        while len(open_rows) and wide <= max(MOST_CANDIDATES, k + SLACK):
            block = queries[open_rows]
            candidates, cutoff = _candidates(torch.from_numpy(block).to(device), stored, min(wide, len(bank)))
            similarities[open_rows], neighbours[open_rows], error = _ranked(block, bank, *candidates, k)
            sure = similarities[open_rows, -1] > cutoff + 4 * error
            open_rows = open_rows[~sure & (wide < len(bank))]
            wide *= 8
        for row in open_rows:
            similarities[row], neighbours[row] = _ranked_among_all(queries[row], bank, k)
    return similarities, neighbours


def _candidates(
    queries: torch.Tensor, bank: torch.Tensor, wide: int
) -> tuple[tuple[Int64[np.ndarray, "q wide"], Float32[np.ndarray, "q wide"]], Float32[np.ndarray, " q"]]:
    """Row numbers and values of the ``wide`` largest products, in any order, and the least of these values."""
    best: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    for begin in range(0, len(bank), BANK_BLOCK):
        products = queries @ bank[begin : begin + BANK_BLOCK].T
        values, positions = products.topk(min(wide, products.shape[1]), dim=1, sorted=False)
        positions += begin
        if best is not None and rows is not None:
            values, positions = torch.cat([best, values], dim=1), torch.cat([rows, positions], dim=1)
            values, kept = values.topk(min(wide, values.shape[1]), dim=1, sorted=False)
            positions = positions.gather(1, kept)
        best, rows = values, positions
    assert rows is not None
    assert best is not None
    return (rows.cpu().numpy(), best.cpu().numpy()), best.amin(dim=1).cpu().numpy()


def _ranked(
    queries: Float32[np.ndarray, "q d"],
    bank: Float32[np.ndarray, "n d"],
    candidates: Int64[np.ndarray, "q wide"],
    values: Float32[np.ndarray, "q wide"],
    k: int,
) -> tuple[Float64[np.ndarray, "q k"], Int64[np.ndarray, "q k"], float]:
    """Similarities and row numbers of the best candidates, and the largest error of their float32 ``values``."""
    similarities = np.empty((len(queries), k), dtype=np.float64)
    neighbours = np.empty((len(queries), k), dtype=np.int64)
    error = 1e-7
    rows = max(1, 2**23 // (candidates.shape[1] * bank.shape[1]))  # float64 candidates at a time: 64 MiB
    for first in range(0, len(queries), rows):
        place = slice(first, first + rows)
        part = candidates[place]
        exact = np.einsum("qd,qkd->qk", queries[place].astype(np.float64), bank[part].astype(np.float64))
        error = max(error, float(np.abs(exact - values[place]).max()))
        order = np.lexsort((part, -exact))[:, :k]
        similarities[place] = np.take_along_axis(exact, order, axis=1)
        neighbours[place] = np.take_along_axis(part, order, axis=1)
    return similarities, neighbours, error


def _ranked_among_all(
    query: Float32[np.ndarray, " d"], bank: Float32[np.ndarray, "n d"], k: int
) -> tuple[Float64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Similarities and row numbers of the best of all rows, in float64; for rows that are copies by the thousand."""
    exact = np.concatenate(
        [
            np.einsum("d,kd->k", query.astype(np.float64), bank[begin : begin + BANK_BLOCK].astype(np.float64))
            for begin in range(0, len(bank), BANK_BLOCK)
        ]
    )
    order = np.argsort(-exact, kind="stable")[:k]
    return exact[order], order


def _check_k(k: Any) -> None:
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k={k!r}: expected a whole number >= 1")
