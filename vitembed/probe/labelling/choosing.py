"""Which images to ask about: first typical ones of every kind, then different ones that the probe is unsure of."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

NUM_SAMPLED = 10_000
"""Images that k-means looks at: more move the centres of a few dozen clusters hardly at all."""
SHORTLIST = 10
"""Among the most uncertain, this many times as many as are asked are clustered (Zhdanov's beta)."""
COPY_COSINE = 0.98
"""From this cosine on two images count as copies of each other, unless such pairs are common in the pool."""
_NUM_PAIRS = 20_000
_MAX_ITER = 25


def random_order(ids: Sequence[str], seed: int) -> Int[np.ndarray, " n"]:
    """Rows in an order that follows from names and seed alone, and from nothing else about the images.

    So a stopped session goes on with the same order, and images that come later fall into it as if they had been there.
    """
    key = seed.to_bytes(8, "little")
    digests = [hashlib.blake2b(os.fsencode(name), key=key, digest_size=8).digest() for name in ids]
    places: np.ndarray = np.argsort(np.frombuffer(b"".join(digests), dtype=">u8"), kind="stable")
    return places


def copy_cosine(vectors: Float[np.ndarray, "n d"], rng: np.random.Generator) -> float:
    """The cosine from which on two images of this pool count as copies.

    Some encoders give all images much the same direction; there the bar is what few random pairs reach, lest everything
    be a copy of everything: one in a thousand, or in a small pool as many as ten copies of each image would make.
    """
    if len(vectors) < 2:
        return COPY_COSINE
    first, second = rng.integers(0, len(vectors), size=(2, _NUM_PAIRS))
    first, second = first[first != second], second[first != second]
    cosines = np.einsum("ij,ij->i", vectors[first], vectors[second])
    share = min(max(0.001, 10 / len(vectors)), 1.0)
    return float(min(max(COPY_COSINE, np.quantile(cosines, 1 - share)), 0.9999))


def typical(
    vectors: Float[np.ndarray, "n d"],
    num: int,
    *,
    labelled: Int[np.ndarray, " m"],
    available: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " r"]:
    """Rows to ask about while little is known, best first: of each cluster without a label the most typical image.

    Args:
        vectors: Unit rows.
        num: How many are wanted; as many as are available come back, ordered.
        labelled: Rows that have a label; their clusters come last.
        available: Rows that may be asked about.
        rng: Draws the sample and the first centres.

    Source: Hacohen et al. 2022, arXiv:2202.02794 (TypiClust), section 3; typicality is nearness to the centre here.
    """
    num_clusters = min(len(labelled) + num, len(vectors))
    sample = vectors
    if len(vectors) > NUM_SAMPLED:
        sample = vectors[np.sort(rng.choice(len(vectors), NUM_SAMPLED, replace=False))]
    num_clusters = min(num_clusters, len(sample))
    centres = _k_means(sample, num_clusters, rng)
    nearness = vectors @ centres.T - 0.5 * np.square(centres).sum(axis=1)
    cluster = nearness.argmax(axis=1)
    nearness = nearness[np.arange(len(vectors)), cluster]
    size = np.bincount(cluster, minlength=num_clusters)
    covered = np.bincount(cluster[labelled], minlength=num_clusters)
    rows = np.flatnonzero(available)
    # The first of each cluster before the second of any; clusters by labels in them (fewest first), then by size.
    rows = rows[np.argsort(-nearness[rows], kind="stable")]
    rank = _rank_within(cluster[rows])
    return rows[np.lexsort((-size[cluster[rows]], covered[cluster[rows]] + rank))]


def unsure_and_different(
    vectors: Float[np.ndarray, "n d"],
    uncertainty: Float[np.ndarray, " n"],
    num: int,
    *,
    available: Bool[np.ndarray, " n"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " r"]:
    """Rows to ask about once there is a probe, best first: centres of clusters among the most uncertain images.

    Args:
        vectors: Unit rows.
        uncertainty: At least 0, see ``margin_uncertainty``.
        num: How many are wanted; the rest of the shortlist follows them.
        available: Rows that may be asked about.
        rng: Draws the first centres.

    Source: Zhdanov 2019, arXiv:1901.05954, section 3 (k-means weighted by informativeness, beta = 10).
    """
    rows = np.flatnonzero(available)
    rows = rows[np.argsort(-uncertainty[rows], kind="stable")][: SHORTLIST * num]
    if len(rows) <= num:
        return rows
    points = vectors[rows]
    weights = uncertainty[rows].astype(np.float64) + 1e-6
    centres = _k_means(points, num, rng, weights)
    nearness = points @ centres.T - 0.5 * np.square(centres).sum(axis=1)
    cluster = nearness.argmax(axis=1)
    nearness = nearness[np.arange(len(rows)), cluster]
    mass = np.bincount(cluster, weights=weights, minlength=num)
    order = np.argsort(-nearness, kind="stable")
    rank = _rank_within(cluster[order])
    return rows[order[np.lexsort((-mass[cluster[order]], rank))]]


def margin_uncertainty(prob: Float[np.ndarray, "n c"]) -> Float[np.ndarray, " n"]:
    """1 where the two most probable classes are equally so, 0 where one is certain."""
    top = np.partition(prob, -2, axis=1)[:, -2:]
    uncertainty: np.ndarray = 1.0 - (top[:, 1] - top[:, 0])
    return uncertainty


def without_copies(
    vectors: Float[np.ndarray, "n d"], rows: Int[np.ndarray, " r"], num: int, *, bar: float, beside: Sequence[int] = ()
) -> list[int]:
    """The first ``num`` rows of which none is a copy of an earlier one or of one in ``beside``.

    Args:
        vectors: Unit rows.
        rows: Candidates, best first.
        num: How many are wanted; fewer come back when there are no more.
        bar: Cosine from which on images are copies.
        beside: Rows that are asked about in any case.
    """
    taken = list(beside)
    chosen = list[int]()
    for row in rows.tolist():
        if len(chosen) == num:
            break
        if taken and float((vectors[taken] @ vectors[row]).max()) >= bar:
            continue
        taken.append(row)
        chosen.append(row)
    return chosen


def _k_means(
    points: np.ndarray, num_clusters: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    fit = KMeans(num_clusters, n_init=1, max_iter=_MAX_ITER, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct images than clusters
        centres: np.ndarray = fit.fit(points, sample_weight=weights).cluster_centers_
    return centres.astype(np.float32)


def _rank_within(groups: Int[np.ndarray, " r"]) -> Int[np.ndarray, " r"]:
    """How many earlier entries are of the same group."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(groups) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.r_[starts, len(groups)])
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, lengths)
    return rank
