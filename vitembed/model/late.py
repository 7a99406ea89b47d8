"""An encoder that is read when the first image needs it: to bring an unchanged folder up to date takes no model.

Nothing is embedded on the word of a note: the fingerprint is compared with that of the weights when they are read. What
a note spares is reading them to embed nothing.
"""
# ruff: noqa: PTH100
# Links are kept.

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vitembed
from vitembed.atomic import atomic_path
from vitembed.errors import DamagedFile, MismatchError, printable
from vitembed.seal import read_document, seal_of

if TYPE_CHECKING:
    from vitembed.images.source import ImageRef
    from vitembed.model.encoder import EmbeddedBatch, Encoder


def stated_fingerprint(folder: Path) -> str | None:
    """What a model folder says that its fingerprint is; None where there is no such folder. The weights are not read.

    No torch here: importing it takes longer than looking at 100,000 files.
    """
    try:
        config = read_document(folder / "config.json")
        return str(config["fingerprint"]) if config["format"] == "vitembed-encoder" else None
    except (OSError, DamagedFile, KeyError):
        return None


NOTE_FILE = "model.json"
"""In the folder of a collection: from which files its encoder was read. May be lost at any time."""


def note_source(directory: Path, encoder: Encoder) -> None:
    """Note, beside a collection, of which files its encoder was read, as they are now."""
    document = {
        "version": vitembed.__version__,
        "fingerprint": encoder.fingerprint,
        "speed": str(encoder.speed),
        "name": encoder.name,
        "reference": encoder.reference,
        "files": _stamps(encoder.reference),
    }
    if document == _read_note(directory):
        return
    try:
        with atomic_path(directory / NOTE_FILE) as temp:
            temp.write_text(json.dumps({**document, "crc32": seal_of(document)}, indent=2), encoding="utf-8")
    except OSError:  # a medium that cannot be written: the model is read each time
        return


def noted_fingerprint(directory: Path, model: str, speed: str) -> str | None:
    """Fingerprint of a model as it was noted; None if there is no note of it, or one of its files has changed since.

    Args:
        directory: Of the collection.
        model: A path, or a public name; of a name without a commit the one that was fetched first is used anyway.
        speed: At which it would be read.
    """
    note = _read_note(directory)
    name = os.path.abspath(model) if os.path.lexists(model) else model
    if note is None:
        return None
    reference = str(note["reference"])
    is_named = name == reference or (name == note["name"] and not Path(reference).is_absolute())
    known = (note["version"], note["speed"], note["files"])
    if not is_named or known != (vitembed.__version__, speed, _stamps(reference)):
        return None
    return str(note["fingerprint"])


def _read_note(directory: Path) -> dict[str, Any] | None:
    try:
        document = read_document(directory / NOTE_FILE)
        seal = document.pop("crc32")
    except (OSError, DamagedFile, KeyError):
        return None
    return document if seal == seal_of(document) else None


def _stamps(reference: str) -> dict[str, list[int]]:
    """Size and time of a model's file, or of each file in its folder; nothing of a public name, whose commit tells."""
    path = Path(reference)
    if not path.is_absolute():
        return {}
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = {os.fspath(file): file.stat() for file in files}
    except OSError:
        return {reference: []}
    return {name: [found.st_size, found.st_mtime_ns] for name, found in stats.items()}


class LateEncoder:
    """Stands for the encoder in a folder until there is something to embed.

    Args:
        fingerprint: That the folder states; compared with that of the weights when they are read.
        embed_dim: Width of its vectors.
        read: Reads it.
    """

    def __init__(self, fingerprint: str, embed_dim: int, read: Callable[[], Encoder]) -> None:
        self.fingerprint = fingerprint
        self.embed_dim = embed_dim
        self._read = read
        self._encoder: Encoder | None = None

    @classmethod
    def of(cls, encoder: Encoder) -> LateEncoder:
        """One that is read already."""
        late = cls(encoder.fingerprint, encoder.embed_dim, lambda: encoder)
        late._encoder = encoder
        return late

    @property
    def is_read(self) -> bool:
        """Whether it was needed."""
        return self._encoder is not None

    def encoder(self) -> Encoder:
        """The encoder itself.

        Raises:
            ModelError: If its files are damaged or were changed.
            MismatchError: If another one has taken its place since its fingerprint was read.
        """
        if self._encoder is None:
            found = self._read()
            if found.fingerprint != self.fingerprint:
                raise MismatchError(
                    f"the model in {printable(found.reference)} was replaced just now (fingerprint "
                    f"{found.fingerprint[:12]}, expected {self.fingerprint[:12]}): run the command again"
                )
            self._encoder = found
        return self._encoder

    def stream(
        self, refs: Sequence[ImageRef], *, batch_size: int = 64, num_workers: int | None = None
    ) -> Iterator[EmbeddedBatch]:
        """As ``Encoder.stream``."""
        return self.encoder().stream(refs, batch_size=batch_size, num_workers=num_workers)
