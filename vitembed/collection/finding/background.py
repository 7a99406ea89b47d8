"""What scores mean in a collection: how alike two of its images are that have nothing to do with each other.

A cosine of 0.8 may be remarkable with one encoder and ordinary with another. The percentile says which: the share of
pairs of different images, drawn from the collection itself, that are less alike.
"""

from __future__ import annotations

import json
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitembed.atomic import atomic_path
from vitembed.collection.catalog import Catalog
from vitembed.embeddings import unit_rows
from vitembed.errors import DamagedFile
from vitembed.seal import read_document

BACKGROUND_FILE = "background.json"
FORMAT_VERSION = 1
MAX_SAMPLED = 1_000
"""Images drawn; all their pairs are compared, which is half a million."""
NUM_BINS = 4_000
_SEED = 20_240_601

log = logging.getLogger("vitembed")


@dataclass(frozen=True)
class Background:
    """Cosines of pairs of different images, counted in equal bins over -1..1."""

    counts: np.ndarray
    """int64 ``[NUM_BINS]``."""

    @property
    def num_pairs(self) -> int:
        """How many pairs were compared; none in a collection of one image."""
        return int(self.counts.sum())

    def percentile(self, score: float) -> float | None:
        """Per cent of the pairs that are less alike than ``score``, 0 to 100; None where there are no pairs.

        Within a bin (0.0005 wide) pairs are taken to lie evenly.
        """
        if not self.num_pairs:
            return None
        place = float(np.clip((score + 1) / 2, 0, 1)) * NUM_BINS
        whole = min(int(place), NUM_BINS - 1)
        below = self.counts[:whole].sum() + self.counts[whole] * (place - whole)
        return float(100 * below / self.num_pairs)

    def quantile(self, percent: float) -> float:
        """The cosine that ``percent`` of the pairs stay below."""
        reached = np.searchsorted(np.cumsum(self.counts), self.num_pairs * percent / 100)
        return float(2 * min(int(reached) + 1, NUM_BINS) / NUM_BINS - 1)


def background(directory: Path, catalog: Catalog) -> Background:
    """The background of a collection as of now, from its file or counted anew (inside ``catalog.read()``).

    The same images give the same background. The file is a cache: absent, stale or damaged it is made again, and where
    it cannot be written there is none.
    """
    file = directory / BACKGROUND_FILE
    state = catalog.state()
    found = _read(file, catalog.collection_id, state)
    if found is None:
        found = _count(catalog)
        _write(file, catalog.collection_id, state, found)
    return found


def _count(catalog: Catalog) -> Background:
    ids = catalog.vector_ids()
    if len(ids) > MAX_SAMPLED:
        ids = np.sort(np.random.default_rng(_SEED).choice(ids, MAX_SAMPLED, replace=False))
    vectors = unit_rows(catalog.vectors(ids.tolist()))
    # Copies of one file are not different images.
    hashes = catalog.content_hashes(ids.tolist())
    names = np.array([hashes.get(row) or row.to_bytes(8, "big") for row in ids.tolist()], dtype=object)
    first, second = np.triu_indices(len(ids), 1)
    different = names[first] != names[second]
    cosines = (vectors @ vectors.T)[first, second][different.astype(bool)]
    counts, _ = np.histogram(np.clip(cosines, -1, 1), NUM_BINS, (-1, 1))
    return Background(counts.astype(np.int64))


def _read(file: Path, collection_id: str, state: str) -> Background | None:
    try:
        document = read_document(file)
        if (document["format"], document["collection_id"], document["state"]) != (FORMAT_VERSION, collection_id, state):
            return None
        counts = np.zeros(NUM_BINS, np.int64)
        first, given = int(document["first"]), np.array(document["counts"], dtype=np.int64)
        if zlib.crc32(given.astype("<i8").tobytes(), first) != document["crc32"]:
            return None
        counts[first : first + len(given)] = given
        return Background(counts)
    except (OSError, DamagedFile, ValueError, KeyError, TypeError, OverflowError):
        return None


def _write(file: Path, collection_id: str, state: str, found: Background) -> None:
    used = np.flatnonzero(found.counts)
    first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
    given = found.counts[first:last]
    document = {
        "format": FORMAT_VERSION,
        "collection_id": collection_id,
        "state": state,
        "first": first,
        "counts": given.tolist(),
        "crc32": zlib.crc32(given.astype("<i8").tobytes(), first),
    }
    try:
        with atomic_path(file) as temp:
            temp.write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        log.debug("background not written: %s", error)
