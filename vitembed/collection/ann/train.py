"""Training of an approximate index: the centroids of its lists, and the codec inside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitembed.collection.ann.decide import is_two_level
from vitembed.collection.ann.engine import METRIC, faiss
from vitembed.collection.ann.families import Family
from vitembed.collection.ann.gpu import num_gpus

_ROUNDS = 10
_SEED = 20_261_124
_MAX_POINTS_PER_CENTROID = 256


def train_centroids(sample: np.ndarray, num_lists: int) -> np.ndarray:
    """Centres of lists by spherical k-means, float32 ``[num_lists, d]``.

    Many lists are trained in two levels: points are put into the square root of their number of clusters, and each
    cluster is divided into its share of lists. That makes ``2 sqrt(num_lists)`` comparisons of each point where one
    level makes ``num_lists``: at 65,536 lists 128 times fewer. What it costs in recall is measured like all else.

    Args:
        sample: Unit float32 ``[n, d]``, at least as many as lists.
        num_lists: How many.

    Source: as ``two_level_clustering`` in FAISS's contrib, for cosines; each cluster gets lists by its size.
    """
    if not is_two_level(num_lists):
        return _kmeans(sample, num_lists)
    num_clusters = round(num_lists**0.5)
    coarse = faiss.IndexFlatIP(sample.shape[1])
    coarse.add(_kmeans(sample, num_clusters))
    cluster = coarse.search(sample, 1)[1][:, 0]
    sizes = np.bincount(cluster, minlength=num_clusters)
    shares = _shares(sizes, num_lists)
    order = np.argsort(cluster, kind="stable")
    parts = np.split(order, np.cumsum(sizes)[:-1])
    centroids = [_kmeans(sample[rows], share) for rows, share in zip(parts, shares.tolist(), strict=True) if share]
    return np.concatenate(centroids)


def train_index(family: Family, centroids: np.ndarray, sample: np.ndarray) -> Any:
    """An empty index with these lists, whose codec has seen the sample."""
    index = faiss.index_factory(centroids.shape[1], family.name, METRIC)
    faiss.downcast_index(index.quantizer).add(centroids)  # so FAISS trains no centroids of its own
    index.train(sample)
    return index


def _kmeans(points: np.ndarray, k: int) -> np.ndarray:
    """Float32 ``[k, d]``; the points themselves where there are no more than ``k``, which ``_shares`` sees to."""
    if len(points) == k:
        return points
    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=_ROUNDS,
        spherical=True,
        seed=_SEED,
        min_points_per_centroid=1,  # how many there are is seen to by the families
        max_points_per_centroid=_MAX_POINTS_PER_CENTROID,
        gpu=bool(num_gpus()),
    )
    kmeans.train(points)
    centroids: np.ndarray = kmeans.centroids
    return centroids


def _shares(sizes: np.ndarray, total: int) -> np.ndarray:
    """``total`` lists divided among clusters by their size, int64; never more than a cluster has points."""
    wanted = sizes * (total / sizes.sum())
    shares: np.ndarray = np.minimum(np.floor(wanted).astype(np.int64), sizes)
    while (left := total - int(shares.sum())) > 0:
        room = np.flatnonzero(shares < sizes)
        first = room[np.argsort((shares - wanted)[room], kind="stable")][:left]
        shares[first] += 1
    return shares
