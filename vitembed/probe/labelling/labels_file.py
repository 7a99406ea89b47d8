"""The truth of a labelling session: a plain CSV of answers, and beside it a JSON file with what a CSV has no place for.

Both are written whole after every answer, so that a kill loses at most the answer that was being typed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitembed.atomic import make_folders
from vitembed.csv_text import csv_bytes, read_csv
from vitembed.errors import DataError, printable
from vitembed.lock import folder_locked
from vitembed.outputs import LABELS, check_output, is_stream, write_output
from vitembed.probe.labelling.class_names import checked_class, checked_classes
from vitembed.seal import read_document
from vitembed.workspace import WORKSPACE_DIR

FORMAT_VERSION = 1
_KIND = "vitembed labels"
Chosen = Literal["random", "informative", "given"]
"""How an image came to be asked about; ``given``: it came with its label."""
_CHOSEN: dict[str, Chosen] = {"random": "random", "informative": "informative", "given": "given"}
_COLUMNS = ["path", "label", "chosen", "time"]


@dataclass(frozen=True)
class Answer:
    """One labelled image."""

    label: str
    chosen: Chosen
    time: str
    """UTC, ISO 8601; empty when unknown."""
    others: dict[str, str] = field(default_factory=dict)
    """Columns of the file that are not ours; kept as they are."""


class LabelsFile:
    """Answers by image, in the order in which they came, and what else a session must remember.

    Args:
        path: The CSV file; None keeps everything in memory alone.
        known: Names of the images; one that is no absolute path is taken as it is, anything else in the column
            ``path`` is relative to the file's folder.

    Raises:
        DataError: If a file that is there is damaged or something else.
    """

    def __init__(self, path: Path | None, known: Container[str] = ()) -> None:
        self.path = None if path is None else Path(os.path.abspath(path))  # noqa: PTH100  links stay links
        self.answers: dict[str, Answer] = {}
        self.classes: list[str] = []
        self.unsure: list[str] = []
        """Images that are none of the classes, or that nobody can tell."""
        self.asked: dict[str, Chosen] = {}
        """How the images on sheets that are still out were chosen."""
        self.seed: int | None = None
        self._columns = list(_COLUMNS)
        self._seen: dict[Path, tuple[int, int, int] | None] = {}
        if self.path is not None:
            if is_stream(self.path):  # it could be neither read nor rewritten
                raise DataError(f"{printable(self.path)} is no file: labels are kept in a CSV file")
            if self.path.parent.is_dir():
                check_output(self.path, LABELS)
            self._read(self.path, known)

    @property
    def is_gone(self) -> bool:
        """Whether the settings were there when it was opened, and the answers were not."""
        if self.path is None or self.settings_path is None:
            return False
        return self._seen[self.path] is None and self._seen[self.settings_path] is not None

    @property
    def settings_path(self) -> Path | None:
        """The JSON file beside the CSV."""
        return None if self.path is None else self.path.with_name(f"{self.path.name}.json")

    def save_answers(self) -> None:
        """Write the CSV file.

        Raises:
            DataError: If it cannot be written, or somebody else has changed it meanwhile: nothing is then overwritten.
        """
        if self.path is None:
            return
        rows = [
            [
                {"path": self._stored(name), "label": answer.label, "chosen": answer.chosen, "time": answer.time}.get(
                    column, answer.others.get(column, "")
                )
                for column in self._columns
            ]
            for name, answer in self.answers.items()
        ]
        self._write(self.path, csv_bytes([self._columns, *rows]))

    def save_settings(self) -> None:
        """Write the JSON file.

        Raises:
            DataError: As ``save_answers``.
        """
        if self.settings_path is None:
            return
        document = {
            "kind": _KIND,
            "format_version": FORMAT_VERSION,
            "classes": self.classes,
            "seed": self.seed,
            "unsure": [self._stored(name) for name in self.unsure],
            "asked": {self._stored(name): chosen for name, chosen in self.asked.items()},
        }
        self._write(self.settings_path, (json.dumps(document, indent=1) + "\n").encode("ascii"))

    def _write(self, path: Path, data: bytes) -> None:
        if not path.parent.is_dir():
            try:
                make_folders(path.parent)
            except OSError as error:
                raise DataError(f"cannot make {printable(path.parent)}: {error.strerror}") from error
        with folder_locked(path.parent):
            if _state(path) != self._seen[path]:
                raise DataError(
                    f"{printable(path)} was changed by another program meanwhile: nothing was overwritten; run again "
                    "to go on from what is there now"
                )
            write_output(path, LABELS, data)
            self._seen[path] = _state(path)

    def _stored(self, name: str) -> str:
        """The image's name in the file: relative to it where both lie in one folder or workspace, so they can move."""
        if self.path is None or not os.path.isabs(name):  # noqa: PTH117  names are text
            return name
        home = self.path.parent
        inside = next((folder for folder in (home, *home.parents) if folder.name == WORKSPACE_DIR), None)
        top = home if inside is None else inside.parent
        if not Path(name).is_relative_to(top):
            return name
        return os.path.relpath(name, home)

    def _read(self, path: Path, known: Container[str]) -> None:
        settings = path.with_name(f"{path.name}.json")
        self._seen = {path: _state(path), settings: _state(settings)}

        def resolved(cell: str) -> str:
            if cell in known:
                return cell
            return os.path.abspath(os.path.join(path.parent, cell))  # noqa: PTH100, PTH118  links stay links

        if self._seen[settings] is not None:
            self._read_settings(settings)
            self.unsure = [resolved(name) for name in self.unsure]
            self.asked = {resolved(name): chosen for name, chosen in self.asked.items()}
        if self._seen[path] is None:
            return
        columns, rows = read_csv(path, ("path", "label"))
        self._columns = columns + [column for column in _COLUMNS if column not in columns]
        lines: dict[str, int] = {}
        for line, fields in rows:
            where = f"{printable(path)}, line {line}"
            if not fields["path"].strip() or "\0" in fields["path"]:
                raise DataError(f"{where}: the path is empty or holds a null byte")
            if not fields["label"].strip():
                raise DataError(f"{where}: the label is empty; to fill in a sheet, give it with --answers")
            name = resolved(fields["path"])
            if name in lines:
                raise DataError(f"{where}: {printable(fields['path'])} was given on line {lines[name]} already")
            lines[name] = line
            try:
                label = checked_class(fields["label"])
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            chosen = _CHOSEN.get(fields.get("chosen", "").strip().lower() or "given")
            if chosen is None:
                raise DataError(
                    f"{where}: chosen is {printable(fields['chosen'])!r}, expected {', '.join(_CHOSEN)}: it decides "
                    "which images tell the expected accuracy"
                )
            others = {column: cell for column, cell in fields.items() if column not in _COLUMNS}
            self.answers[name] = Answer(label, chosen, fields.get("time", "").strip(), others)

    def _read_settings(self, path: Path) -> None:
        name = printable(path)
        try:
            document = read_document(path, advice="move it away and name the --classes again")
        except FileNotFoundError as error:
            raise DataError(f"{name} vanished") from error
        if document.get("kind") != _KIND:
            raise DataError(f"{name} holds something else than the settings of a labels file: choose other --labels")
        version = document.get("format_version")
        if type(version) is not int or version > FORMAT_VERSION:
            raise DataError(f"{name} is of format {version!r}, this vitembed reads {FORMAT_VERSION}: upgrade vitembed")
        seed, asked = document.get("seed"), document.get("asked", {})
        if (
            not _all_text(document.get("classes"))
            or not _all_text(document.get("unsure", []))
            or not isinstance(asked, dict)
            or not all(isinstance(chosen, str) and chosen in _CHOSEN for chosen in asked.values())
            or not (seed is None or (type(seed) is int and 0 <= seed < 2**63))
        ):
            raise DataError(f"{name} is damaged: move it away and name the --classes again")
        self.classes = checked_classes(document["classes"]) if document["classes"] else []
        self.unsure, self.asked, self.seed = list(document.get("unsure", [])), asked, seed


def _all_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when anybody else writes the file; None when there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def labels_in(answers: Iterable[Answer]) -> list[str]:
    """The labels that occur, sorted."""
    return sorted({answer.label for answer in answers})
