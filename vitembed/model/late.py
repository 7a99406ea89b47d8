"""An encoder that is read when the first image needs it: to bring an unchanged folder up to date takes no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitembed.errors import MismatchError, printable

if TYPE_CHECKING:
    from vitembed.images.source import ImageRef
    from vitembed.model.encoder import EmbeddedBatch, Encoder


def stated_fingerprint(folder: Path) -> str | None:
    """What a model folder says that its fingerprint is; None where there is no such folder. The weights are not read.

    No torch here: importing it takes longer than looking at 100,000 files.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return str(config["fingerprint"]) if config["format"] == "vitembed-encoder" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
