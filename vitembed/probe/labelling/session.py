"""A labelling session: it chooses images to ask about, takes the answers, and knows what they are worth so far."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from jaxtyping import Float, Int

from vitembed.config.ranges import SEED, check_numbers
from vitembed.embeddings import Embeddings, plain_array
from vitembed.errors import DataError, counted, printable
from vitembed.probe.labelling.choosing import margin_uncertainty, typical, unsure_and_different
from vitembed.probe.labelling.class_names import agreed_classes, checked_classes, class_named
from vitembed.probe.labelling.estimate import ExpectedAccuracy, expect
from vitembed.probe.labelling.fitting import fit_probe
from vitembed.probe.labelling.labels_file import Answer, Chosen, LabelsFile, labels_in
from vitembed.probe.labelling.pool import Pool
from vitembed.probe.linear import LinearProbe

RANDOM_SHARE = 0.2
"""One in five images is drawn at random, as only those tell the expected accuracy."""
FEW_PER_CLASS, MOST_TYPICAL = 10, 150
"""Until there are this many labels for each class on average, or in all, typical images are asked about: better than
uncertain ones as long as the probe hardly knows what it does not know, and dearer the more clusters there are."""


def num_typical(num_classes: int) -> int:
    """How many labels there are before uncertain images are asked about."""
    return min(FEW_PER_CLASS * num_classes, MOST_TYPICAL)


@dataclass(frozen=True)
class Suggestion:
    """What the probe takes an image for."""

    label: str
    probability: float


class LabelSession:
    """Labels for a pool of images, asked for a few at a time.

    Args:
        vectors: ``Embeddings``, or an array ``[n, d]``, whose images are then named by their row numbers.
        classes: Two or more names, text or whole numbers (``"cat,dog"`` names two); None takes those of the labels
            file.
        labels_file: CSV (``path,label,chosen,time``) that is rewritten after every answer, and from which a later
            session goes on. None keeps everything in memory.
        seed: Decides which images are drawn at random; None takes that of the labels file, else 0.
        device: Where probes are fitted, ``"auto"`` or a torch device.

    Raises:
        DataError: If vectors are zero, names occur twice, there are no two classes, the file is damaged, or it holds
            labels that are not among the classes.
    """

    def __init__(
        self,
        vectors: Embeddings | np.ndarray,
        classes: Sequence[str | SupportsIndex] | None = None,
        *,
        labels_file: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        device: str = "auto",
    ) -> None:
        found = vectors if isinstance(vectors, Embeddings) else _named_by_row(vectors)
        self.ids: list[str] = found.ids
        self.fingerprint = found.fingerprint
        self.meta = found.meta
        self.device = device
        self.notes: list[str]
        """What a person should know about how the session began, one line each."""
        self._row = {name: row for row, name in enumerate(self.ids)}
        if len(self._row) < len(self.ids):
            raise DataError(f"the ids repeat: {len(self.ids):,} ids, {len(self._row):,} different ones")
        self._file = LabelsFile(None if labels_file is None else Path(labels_file), self._row)
        names = classes.split(",") if isinstance(classes, str) else classes
        self._file.classes, self.notes = agreed_classes(
            names, self._file.classes, labels_in(self._file.answers.values())
        )
        if self._file.is_gone:
            self.notes.append(
                f"{printable(self._file.path or '')} is gone, its settings are still there: the classes are "
                f"{', '.join(self._file.classes)}, and no image has a label"
            )
        check_numbers(seed=(seed, SEED))
        self.seed = self._file.seed if seed is None and self._file.seed is not None else int(seed or 0)
        self._file.seed = self.seed
        self._pool = Pool(found.vectors, self.ids, self.seed)
        self._skipped: set[int] = set()
        self._asked: dict[int, Chosen] = {
            self._row[name]: chosen for name, chosen in self._file.asked.items() if name in self._row
        }
        self._history: list[tuple[int, Answer | None, bool]] = []
        self._probe: LinearProbe | None = None
        self._learn([*self._labelled_rows().tolist(), *self._unsure_rows()])
        outside = sum(name not in self._row for name in self._file.answers)
        if outside:
            self.notes.append(f"{counted(outside, 'label')} of images that are not here: kept, not learned from")

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order in which they were given."""
        return list(self._file.classes)

    @property
    def num_labelled(self) -> int:
        """Images of the pool that have a label."""
        return len(self._labelled_rows())

    @property
    def num_left(self) -> int:
        """Images of the pool that have none and were not put aside as none of the classes."""
        return len(self.ids) - self.num_labelled - len(self._unsure_rows())

    @property
    def labels(self) -> list[str | None]:
        """Of each image of the pool; None where it has no label."""
        answers = self._file.answers
        return [answers[name].label if name in answers else None for name in self.ids]

    @property
    def unsure(self) -> list[bool]:
        """Of each image of the pool: whether it was put aside as none of the classes."""
        aside = set(self._file.unsure)
        return [name in aside for name in self.ids]

    def counts(self) -> dict[str, int]:
        """Labels of each class in the pool."""
        found = dict.fromkeys(self.classes, 0)
        for label in self.labels:
            if label is not None:
                found[label] += 1
        return found

    def chosen(self, row: int) -> Chosen | None:
        """How a labelled image was chosen; None without a label."""
        answer = self._file.answers.get(self.ids[row])
        return None if answer is None else answer.chosen

    def ask(self, num: int = 8) -> Int[np.ndarray, " r"]:
        """Rows of the images to label next, ``num`` or as many as are left, in the order to be asked in.

        One in five is the next in a random order; the others are typical ones as long as there are few labels, then
        such that the probe is unsure of and that differ. Copies of answered images and of each other are left out.
        What was asked and not answered is asked again.

        Raises:
            DataError: If ``num`` < 1.
        """
        if num < 1:
            raise DataError(f"num is {num}, expected 1 or more images to ask about")
        rng = np.random.default_rng([self.seed, len(self._file.answers), num])
        available = self._free()
        if not available.any():
            self._pool.loosen()
            available = self._free()
        drawn = self._draw(self._num_to_draw(num), available)
        rest = num - len(drawn)
        available[drawn] = False
        informative: list[int] = []
        if rest and available.any():
            labelled = self._labelled_rows()
            if len(labelled) < num_typical(len(self.classes)) or not self.is_fitted():
                beside = np.array([*labelled, *drawn], dtype=np.int64)
                rows = typical(self._pool.unit, rest, labelled=beside, available=available, rng=rng)
            else:
                uncertainty = margin_uncertainty(self.probabilities())
                rows = unsure_and_different(self._pool.unit, uncertainty, rest, available=available, rng=rng)
            informative = self._pool.distinct(rows, rest, drawn)
        for row in drawn:
            self._asked[row] = "random"
        for row in informative:
            self._asked.setdefault(row, "informative")
        rows = np.array([*drawn, *informative], dtype=np.int64)
        return rng.permutation(rows)  # so that nobody can tell which were drawn

    def answer(
        self,
        rows: Sequence[int] | np.ndarray | int,
        labels: Sequence[str | SupportsIndex | None] | np.ndarray | str | SupportsIndex | None,
    ) -> None:
        """Take the labels of some images; a later answer for an image takes the place of an earlier one.

        Args:
            rows: As ``ask`` gave them, or any others; a single one too.
            labels: Names of classes; None: none of them, or nobody can tell. Such an image is not asked about again.

        Raises:
            DataError: If a label is no class, a row does not exist, the lengths differ, or the file cannot be written;
                nothing is then taken.
        """
        numbers = [int(row) for row in np.atleast_1d(np.asarray(rows, dtype=np.int64))]
        given = list(labels) if isinstance(labels, Iterable) and not isinstance(labels, str) else [labels]
        if len(numbers) != len(given):
            raise DataError(f"{len(given)} labels for {len(numbers)} images")
        names = [None if label is None else self._checked_label(str(label)) for label in given]
        for row in numbers:
            if not 0 <= row < len(self.ids):
                raise DataError(f"row {row}: expected 0 to {len(self.ids) - 1}")
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        before = (dict(self._file.answers), list(self._file.unsure), len(self._history))
        for row, label in zip(numbers, names, strict=True):
            name = self.ids[row]
            earlier = self._file.answers.get(name)
            self._history.append((row, earlier, name in self._file.unsure))
            if name in self._file.unsure:
                self._file.unsure.remove(name)
            if label is None:
                self._file.answers.pop(name, None)
                self._file.unsure.append(name)
                continue
            others = {} if earlier is None else earlier.others
            # Changing one's mind about the label does not change how the image was chosen.
            chosen = earlier.chosen if earlier is not None else self._asked.get(row, "given")
            self._file.answers[name] = Answer(label, chosen, now, others)
        self._save(before)
        self._learn(numbers)

    def skip(self, rows: Sequence[int] | np.ndarray | int) -> None:
        """Do not ask about these again in this session."""
        self._skipped.update(int(row) for row in np.atleast_1d(np.asarray(rows, dtype=np.int64)))

    def undo(self) -> int | None:
        """Take the last answer of this session back, and give its row; None when there is none."""
        if not self._history:
            return None
        before = (dict(self._file.answers), list(self._file.unsure), len(self._history))
        row, earlier, was_unsure = self._history[-1]
        name = self.ids[row]
        self._file.answers.pop(name, None)
        self._file.unsure = [other for other in self._file.unsure if other != name]
        if earlier is not None:
            self._file.answers[name] = earlier
        if was_unsure:
            self._file.unsure.append(name)
        self._save(before)
        self._history.pop()
        self._skipped.discard(row)
        self._learn([*self._labelled_rows().tolist(), *self._unsure_rows()], anew=True)
        return row

    def add_class(self, name: str) -> str:
        """One more class, at the end.

        Raises:
            DataError: If it is no name, or there already.
        """
        before = self._file.classes
        self._file.classes = checked_classes([*before, name])
        try:
            self._file.save_settings()
        except DataError:
            self._file.classes = before
            raise
        return self._file.classes[-1]

    def save(self) -> None:
        """Write the labels file and its settings now, as before the first answer; ``answer`` does so by itself.

        Images that ``ask`` gave are remembered, so that answers may come in a later session.
        """
        self._file.asked = {self.ids[row]: chosen for row, chosen in self._asked.items() if self._is_open(row)}
        self._file.save_settings()
        self._file.save_answers()

    def is_fitted(self) -> bool:
        """Whether two classes have labels, as a probe needs."""
        labels = self.labels
        return len({labels[row] for row in self._labelled_rows().tolist()}) >= 2

    def probe(self) -> LinearProbe:
        """The linear probe that has learned from all labels so far; it takes vectors as the session was given them.

        Raises:
            DataError: If fewer than two classes have labels.
        """
        if self._probe is None:
            if not self.is_fitted():
                raise DataError("a probe needs labels of two classes or more: answer some more")
            rows, labels = self._labelled_rows(), self.labels
            names = np.array([labels[row] for row in rows.tolist()])
            self._probe = fit_probe(self._pool.given[rows], names, device=self.device)
        return self._probe

    def probabilities(self) -> Float[np.ndarray, "n c"]:
        """Of each image of the pool, in the order of ``probe().classes_``.

        Raises:
            DataError: As ``probe``.
        """
        probe = self.probe()
        # float32 throughout: the pool is not copied, and two digits suffice here.
        logits = self._pool.given @ probe.coef_.T.astype(np.float32) + probe.intercept_.astype(np.float32)
        if logits.shape[1] == 1:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        prob: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
        prob /= prob.sum(axis=1, keepdims=True)
        return prob

    def suggestions(self, rows: Sequence[int] | np.ndarray) -> list[Suggestion | None]:
        """What the probe takes the images for; None each as long as there is no probe."""
        if not self.is_fitted():
            return [None] * len(rows)
        prob = self.probabilities()[np.asarray(rows, dtype=np.int64)]
        best = prob.argmax(axis=1)
        names = self.probe().classes_
        return [Suggestion(str(names[place]), float(prob[i, place])) for i, place in enumerate(best.tolist())]

    def expected_accuracy(self, *, target_precision: float = 0.95) -> ExpectedAccuracy:
        """How right the probe will be on the other images, see ``estimate.py``.

        Raises:
            DataError: As ``probe``.
        """
        rows, labels = self._labelled_rows(), self.labels
        self.probe()
        names = [labels[row] for row in rows.tolist()]
        targets = np.unique(np.array(names), return_inverse=True)[1]
        drawn = np.array([self.chosen(row) == "random" for row in rows.tolist()])
        left = np.ones(len(self.ids), dtype=bool)
        left[[*rows.tolist(), *self._unsure_rows()]] = False
        return expect(
            self._pool.given[rows],
            targets,
            drawn,
            confidence=self.probabilities()[left].max(axis=1),
            seed=self.seed,
            target_precision=target_precision,
            device=self.device,
        )

    def _num_to_draw(self, num: int) -> int:
        """How many of the next are to be drawn at random so that one in five asked about is."""
        chosen = [self.chosen(row) for row in self._labelled_rows().tolist()]
        num_asked = sum(each != "given" for each in chosen)
        owed = math.ceil(RANDOM_SHARE * (num_asked + num)) - chosen.count("random")
        return min(num, max(0, owed))

    def _draw(self, num: int, available: np.ndarray) -> list[int]:
        """The next rows of the random order that may be asked about.

        Those that were asked about as informative ones are passed over and never count: they are harder than average,
        also among what the order would have come to.
        """
        drawn = list[int]()
        for row in self._pool.order:
            if len(drawn) == num:
                break
            if available[row]:
                drawn += self._pool.distinct(np.array([row]), 1, drawn)
        return drawn

    def _free(self) -> np.ndarray:
        """Which images may be asked about."""
        return self._pool.free([*self._labelled_rows().tolist(), *self._unsure_rows(), *self._skipped])

    def _labelled_rows(self) -> np.ndarray:
        rows = [self._row[name] for name in self._file.answers if name in self._row]
        return np.array(rows, dtype=np.int64)

    def _unsure_rows(self) -> list[int]:
        return [self._row[name] for name in self._file.unsure if name in self._row]

    def _is_open(self, row: int) -> bool:
        return self.ids[row] not in self._file.answers and self.ids[row] not in self._file.unsure

    def _learn(self, rows: Sequence[int], *, anew: bool = False) -> None:
        """After new answers: their copies are not asked about, and the probe is no longer the last word."""
        self._pool.answered(rows, anew=anew)
        self._probe = None

    def _save(self, before: tuple[dict[str, Answer], list[str], int]) -> None:
        """Write what changed; where that fails, nothing has."""
        answers, unsure, num_done = before
        try:
            if self._file.unsure != unsure or not self._was_saved():
                self._file.save_settings()
            self._file.save_answers()
        except BaseException:
            self._file.answers, self._file.unsure = answers, unsure
            del self._history[num_done:]
            raise

    def _was_saved(self) -> bool:
        path = self._file.settings_path
        return path is None or path.exists()

    def _checked_label(self, label: str) -> str:
        found = class_named(label, self._file.classes)
        if found is None:
            raise DataError(f"unknown label {printable(label)!r}: the classes are {', '.join(self._file.classes)}")
        return found


def _named_by_row(vectors: np.ndarray) -> Embeddings:
    array = np.asarray(plain_array(vectors))
    return Embeddings(array, [str(row) for row in range(array.shape[0] if array.ndim else 0)], "")
