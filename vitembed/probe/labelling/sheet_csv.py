"""Sheets to fill in, as CSV, and filled ones taken back, whether a person or the HTML page wrote them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vitembed.csv_text import csv_bytes, read_csv
from vitembed.errors import DataError, printable
from vitembed.outputs import SHEET, check_output, write_output
from vitembed.probe.labelling.class_names import UNSURE, class_named
from vitembed.probe.labelling.session import LabelSession

COLUMNS = ("path", "label", "suggested", "probability", "key")


def image_key(name: str) -> str:
    """Tells an image also where a spreadsheet has spoilt the bytes of its path."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def write_csv_sheet(path: str | os.PathLike[str], session: LabelSession, rows: Sequence[int] | np.ndarray) -> None:
    """Write a sheet with an empty column ``label``, what the probe suggests beside it.

    Raises:
        DataError: If the file cannot be written, or holds answers that the session does not know yet.
    """
    check_output(path, SHEET)
    num = _num_unknown(Path(path), session)
    if num:
        raise DataError(
            f"{printable(path)} holds {num:,} answer{'s' if num > 1 else ''} not taken yet, which a new sheet would "
            "replace: give the file with --answers first, or name another"
        )
    lines: list[Sequence[str]] = [COLUMNS]
    for row, hint in zip(np.asarray(rows).tolist(), session.suggestions(rows), strict=True):
        name = session.ids[row]
        label, probability = ("", "") if hint is None else (hint.label, f"{hint.probability:.3f}")
        lines.append((name, "", label, probability, image_key(name)))
    write_output(path, SHEET, csv_bytes(lines))


def _num_unknown(path: Path, session: LabelSession) -> int:
    """Answers in a filled sheet that the session does not know."""
    if not path.is_file() or not path.stat().st_size:
        return 0
    known = {
        image_key(name): UNSURE if unsure else label
        for name, label, unsure in zip(session.ids, session.labels, session.unsure, strict=True)
    }
    _, lines = read_csv(path, COLUMNS)
    given = [(fields["key"], fields["label"].strip()) for _, fields in lines if fields["label"].strip()]
    return sum(known.get(key) != (class_named(text, session.classes) or text) for key, text in given)


@dataclass(frozen=True)
class Taken:
    """What became of a filled sheet."""

    num_new: int
    """Images that had no label before."""
    num_same: int
    """Answers that were known already."""
    num_unsure: int
    """Images that are none of the classes, or that nobody could tell."""
    num_empty: int
    """Images without an answer; they are asked about again."""
    changed: list[str] = field(default_factory=list)
    """Answers that took the place of another, one line each."""
    problems: list[str] = field(default_factory=list)
    """Answers that could not be taken, one line each. All others were."""


def take_sheet(path: str | os.PathLike[str], session: LabelSession) -> Taken:
    """Take the answers of a filled sheet: ``path,label``, and ``key`` where the sheet has it.

    An empty label is no answer, ``?`` means none of the classes. A later sheet wins over an earlier answer. What cannot
    be taken is a problem of its own line alone; an image that is answered twice and differently is not taken at all.
    The same sheet may be given again.

    Raises:
        DataError: If the file is no sheet, or the labels file cannot be written.
    """
    file = Path(path)
    name = printable(path)
    columns, lines = read_csv(file, ("path", "label"))
    by_key = {image_key(image): row for row, image in enumerate(session.ids)} if "key" in columns else {}
    by_path = {image: row for row, image in enumerate(session.ids)}
    folder = os.path.dirname(os.path.abspath(file))  # noqa: PTH100, PTH120  links stay links
    problems = list[str]()
    answers: dict[int, tuple[int, str | None]] = {}
    contradicted = set[int]()
    num_empty = 0
    for line, fields in lines:
        where, cell, text = f"{name}, line {line}", fields["path"], fields["label"].strip()
        if not text:
            num_empty += 1
            continue
        row = by_path.get(cell)
        if row is None and "\0" not in cell:
            row = by_path.get(os.path.abspath(os.path.join(folder, cell)))  # noqa: PTH100, PTH118  links stay links
        keyed = by_key.get(fields.get("key", "").strip())
        if row is not None and keyed is not None and row != keyed:
            problems.append(f"{where}: path and key are of two images (were the columns sorted apart?): not taken")
            continue
        row = keyed if row is None else row
        if row is None:
            problems.append(f"{where}: {printable(cell)} is not among the images: not taken")
            continue
        label = None if text == UNSURE else class_named(text, session.classes)
        if label is None and text != UNSURE:
            problems.append(
                f"{where}: unknown label {printable(text)!r}, expected one of {', '.join(session.classes)} or "
                f"{UNSURE} (a new class is named with --classes): not taken"
            )
            continue
        if row in answers and answers[row][1] != label:
            contradicted.add(row)
            problems.append(
                f"{where}: {printable(cell)} was answered differently on line {answers[row][0]}: neither is taken"
            )
        answers.setdefault(row, (line, label))
    for row in contradicted:
        del answers[row]
    return _take(session, {row: label for row, (_, label) in answers.items()}, num_empty, problems)


def _take(session: LabelSession, answers: dict[int, str | None], num_empty: int, problems: list[str]) -> Taken:
    before, unsure = session.labels, session.unsure
    fresh = {row: label for row, label in answers.items() if label != before[row] or (label is None) != unsure[row]}
    changed = []
    for row, label in fresh.items():
        earlier = before[row]
        if earlier is not None:
            changed.append(f"{printable(session.ids[row])}: now {label or 'none of the classes'}, was {earlier}")
    session.answer(list(fresh), list(fresh.values()))
    return Taken(
        num_new=sum(label is not None and before[row] is None for row, label in fresh.items()),
        num_same=len(answers) - len(fresh),
        num_unsure=sum(label is None for label in fresh.values()),
        num_empty=num_empty,
        changed=changed,
        problems=problems,
    )


def refuse_problems(taken: Taken, path: str | os.PathLike[str]) -> None:
    """End in an error if anything was not taken.

    Raises:
        DataError: Naming how many; each of ``problems`` says why.
    """
    num = len(taken.problems)
    if num:
        raise DataError(
            f"{num} answer{'s' if num > 1 else ''} of {printable(path)} could not be taken, all others were: mend "
            "these lines and give the sheet again"
        )
