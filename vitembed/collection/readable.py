"""What any number of processes may do with a collection at once: ask it."""
# ruff: noqa: PTH100
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitembed.collection.catalog import Catalog, Row
from vitembed.collection.external import stat_of
from vitembed.collection.finding.background import Background, background
from vitembed.collection.finding.facts import ImageFacts, image_facts, matching_ids, num_unknown
from vitembed.collection.finding.where import parse_where
from vitembed.collection.hits import Hits, check_min_score, check_unique
from vitembed.collection.lost import Above
from vitembed.collection.nearest import Nearest, QueryFile
from vitembed.embeddings import Embeddings, unit_rows
from vitembed.errors import DataError
from vitembed.images.source import is_mount


@dataclass(frozen=True)
class Root:
    """A folder that was indexed."""

    path: str
    """Absolute."""
    num_images: int
    """With a vector, at any depth below."""
    is_offline: bool
    """Whether the folder is not there now, or was a drive or share and is not mounted."""


class Readable:
    """The reading half of ``Collection``: each call sees one state of the catalogue, whatever a writer does meanwhile.

    Args:
        directory: Of the collection.
        catalog: Its truth.
    """

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self.directory = directory
        self._catalog = catalog
        self._nearest = Nearest(directory, catalog)

    @property
    def fingerprint(self) -> str:
        """Of the encoder that made the vectors."""
        return self._catalog.fingerprint

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._catalog.dim

    @property
    def meta(self) -> dict[str, Any]:
        """Facts about the encoder."""
        return dict(self._catalog.meta)

    @property
    def vector_type(self) -> str:
        """How vectors are stored: ``float16`` or ``float32``."""
        return self._catalog.vector_type

    @property
    def root(self) -> Path:
        """The folder to which stored paths are relative."""
        return Path(self._catalog.root)

    def __len__(self) -> int:
        with self._catalog.read():
            return self._catalog.num_vectors()

    def search(
        self,
        query: np.ndarray,
        *,
        k: int = 10,
        exclude_paths: Sequence[str] = (),
        where: str | None = None,
        min_score: float | None = None,
        unique: float | None = None,
        exact: bool = False,
        file: QueryFile | None = None,
    ) -> Hits:
        """Images whose vectors are nearest to a query, best first; ``exact`` and ``recall`` of the result tell how.

        Args:
            query: ``[d]``, of any length but zero; or ``[q, d]``: the mean of the unit vectors is searched for.
            k: How many; fewer come back if there are fewer.
            exclude_paths: Absolute paths (or external ids) that are left out, under any name of the same file.
            where: Which images to look at, such as ``"name ~ '*.jpg' and width >= 640"`` (``finding/where.py``).
            min_score: The least cosine of a result.
            unique: Hide images whose cosine with a better result is at least this (near-duplicates).
            exact: Compare every vector, even where ``build_ann`` has made an index.
            file: The image file that the query is the vector of.

        A file that has several names (links) is found once.

        Raises:
            DataError: If ``k`` < 1, the query has another width, is zero or not finite, ``where`` is no filter, or
                ``unique`` or ``min_score`` no cosine.
            CollectionError: If another process has meanwhile rebuilt the collection.
        """
        vectors = np.atleast_2d(np.asarray(query))
        self._check_width(vectors)
        check_unique(unique)
        check_min_score(min_score)
        filter_ = None if where is None else parse_where(where)
        unit = unit_rows(unit_rows(vectors).mean(axis=0, keepdims=True))
        files = None if file is None else [file]
        (hits,) = self._nearest.search(unit, k, exclude_paths, where=filter_, unique=unique, exact=exact, files=files)
        return hits.at_least(min_score).looked_up()

    def search_many(
        self,
        queries: np.ndarray,
        *,
        k: int = 10,
        exclude_paths: Sequence[str] = (),
        where: str | None = None,
        exact: bool = False,
        files: Sequence[QueryFile] | None = None,
    ) -> list[Hits]:
        """The same for each row of ``queries`` ``[q, d]`` on its own; ``files`` has one for each."""
        self._check_width(np.asarray(queries))
        filter_ = None if where is None else parse_where(where)
        found = self._nearest.search(unit_rows(queries), k, exclude_paths, where=filter_, exact=exact, files=files)
        return [hits.looked_up() for hits in found]

    def background(self) -> Background:
        """How alike pairs of different images here are: what tells a high score from an ordinary one."""
        with self._catalog.read():
            return background(self.directory, self._catalog)

    def use_labels(self, labels: Mapping[str, str] | None) -> None:
        """What ``label`` means in filters from now on, in place of the folder that an image is in.

        Args:
            labels: Label by absolute path or external id (``finding.label_file.read_labels``); an image without one
                meets no comparison. None: the folder again.
        """
        encoded = None if labels is None else {os.fsencode(k): os.fsencode(v) for k, v in labels.items()}
        self._catalog.labels = encoded

    def num_unknown(self, where: str) -> int:
        """How many images a filter cannot judge, as what it asks for is not known of them."""
        with self._catalog.read():
            return num_unknown(self._catalog, parse_where(where))

    def matches(self, where: str) -> np.ndarray:
        """Which of the images that have a vector meet a filter, bool ``[n]``, in the order of ``facts``."""
        filter_ = parse_where(where)
        with self._catalog.read():
            return np.isin(self._catalog.vector_ids(), matching_ids(self._catalog, filter_), assume_unique=True)

    def facts(self) -> list[ImageFacts]:
        """Path, size, age and content hash of each image that has a vector, in the order of ``vector_chunks``."""
        with self._catalog.read():
            return list(image_facts(self._catalog))

    def vector_chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All stored vectors in chunks: ids int64 ``[m]``, rising, and unit rows float32 ``[m, d]``."""
        with self._catalog.read():
            for ids, vectors in self._catalog.all_vectors():
                yield ids, unit_rows(vectors)

    def vector(self, path: str | os.PathLike[str], *, unchanged: bool = False) -> np.ndarray | None:
        """The stored unit vector of an image, float32 ``[d]``; None if the collection has none.

        Args:
            path: Of the image, or an external id.
            unchanged: None as well if another file than the one that was embedded is there, by size and time.
        """
        with self._catalog.read():
            row = self._find(path)
            if (
                row is None
                or row.status != "ok"
                or (unchanged and not row.external and stat_of(row.path) not in ((row.size, row.mtime_ns), (-1, -1)))
            ):
                return None
            vector: np.ndarray = unit_rows(self._catalog.vectors([row.id]))[0]
            return vector

    def get(self, path: str | os.PathLike[str]) -> Row | None:
        """What is known of an image, good or bad, or of an external id; None if nothing is."""
        with self._catalog.read():
            return self._find(path)

    def paths(self) -> list[str]:
        """Of all images that have a vector: absolute paths and external ids, sorted."""
        with self._catalog.read():
            return sorted(row.path for row in self._catalog.rows() if row.status == "ok")

    def roots(self) -> list[Root]:
        """Folders that were indexed, and mount points below them, sorted; with how many images are below each."""
        with self._catalog.read():
            known = self._catalog.roots()
            paths = [row.path for row in self._catalog.rows() if row.status == "ok" and not row.external]
        above = Above(known.keys())
        counts = Counter(root for path in paths for root in above(path))
        return [Root(path, counts[path], _is_away(path, known[path])) for path in sorted(known)]

    def bad(self) -> list[tuple[str, str]]:
        """Path and reason of all images that could not be embedded, sorted."""
        with self._catalog.read():
            return sorted((row.path, row.reason or "bad") for row in self._catalog.rows() if row.status == "bad")

    def embeddings(self) -> Embeddings:
        """All stored vectors, as unit float32 rows, sorted by path."""
        with self._catalog.read():
            found = sorted((row.path, row.id) for row in self._catalog.rows() if row.status == "ok")
            vectors = self._catalog.vectors([row for _, row in found])
        meta = {**self.meta, "normalized": True}
        return Embeddings(unit_rows(vectors), [path for path, _ in found], self.fingerprint, None, meta)

    def _find(self, path: str | os.PathLike[str]) -> Row | None:
        """By absolute path, else by external id."""
        text = os.fsdecode(path)
        return self._catalog.find(os.path.abspath(text)) or self._catalog.find(text)

    def _check_width(self, vectors: np.ndarray) -> None:
        if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != self.dim:
            raise DataError(
                f"the collection holds {self.dim}-d vectors, the query has shape {list(vectors.shape)}: "
                "was it embedded with another encoder?"
            )


def _is_away(path: str, was_mount: bool) -> bool:
    return not os.path.exists(path) or (was_mount and not is_mount(path))  # noqa: PTH110
