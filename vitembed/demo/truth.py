"""Scores against exact ground truth: whether the true match is found, and whether neighbours share the category.

Everything here takes plain arrays, so that raw pixels, an untrained and a trained encoder are measured alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_BLOCK = 512  # rows of scores held at once: 4 MB per 2,000 gallery rows


def retrieval(
    query_vectors: Float[np.ndarray, "n d"], gallery_vectors: Float[np.ndarray, "n d"], *, ks: Sequence[int] = (1, 10)
) -> dict[str, Any]:
    """How often the true match is among the k gallery vectors nearest by cosine.

    Args:
        query_vectors: Row ``i`` belongs to gallery row ``i``.
        gallery_vectors: What is searched, exactly.
        ks: Numbers of neighbours.

    Returns:
        ``{"num_queries": n, "recall@1": {"value": 0..1, "ci95": [low, high]}, ...}`` with Wilson intervals. A gallery
        row that is as near as the true match counts as nearer: vectors that are all alike find nothing.

    Raises:
        ValueError: If there are no rows, or a ``k`` is below 1.
    """
    if len(query_vectors) == 0 or min(ks, default=1) < 1:
        raise ValueError(f"need at least one row and k >= 1, got {len(query_vectors)} rows and ks={tuple(ks)}")
    queries, gallery = _unit(query_vectors), _unit(gallery_vectors)
    num_queries = len(queries)
    ranks = np.empty(num_queries, np.int64)
    for start in range(0, num_queries, _BLOCK):
        scores = queries[start : start + _BLOCK] @ gallery.T
        true = scores[np.arange(len(scores)), np.arange(start, start + len(scores))]
        ranks[start : start + _BLOCK] = (scores >= true[:, None]).sum(axis=1)  # the true match counts itself: 1 is best
    result: dict[str, Any] = {"num_queries": num_queries}
    for k in ks:
        hits = int((ranks <= k).sum())
        result[f"recall@{k}"] = {"value": hits / num_queries, "ci95": wilson(hits, num_queries)}
    return result


def category_scores(
    vectors: Float[np.ndarray, "n d"],
    labels: Sequence[Any] | np.ndarray,
    *,
    groups: Sequence[Any] | np.ndarray | None = None,
    domains: Sequence[Any] | np.ndarray | None = None,
    ks: Sequence[int] = (5, 20),
    linear: bool = True,
    num_folds: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of the category by its nearest neighbours and by a linear probe, each row judged by the other rows.

    Args:
        vectors: One row per image.
        labels: Category of each row.
        groups: Rows of one group never judge each other, such as two drawings of one emoji. None: every row alone.
        domains: Rows are judged by rows of other domains only, such as Google's drawings by Twitter's. None: by all.
        ks: Numbers of neighbours that vote by cosine; a tie goes to the category with the larger sum of cosines.
        linear: Also fit ``vitembed.LinearProbe`` on all folds but one, in turn, which takes most of the time. With
            ``domains`` its penalty is chosen within the domains it sees, which is too weak for vectors that overfit
            a domain, as raw pixels do.
        num_folds: Folds of the linear probe. Groups are kept whole, categories keep their shares.
        seed: Decides folds and bootstrap.

    Returns:
        ``{"num_images": n, "num_classes": c, "majority": {"accuracy": a}, "knn5": {"accuracy": a, "ci95": [low, high]},
        ..., "linear": {...}}``, accuracies in 0..1. Intervals are of a bootstrap that draws whole groups.

    Raises:
        ValueError: If lengths differ, or a row has fewer than ``max(ks)`` rows to be judged by.
    """
    classes, targets = np.unique(np.asarray(labels), return_inverse=True)
    members = np.arange(len(vectors)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    origins = None if domains is None else np.unique(np.asarray(domains), return_inverse=True)[1]
    lengths = {len(vectors), len(targets), len(members), len(vectors if origins is None else origins)}
    if len(lengths) > 1:
        raise ValueError(f"vectors, labels, groups and domains do not fit together: lengths {sorted(lengths)}")
    result: dict[str, Any] = {
        "num_images": len(vectors),
        "num_classes": len(classes),
        "majority": {"accuracy": float(np.bincount(targets).max() / len(targets))},
    }
    for k, predicted in _neighbour_votes(_unit(vectors), targets, members, origins, ks).items():
        result[f"knn{k}"] = _accuracy(predicted == targets, members, seed)
    if linear:
        predicted = _linear_predictions(vectors, targets, members, origins, num_folds, seed)
        result["linear"] = _accuracy(predicted == targets, members, seed)
    return result


def pixel_vectors(
    images: UInt8[np.ndarray, "n s s 3"], size: int = 32, *, centre: Literal["set", "image"] = "set"
) -> Float[np.ndarray, "n d"]:
    """The images themselves as unit vectors of ``size * size * 3`` pixels: what an encoder has to beat.

    Args:
        images: Upright RGB.
        size: Side to which they are resized first (antialiased, bicubic).
        centre: ``set`` subtracts the mean image of ``images``; ``image`` subtracts each image's own mean colour
            instead, which undoes tints.

    Returns:
        float32, rows of length 1 (0 where an image equals what is subtracted).
    """
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    pixels = np.stack([np.asarray(image, np.float32) for image in resized])
    pixels -= pixels.mean(axis=0) if centre == "set" else pixels.mean(axis=(1, 2), keepdims=True)
    return _unit(pixels.reshape(len(pixels), -1))


def wilson(hits: int, num: int, *, z: float = 1.959964) -> list[float]:
    """Wilson's score interval ``[low, high]`` of a proportion; 95 % by default.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.
    """
    share = hits / num
    centre = share + z * z / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    scale = 1 + z * z / num
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _neighbour_votes(
    vectors: np.ndarray, targets: np.ndarray, members: np.ndarray, origins: np.ndarray | None, ks: Sequence[int]
) -> dict[int, np.ndarray]:
    num_classes = int(targets.max()) + 1
    predicted = {k: np.empty(len(vectors), np.int64) for k in ks}
    for start in range(0, len(vectors), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(vectors)))
        scores = vectors[rows] @ vectors.T
        barred = members[rows, None] == members[None]
        if origins is not None:
            barred |= origins[rows, None] == origins[None]
        num_judges = int((~barred).sum(axis=1).min())
        if num_judges < max(ks):
            raise ValueError(f"a row has {num_judges} rows to be judged by, too few for k={max(ks)}")
        scores[barred] = -np.inf
        nearest = np.argsort(-scores, axis=1, kind="stable")[:, : max(ks)]
        cosines = np.take_along_axis(scores, nearest, axis=1)
        for k in ks:
            votes = np.zeros((len(scores), num_classes))
            # A vote weighs 1; the cosines, scaled to sum below 1, only decide between equal numbers of votes.
            weights = 1 + cosines[:, :k] / (2 * k + 1)
            np.add.at(votes, (np.arange(len(scores))[:, None], targets[nearest[:, :k]]), weights)
            predicted[k][rows] = votes.argmax(axis=1)
    return predicted


def _linear_predictions(
    vectors: np.ndarray,
    targets: np.ndarray,
    members: np.ndarray,
    origins: np.ndarray | None,
    num_folds: int,
    seed: int,
) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold

    from vitembed.probe.linear import LinearProbe

    predicted = np.empty(len(targets), np.int64)
    folds = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(vectors, targets, members):
        if origins is None:
            parts = [(train, test)]
        else:
            parts = [(train[origins[train] != o], test[origins[test] == o]) for o in np.unique(origins[test])]
        for fitted, judged in parts:
            probe = LinearProbe(random_state=seed).fit(vectors[fitted], targets[fitted])
            predicted[judged] = probe.predict(vectors[judged])
    return predicted


def _accuracy(correct: np.ndarray, members: np.ndarray, seed: int, num_draws: int = 1000) -> dict[str, Any]:
    """Accuracy with the percentile interval of a bootstrap over groups, as rows of a group succeed or fail together."""
    hits, sizes = np.bincount(members, weights=correct), np.bincount(members)
    generator = np.random.default_rng(seed)
    draws = np.empty(num_draws)
    for draw in range(num_draws):
        chosen = generator.integers(len(sizes), size=len(sizes))
        draws[draw] = hits[chosen].sum() / sizes[chosen].sum()
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"accuracy": float(correct.mean()), "ci95": [float(low), float(high)]}
