"""What vectors are worth on labelled images: majority, k-NN and linear accuracy, and what spoils these numbers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning

from vitembed.config.ranges import SEED, Range, check_numbers
from vitembed.embeddings import Embeddings
from vitembed.errors import ConfigError, DataError
from vitembed.probe.evaluation.inputs import checked_groups, checked_labels, checked_vectors
from vitembed.probe.evaluation.leakage import Leak, copy_groups, leaks_across, same_images
from vitembed.probe.evaluation.sides import choose_sides, remarks_on_classes
from vitembed.probe.inputs import given_labels
from vitembed.probe.knn import KNNProbe
from vitembed.probe.linear import LinearProbe
from vitembed.probe.scores import Scores, score


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What the numbers of a report come from, for whoever wants to look closer."""

    names: list[Any]
    """Labels, sorted; a class number is a place among them."""
    vectors: Float[np.ndarray, "n d"]
    targets: Int[np.ndarray, " n"]
    is_test: Bool[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"] | None
    linear: LinearProbe
    """Learned from the training rows; its classes are class numbers."""
    answers: dict[str, Int[np.ndarray, " m"]]
    """Of ``majority``, ``knn``, ``linear`` and perhaps ``attentive`` for the test rows."""
    probabilities: Float[np.ndarray, "m c"]
    """The linear probe's, for the test rows; 0 for classes that it never met."""
    leaks: list[Leak]
    """Test rows that have a near copy among the training rows."""
    contradictions: list[Int[np.ndarray, " _"]]
    """Rows that are one image, by their vectors, under several labels."""

    @property
    def test(self) -> Int[np.ndarray, " m"]:
        """Numbers of the test rows."""
        return np.flatnonzero(self.is_test)

    @property
    def is_copy(self) -> Bool[np.ndarray, " m"]:
        """Which test rows have a near copy among the training rows."""
        return np.isin(self.test, [leak.test_row for leak in self.leaks])


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
    attentive: Scores | None = None
    """Of ``AttentiveProbe``, where tokens were given."""
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
    fitted: Fitted = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; accuracies in 0..1."""
        return {
            "num_images": self.num_images,
            "num_classes": self.num_classes,
            "majority": self.majority.to_dict(),
            "knn": {**self.knn.to_dict(), "k": self.k},
            "linear": {**self.linear.to_dict(), "C": self.C},
            **({} if self.attentive is None else {"attentive": self.attentive.to_dict()}),
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
    group_copies: bool = False,
    tokens: Float[np.ndarray, "n t d2"] | None = None,
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
        group_copies: Near duplicates are a group too, so that none is on both sides.
        tokens: All tokens of each image (``patch_tokens.tokens_of``), for an attentive probe beside the others.
        k: Neighbours of the k-NN probe.
        device: ``"auto"`` or a torch device.

    Raises:
        DataError: If vectors, labels, split or groups do not fit together, or there are too few images or classes.
        ConfigError: If ``test_share`` is not between 0 and 1, ``seed`` or ``k`` is out of range, or ``group_copies`` is
            asked of a split that is given.
    """
    if not 0 < test_share < 1:
        raise ConfigError(f"test_share={test_share:g}: expected a number between 0 and 1")
    check_numbers(seed=(seed, SEED), k=(k, Range(1, 10**6, whole=True)))
    if group_copies and split is not None:
        raise ConfigError(
            "near duplicates can be kept on one side only of a split that is drawn here, and this data comes with its "
            "own: leave the split out, or the grouping (copies across the split are reported in any case)"
        )
    names, targets = checked_labels(given_labels(X, labels))
    vectors = checked_vectors(X.vectors if isinstance(X, Embeddings) else X, len(targets))
    group_ids = None if groups is None else checked_groups(groups, len(targets))
    notes: list[str] = []
    if group_copies:
        group_ids = copy_groups(vectors, device=device, groups=group_ids)
        sizes = np.bincount(group_ids)
        notes.append(
            f"{int(sizes[sizes > 1].sum()):,} images in {int((sizes > 1).sum()):,} groups of near duplicates were kept "
            "on one side of the split each"
        )
    rng = np.random.default_rng(seed)
    is_test, remarks = choose_sides(targets, split, group_ids, test_share, seed, rng)
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    notes = remarks + notes + remarks_on_classes(names, targets, is_test)
    if group_ids is not None and (shared := len(np.intersect1d(group_ids[train], group_ids[test]))):
        notes.append(f"{shared} groups have images on both sides of the given split: the accuracies are too high")

    knn = KNNProbe(k, device=device).fit(vectors[train], targets[train])
    linear = LinearProbe(random_state=seed, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # about the last digits of the weights
        linear.fit(vectors[train], targets[train])
    truth = targets[test]
    majority = np.full(len(test), np.bincount(targets[train]).argmax())
    votes, prob = (_over_all_classes(probe, vectors[test], len(names)) for probe in (knn, linear))
    answers = {"majority": majority, "knn": votes.argmax(axis=1), "linear": prob.argmax(axis=1)}
    chances = {"majority": np.zeros_like(prob), "knn": votes, "linear": prob}
    if tokens is not None:
        chances["attentive"] = _attentive_chances(tokens, targets, train, test, len(names), seed, device)
        answers["attentive"] = chances["attentive"].argmax(axis=1)
    test_groups = None if group_ids is None else group_ids[test]
    scores = {
        name: score(
            answer,
            truth,
            len(names),
            rng=rng,
            groups=test_groups,
            positive=chances[name][:, 1] if len(names) == 2 else None,
        )
        for name, answer in answers.items()
    }
    fitted = Fitted(
        names=names,
        vectors=vectors,
        targets=targets,
        is_test=is_test,
        groups=group_ids,
        linear=linear,
        answers=answers,
        probabilities=prob,
        leaks=leaks_across(vectors, train, test, device=device),
        contradictions=[rows for rows in same_images(vectors) if len(np.unique(targets[rows])) > 1],
    )
    notes += _remarks_on_contradictions(fitted)
    notes += _remarks_on_copies(fitted)
    return ProbeReport(
        num_images=len(targets),
        num_classes=len(names),
        num_train=len(train),
        num_test=len(test),
        **scores,
        k=min(k, len(train)),
        C=linear.C_,
        num_near_duplicates=len(fitted.leaks),
        classes=_class_rows(names, targets[train], truth, answers["knn"], answers["linear"]),
        notes=notes,
        fitted=fitted,
    )


def _attentive_chances(
    tokens: np.ndarray,
    targets: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    seed: int,
    device: str,
) -> np.ndarray:
    from vitembed.probe.attentive import AttentiveProbe

    if len(tokens) != len(targets):
        raise DataError(f"{len(targets)} labels for the tokens of {len(tokens)} images")
    attentive = AttentiveProbe(random_state=seed, device=device).fit(tokens[train], targets[train])
    return _over_all_classes(attentive, tokens[test], num_classes)


def _over_all_classes(probe: Any, vectors: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities ``[m, num_classes]``, also where the training images hold fewer classes."""
    prob = np.zeros((len(vectors), num_classes))
    prob[:, probe.classes_] = probe.predict_proba(vectors)
    return prob


def _remarks_on_copies(fitted: Fitted) -> list[str]:
    copies, targets, truth = fitted.is_copy, fitted.targets, fitted.targets[fitted.test]
    if not copies.any():
        return []
    have = "has" if copies.sum() == 1 else "have"
    note = f"{int(copies.sum())} of {len(copies)} test images {have} a near duplicate among the training images"
    if not copies.all():
        knn, linear = (100 * (fitted.answers[name] == truth)[~copies].mean() for name in ("knn", "linear"))
        note += f"; without them k-NN is {knn:.1f} % and linear {linear:.1f} %"
    notes = [note]
    if differ := sum(targets[leak.test_row] != targets[leak.train_row] for leak in fitted.leaks):
        notes.append(
            f"{differ} of these copies are labelled otherwise than their original: a wrong label, or an encoder "
            "that cannot tell the two apart"
        )
    return notes


def _remarks_on_contradictions(fitted: Fitted) -> list[str]:
    found = fitted.contradictions
    if not found:
        return []
    names = sorted({str(fitted.names[target]) for target in np.unique(fitted.targets[np.concatenate(found)]).tolist()})
    some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    what = "1 image is" if len(found) == 1 else f"{len(found):,} images are"
    return [
        f"{what} there several times with different labels ({sum(map(len, found)):,} files, by equal vectors; classes "
        f"{some}): at most one label of each can be right"
    ]


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
