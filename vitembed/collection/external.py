"""Vectors from anywhere, put into a catalogue under the names that came with them."""
# ruff: noqa: PTH116, PTH117
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from vitembed.collection.catalog import Catalog
from vitembed.embeddings import Embeddings, refuse_copies, unit_rows
from vitembed.images.source import stat_facts


def unit_vectors(embeddings: Embeddings) -> np.ndarray:
    """The vectors at length 1, float32 ``[n, d]``.

    Raises:
        DataError: If an id occurs twice, or a vector is zero.
    """
    refuse_copies(embeddings.ids)
    return unit_rows(embeddings.vectors)


def take_vectors(catalog: Catalog, names: Sequence[str], vectors: np.ndarray) -> tuple[int, int, int]:
    """Put vectors into a catalogue, in one transaction; the caller holds the writers' lock.

    Args:
        catalog: Where to.
        names: One a vector; an absolute path stands for that file.
        vectors: Unit float32 ``[n, d]``.

    Returns:
        How many were added, changed, and known already.
    """
    added = changed = unchanged = 0
    with catalog.read():
        catalog.check_same()
        known = {row.path: row.id for row in catalog.rows() if row.status == "ok"}
        stored = dict(zip(known, catalog.vectors(list(known.values())), strict=True))
    with catalog.write():
        for name, vector in zip(names, vectors, strict=True):
            old = stored.get(name)
            if old is not None and np.array_equal(old, vector.astype(old.dtype)):
                unchanged += 1
                continue
            changed += old is not None
            added += old is None
            external = not os.path.isabs(name)
            size, mtime_ns = (-1, -1) if external else stat_of(name)
            catalog.insert(name, external=external, size=size, mtime_ns=mtime_ns, vector=vector)
    return added, changed, unchanged


def stat_of(path: str) -> tuple[int, int]:
    """Size and mtime_ns of a file; -1 each where it cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return stat_facts(status)
