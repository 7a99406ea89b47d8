"""Labelled images through one encoder or several: vectors with labels, of the images that could be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from vitembed.embeddings import Embeddings
from vitembed.errors import BadImage
from vitembed.model.encoder import Encoder
from vitembed.probe.labels import LabelledImages
from vitembed.probe.patch_tokens import tokens_of


@dataclass(frozen=True, eq=False)
class LabelledVectors:
    """What ``embed_labelled`` gives."""

    embeddings: list[Embeddings]
    """One for each encoder, all of the same images in the same order, labels inside; ``meta`` also holds
    ``reference``, ``speed`` and ``pool`` to open the encoder by."""
    tokens: list[np.ndarray | None]
    """Of each encoder ``[n, t, d]``, where they were asked for."""
    images: LabelledImages
    """Those that every encoder could read."""
    bad: list[BadImage]
    """All others."""


def embed_labelled(
    images: LabelledImages,
    encoders: Iterable[Encoder],
    *,
    with_tokens: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelledVectors:
    """Embed labelled images; an image that one encoder cannot read is left out for all.

    Args:
        images: What ``read_labelled`` found.
        encoders: Taken one at a time, so that only one need be in memory.
        with_tokens: Give all tokens too; a second pass over the images.
        progress: Called with the number of images done and the total, for each encoder anew.

    Raises:
        DataError: If no image can be read.
    """
    found: list[Embeddings] = []
    tokens: list[np.ndarray | None] = []
    bad = {problem.path: problem for problem in images.bad}
    for encoder in encoders:
        embeddings = encoder.embed(images.paths, on_bad="skip", progress=progress)
        bad |= {each["path"]: BadImage(each["path"], each["reason"]) for each in embeddings.meta["bad"]}
        meta = {**embeddings.meta, "reference": encoder.reference, "speed": str(encoder.speed)}
        found.append(replace(embeddings, meta=meta))
        refs = images.of(embeddings.ids).refs
        tokens.append(tokens_of(encoder, refs, progress=progress) if with_tokens else None)
    kept = [path for path in images.paths if path not in bad]
    readable = images.of(kept)
    aligned = []
    for embeddings in found:
        row_of = {path: row for row, path in enumerate(embeddings.ids)}
        rows = [row_of[path] for path in kept]
        aligned.append(replace(embeddings[rows], labels=readable.labels))
        its_tokens = tokens[len(aligned) - 1]
        if its_tokens is not None and len(rows) < len(its_tokens):
            tokens[len(aligned) - 1] = its_tokens[rows]
    return LabelledVectors(aligned, tokens, readable, list(bad.values()))
