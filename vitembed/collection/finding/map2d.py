"""A collection as a map: every image a point in the plane, near to its like, with clusters and what they are of."""

from __future__ import annotations

import collections
import importlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.errors import ConfigError, DataError, counted

Method = Literal["pca", "umap"]
MAX_CLUSTERS = 20
MAX_POINTS = 20_000
_FIT_ROWS = 20_000


@dataclass(frozen=True)
class Cluster:
    """Images that lie together, in the space of the vectors rather than on the map."""

    name: str
    """The folder that most of them are in, where one holds more than half of them, else ``cluster N``."""
    example: int
    """The point nearest to the middle."""
    size: int


@dataclass(frozen=True)
class ImageMap:
    """Points, ready to be drawn."""

    paths: list[str]
    points: np.ndarray
    """float32 ``[n, 2]``, within 0..1."""
    labels: np.ndarray
    """Cluster of each point, int64 ``[n]``."""
    clusters: list[Cluster]
    """Largest first."""
    method: Method
    kept_variance: float | None
    """Share of the variance that the plane shows; None for a method that has none."""
    num_images: int
    """In the collection; there are fewer points if it was sampled."""


def make_map(
    collection: Collection,
    *,
    method: Method = "pca",
    num_clusters: int | None = None,
    max_points: int = MAX_POINTS,
    where: str | None = None,
    seed: int = 0,
) -> ImageMap:
    """Lay out the images of a collection.

    Args:
        collection: Whose images.
        method: ``pca``: the two directions in which the vectors differ most; the same each time. ``umap``: neighbours
            stay neighbours, at the price of distances that mean little (package umap-learn).
        num_clusters: For k-means; by default one for about each eight images, three to twenty.
        max_points: Images to show; of more an even sample is drawn.
        where: Which images (see ``Collection.search``).
        seed: For sample, k-means and UMAP.

    Raises:
        DataError: If there are fewer than three images, or a number is too small.
        ConfigError: If UMAP is asked for and not installed.
    """
    if num_clusters is not None and num_clusters < 1:
        raise DataError(f"num_clusters is {num_clusters}, expected at least 1")
    if max_points < 3:
        raise DataError(f"max_points is {max_points}, expected at least 3")
    paths, vectors, num_images = _vectors(collection, where, max_points, seed)
    if len(paths) < 3:
        raise DataError(f"{counted(len(paths), 'image')} to lay out: a map needs at least 3")
    wanted = num_clusters or min(MAX_CLUSTERS, max(3, len(paths) // 8))
    labels, centres = _cluster(vectors, min(wanted, len(paths)), seed)
    kept = None
    if method == "pca":
        flat, kept = _pca(vectors)
    else:
        flat = _umap(vectors, seed)
    order = np.argsort(-np.bincount(labels, minlength=len(centres)), kind="stable")
    renamed = np.empty(len(order), np.int64)
    renamed[order] = np.arange(len(order))
    labels = renamed[labels]
    clusters = []
    for number, centre in enumerate(centres[order]):
        members = np.flatnonzero(labels == number)
        if len(members):
            example = int(members[(vectors[members] @ centre).argmax()])
            clusters.append(Cluster(_name([paths[row] for row in members], number), example, len(members)))
    return ImageMap(paths, _within_unit(flat), labels, _told_apart(clusters), method, kept, num_images)


def _vectors(
    collection: Collection, where: str | None, max_points: int, seed: int
) -> tuple[list[str], np.ndarray, int]:
    facts = collection.facts()
    chosen = np.arange(len(facts)) if where is None else np.flatnonzero(collection.matches(where))
    num_images = len(chosen)
    if num_images > max_points:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, max_points, replace=False))
    vectors = np.empty((len(chosen), collection.dim), np.float32)
    done = taken = 0
    for _, chunk in collection.vector_chunks():
        here = chosen[(chosen >= done) & (chosen < done + len(chunk))] - done
        vectors[taken : taken + len(here)] = chunk[here]
        done, taken = done + len(chunk), taken + len(here)
    if done != len(facts):
        raise DataError("the collection has changed meanwhile: run the command again")
    return [facts[row].path for row in chosen.tolist()], vectors, num_images


def _cluster(vectors: np.ndarray, num_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster of each row, and unit centres ``[c, d]``."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(num_clusters, random_state=seed, n_init=3, batch_size=2048).fit(vectors)
    centres = means.cluster_centers_
    norms = np.linalg.norm(centres, axis=1, keepdims=True)
    return means.labels_.astype(np.int64), (centres / np.maximum(norms, 1e-12)).astype(np.float32)


def _pca(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    mean = vectors.mean(axis=0)
    some = vectors[:: max(1, len(vectors) // _FIT_ROWS)] - mean
    values, directions = np.linalg.eigh(some.T.astype(np.float64) @ some)
    first = directions[:, ::-1][:, :2]
    # An eigenvector may point either way: let its largest part be positive, so that a map is the same each time.
    signs = np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
    flat: np.ndarray = (vectors - mean) @ (first * signs).astype(np.float32)
    if flat.shape[1] < 2:  # vectors of one number
        flat = np.concatenate([flat, np.zeros_like(flat)], axis=1)
    total = float(values.sum())
    return flat, float(values[-2:].sum()) / total if total > 0 else 1.0


def _umap(vectors: np.ndarray, seed: int) -> np.ndarray:
    try:
        umap: Any = importlib.import_module("umap")
    except ImportError as error:
        raise ConfigError("UMAP is not installed: pip install 'vitembed[map]', or use --method pca") from error
    neighbours = min(15, len(vectors) - 1)
    # With a seed it runs on one thread; said here, as it would warn. Few points have too small a graph for its start.
    start = "spectral" if len(vectors) > 15 else "random"
    reducer = umap.UMAP(metric="cosine", n_neighbors=neighbours, random_state=seed, n_jobs=1, init=start)
    flat: np.ndarray = np.asarray(reducer.fit_transform(vectors), dtype=np.float32)
    return flat


def _within_unit(flat: np.ndarray) -> np.ndarray:
    """One scale for both axes, so that distances stay what they are; in the middle of the unit square."""
    low, high = flat.min(axis=0), flat.max(axis=0)
    span = float((high - low).max())
    if not math.isfinite(span) or span <= 0:
        return np.full(flat.shape, 0.5, np.float32)
    placed: np.ndarray = np.clip(0.5 + (flat - (low + high) / 2) / span, 0, 1).astype(np.float32)
    return placed


def _name(paths: Sequence[str], number: int) -> str:
    folders = collections.Counter(PurePath(path).parent.name for path in paths)
    name, count = folders.most_common(1)[0]
    return name if name and 2 * count > len(paths) and os.sep in paths[0] else f"cluster {number + 1}"


def _told_apart(clusters: list[Cluster]) -> list[Cluster]:
    """Two clusters may be of one folder: then a number tells them apart."""
    total = collections.Counter(cluster.name for cluster in clusters)
    seen = collections.Counter[str]()
    named = []
    for cluster in clusters:
        seen[cluster.name] += 1
        name = f"{cluster.name} ({seen[cluster.name]})" if total[cluster.name] > 1 else cluster.name
        named.append(Cluster(name, cluster.example, cluster.size))
    return named
