"""Labelled images through one encoder or several: vectors with labels, of the images that could be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from vitembed.embeddings import Embeddings
from vitembed.errors import BadImage
from vitembed.model.encoder import Encoder
from vitembed.probe.labels import LabelledImages


@dataclass(frozen=True, eq=False)
class LabelledVectors:
    """What ``embed_labelled`` gives."""

    embeddings: list[Embeddings]
    """One for each encoder, all of the same images in the same order, labels inside; ``meta`` also holds
    ``reference``, ``speed`` and ``pool`` to open the encoder by."""
    images: LabelledImages
    """Those that every encoder could read."""
    bad: list[BadImage]
    """All others."""


def embed_labelled(
    images: LabelledImages, encoders: Iterable[Encoder], *, progress: Callable[[int, int], None] | None = None
) -> LabelledVectors:
    """Embed labelled images; an image that one encoder cannot read is left out for all.

    Args:
        images: What ``read_labelled`` found.
        encoders: Taken one at a time, so that only one need be in memory.
        progress: Called with the number of images done and the total, for each encoder anew.

    Raises:
        DataError: If no image can be read.
    """
    found: list[Embeddings] = []
    bad = {problem.path: problem for problem in images.bad}
    for encoder in encoders:
        embeddings = encoder.embed(images.paths, on_bad="skip", progress=progress)
        bad |= {each["path"]: BadImage(each["path"], each["reason"]) for each in embeddings.meta["bad"]}
        meta = {**embeddings.meta, "reference": encoder.reference, "speed": str(encoder.speed)}
        found.append(replace(embeddings, meta=meta))
    kept = [path for path in images.paths if path not in bad]
    readable = images.of(kept)
    aligned = []
    for embeddings in found:
        row_of = {path: row for row, path in enumerate(embeddings.ids)}
        aligned.append(replace(embeddings[[row_of[path] for path in kept]], labels=readable.labels))
    return LabelledVectors(aligned, readable, list(bad.values()))
