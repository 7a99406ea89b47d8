"""What vectors are worth on labelled images: majority, k-NN and linear accuracy, and what spoils these numbers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning

from vitembed.errors import ConfigError, DataError
from vitembed.probe.inputs import device_name, labels_of, vectors_of
from vitembed.probe.knn import KNNProbe, nearest, unit_rows
from vitembed.probe.linear import LinearProbe
from vitembed.probe.scores import Scores, score
from vitembed.probe.split import given_split, grouped_split, stratified_split

NEAR_DUPLICATE = 0.995
"""Cosine, after the training mean is subtracted, from which a test image counts as a copy of a training image."""


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class in the report."""

    label: str | int
    num_train: int
    num_test: int
    knn_recall: float | None
    """Share of its test images that k-NN got right; None when it has no test images."""
    linear_recall: float | None
    linear_precision: float | None
    """Share of the linear probe's answers with this label that are right; None when it never gave it."""


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """Result of ``evaluate``."""

    num_images: int
    num_classes: int
    num_train: int
    num_test: int
    majority: Scores
    """Always answering with the most frequent training class: what any probe must beat."""
    knn: Scores
    linear: Scores
    k: int
    """Neighbours that voted."""
    C: float
    """Inverse penalty the linear probe chose."""
    num_near_duplicates: int
    """Test images with a near copy among the training images (cosine >= 0.995 of centred vectors): leakage."""
    classes: list[ClassRow]
    """In the order of the labels."""
    notes: list[str]
    """One line for each thing that a reader of the numbers must know."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; accuracies in 0..1."""
        return {
            "num_images": self.num_images,
            "num_classes": self.num_classes,
            "majority": self.majority.to_dict(),
            "knn": {**self.knn.to_dict(), "k": self.k},
            "linear": {**self.linear.to_dict(), "C": self.C},
            "num_train": self.num_train,
            "num_test": self.num_test,
            "num_near_duplicates": self.num_near_duplicates,
            "classes": [vars(row).copy() for row in self.classes],
            "notes": list(self.notes),
        }


def evaluate(
    X: Any,
    labels: Any = None,
    *,
    split: Any = None,
    test_share: float = 0.25,
    seed: int = 0,
    groups: Any = None,
    k: int = 20,
    device: str = "auto",
) -> ProbeReport:
    """Fit the probes on one part of labelled vectors and score them on the other.

    Args:
        X: Vectors ``[n, d]`` or ``Embeddings``.
        labels: One for each row, text or whole numbers; the ``Embeddings``' own when not given.
        split: ``train``, ``val`` or ``test`` for each row, or a boolean array that is True for test rows; see
            ``given_split``. Without it ``test_share`` of each class is drawn with ``seed``.
        test_share: In 0..1.
        seed: Decides the split, the bootstrap draws and the linear probe's hold-out.
        groups: One for each row, of any kind: rows of a group (one scene, patient, film) are never on both sides of a
            drawn split, and intervals are over groups.
        k: Neighbours of the k-NN probe.
        device: ``"auto"`` or a torch device.

    Raises:
        DataError: If vectors, labels, split or groups do not fit together, or there are too few images or classes.
        ConfigError: If ``test_share`` is not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share={test_share:g}: expected a number between 0 and 1")
    names, targets = _checked_labels(labels_of(X, labels))
    vectors = _checked_vectors(vectors_of(X), len(targets))
    group_ids = None if groups is None else _checked_groups(groups, len(targets))
    rng = np.random.default_rng(seed)
    is_test, notes = _split(targets, split, group_ids, test_share, seed, rng)
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    notes += _remarks_on_classes(names, targets, is_test)
    if group_ids is not None and (shared := len(np.intersect1d(group_ids[train], group_ids[test]))):
        notes.append(f"{shared} groups have images on both sides of the given split: the accuracies are too high")

    knn = KNNProbe(k, device=device).fit(vectors[train], targets[train])
    linear = LinearProbe(random_state=seed, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # about the last digits of the weights
        linear.fit(vectors[train], targets[train])
    truth = targets[test]
    majority = np.full(len(test), np.bincount(targets[train]).argmax())
    answers = {"majority": majority, "knn": knn.predict(vectors[test]), "linear": linear.predict(vectors[test])}
    test_groups = None if group_ids is None else group_ids[test]
    scores = {name: score(answer, truth, len(names), rng=rng, groups=test_groups) for name, answer in answers.items()}
    copies = _near_duplicates(vectors, train, test, device)
    notes += _remarks_on_copies(copies, answers, truth)
    return ProbeReport(
        num_images=len(targets),
        num_classes=len(names),
        num_train=len(train),
        num_test=len(test),
        **scores,
        k=min(k, len(train)),
        C=linear.C_,
        num_near_duplicates=int(copies.sum()),
        classes=_class_rows(names, targets[train], truth, answers["knn"], answers["linear"]),
        notes=notes,
    )


def _checked_labels(labels: Any) -> tuple[list[Any], Int[np.ndarray, " n"]]:
    """Distinct labels (str or int), sorted, and each row's place among them."""
    if labels is None:
        raise DataError("probing needs a label for each image")
    array = np.asarray(labels)
    if array.ndim != 1:
        raise DataError(f"labels have shape {list(array.shape)}, expected one for each image")
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.tolist()):
        array = array.astype(np.str_)
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    if array.dtype.kind not in "iuU":
        raise DataError(f"labels have type {array.dtype}, expected text or whole numbers")
    names, targets = np.unique(array, return_inverse=True)
    if len(names) < 2:
        held = f"1: {names.tolist()[0]!r}" if len(names) else "none"
        raise DataError(f"probing needs at least 2 classes, the labels hold {held}")
    return names.tolist(), targets.astype(np.int64)


def _checked_vectors(X: Any, num: int) -> Float[np.ndarray, "n d"]:
    vectors = np.asarray(X)
    if vectors.ndim != 2 or vectors.shape[1] == 0 or vectors.dtype.kind not in "fiu":
        raise DataError(f"vectors have shape {list(vectors.shape)} and type {vectors.dtype}, expected numbers [n, d]")
    if len(vectors) != num:
        raise DataError(f"{num} labels for {len(vectors)} vectors")
    if vectors.dtype not in (np.float32, np.float64):
        vectors = vectors.astype(np.float32 if vectors.dtype.kind == "f" else np.float64)
    if not np.isfinite(vectors).all():
        raise DataError("the vectors hold NaN or infinity")
    return vectors


def _checked_groups(groups: Any, num: int) -> Int[np.ndarray, " n"]:
    array = np.asarray(groups)
    if array.shape != (num,):
        raise DataError(f"groups have shape {list(array.shape)}, expected one for each of {num} images")
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _split(
    targets: np.ndarray,
    split: Any,
    groups: np.ndarray | None,
    test_share: float,
    seed: int,
    rng: np.random.Generator,
) -> tuple[Bool[np.ndarray, " n"], list[str]]:
    """Rows to test, after a look at whether anything can be learned and tested at all."""
    notes: list[str] = []
    if split is not None:
        is_test, notes = given_split(split, len(targets))
    elif np.bincount(targets).max() < 2:
        raise DataError(f"each of the {len(targets)} classes has one image: none is left to test on")
    elif groups is not None:
        is_test = grouped_split(targets, groups, test_share=test_share, seed=seed)
    else:
        is_test = stratified_split(targets, test_share=test_share, rng=rng)
    num_learned = len(np.unique(targets[~is_test]))
    if num_learned < 2:
        raise DataError(f"the training images are of {num_learned} class, probing needs at least 2")
    return is_test, notes


def _remarks_on_classes(names: list[Any], targets: np.ndarray, is_test: np.ndarray) -> list[str]:
    num_train = np.bincount(targets[~is_test], minlength=len(names))
    num_test = np.bincount(targets[is_test], minlength=len(names))
    notes = []
    for lacking, what in (
        (num_test == 0, "never tested: no test images"),
        (num_train == 0, "never right: no training images"),
    ):
        if lacking.any():
            some = ", ".join(str(names[i]) for i in np.flatnonzero(lacking)[:3]) + (
                ", ..." if lacking.sum() > 3 else ""
            )
            notes.append(f"{int(lacking.sum())} of {len(names)} classes are {what} ({some})")
    return notes


def _near_duplicates(vectors: np.ndarray, train: np.ndarray, test: np.ndarray, device: str) -> Bool[np.ndarray, " m"]:
    """Which test rows have a training row within ``NEAR_DUPLICATE``.

    The mean is taken off first: vectors of many encoders share a large common part, which lifts every cosine.
    """
    centre = vectors[train].mean(axis=0, dtype=np.float64)
    bank, queries = (unit_rows(vectors[rows] - centre) for rows in (train, test))
    similarities, _ = nearest(queries, bank, 1, device=device_name(device))
    found: np.ndarray = similarities[:, 0] >= NEAR_DUPLICATE
    return found


def _remarks_on_copies(copies: np.ndarray, answers: dict[str, np.ndarray], truth: np.ndarray) -> list[str]:
    if not copies.any():
        return []
    note = f"{int(copies.sum())} of {len(copies)} test images have a near duplicate among the training images"
    if not copies.all():
        knn, linear = (100 * (answers[name] == truth)[~copies].mean() for name in ("knn", "linear"))
        note += f"; without them k-NN is {knn:.1f} % and linear {linear:.1f} %"
    return [note]


def _class_rows(
    names: list[Any], learned: np.ndarray, truth: np.ndarray, knn: np.ndarray, linear: np.ndarray
) -> list[ClassRow]:
    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    def count(numbers: np.ndarray) -> list[int]:
        return [int(number) for number in np.bincount(numbers, minlength=len(names))]

    num_test, answered = count(truth), count(linear)
    knn_hits, linear_hits = count(truth[knn == truth]), count(truth[linear == truth])
    return [
        ClassRow(
            label=name,
            num_train=num_train,
            num_test=num_test[i],
            knn_recall=share(knn_hits[i], num_test[i]),
            linear_recall=share(linear_hits[i], num_test[i]),
            linear_precision=share(linear_hits[i], answered[i]),
        )
        for i, (name, num_train) in enumerate(zip(names, count(learned), strict=True))
    ]
