"""New images through a saved probe: a label with its probability for each, or none where the probe is not sure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitembed.errors import BadImage
from vitembed.images.source import ImageRef
from vitembed.model.encoder import Encoder
from vitembed.probe.evaluation.abstain import is_sure
from vitembed.probe.saving import SavedProbe


@dataclass(frozen=True)
class Classified:
    """One image and what the probe takes it for."""

    path: str
    label: str | int | None
    """None where the probe abstains."""
    probability: float
    """Of ``guess``."""
    guess: str | int
    """The most probable class, also where the probe abstains."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"path": self.path, "label": self.label, "probability": self.probability, "guess": self.guess}


@dataclass(frozen=True)
class ClassifiedBatch:
    """Some of the images, as they come."""

    results: list[Classified]
    bad: list[BadImage]
    """Images that could not be read."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Path and words for each image that is good though its file is odd."""


def classify(
    encoder: Encoder,
    refs: Sequence[ImageRef],
    probe: SavedProbe,
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
) -> Iterator[ClassifiedBatch]:
    """Classify images in their order, batch by batch, in bounded memory.

    Args:
        encoder: The one that the probe was made for.
        refs: Images, as ``find_images`` gives them.
        probe: What ``SavedProbe.load`` gave; its threshold decides when it abstains.
        batch_size: Images per pass through the model.
        num_workers: As for ``Encoder.stream``.

    Raises:
        MismatchError: At once, if the encoder is another one than the probe's.
    """
    encoder = encoder.that_made(probe.fingerprint)
    probe.check_fingerprint(encoder.fingerprint, encoder.name)
    return _batches(encoder, refs, probe, batch_size, num_workers)


def _batches(
    encoder: Encoder, refs: Sequence[ImageRef], probe: SavedProbe, batch_size: int, num_workers: int | None
) -> Iterator[ClassifiedBatch]:
    for batch in encoder.stream(refs, batch_size=batch_size, num_workers=num_workers):
        prob = probe.predict_proba(batch.vectors)
        best, confidence = prob.argmax(axis=1).tolist(), prob.max(axis=1)
        sure = is_sure(confidence, probe.threshold)
        results = [
            Classified(
                refs[index].path,
                probe.classes[best[i]] if sure[i] else None,
                float(confidence[i]),
                probe.classes[best[i]],
            )
            for i, index in enumerate(batch.indices.tolist())
        ]
        notes = [(refs[index].path, words) for index, words in batch.notes]
        yield ClassifiedBatch(results, [problem for _, problem in batch.bad], notes)
