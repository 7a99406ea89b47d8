"""What the catalogue knows of images besides their vectors: which ones meet a filter, their sizes and ages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vitembed.collection.catalog import Catalog
from vitembed.collection.finding.where import Clause, Columns, Where

_TEXT = "CAST(path AS TEXT)"
_ABSOLUTE = "substr(CAST(path AS TEXT), 2, 1) = ':'" if os.name == "nt" else "substr(CAST(path AS TEXT), 1, 1) = '/'"


def _name_of(path: bytes) -> bytes:
    return _slashes(path).rpartition(b"/")[2]


def _folder_of(path: bytes) -> bytes:
    """The folder that an image is in, without those above it."""
    return _slashes(path).rpartition(b"/")[0].rpartition(b"/")[2]


def _slashes(path: bytes) -> bytes:
    return path.replace(b"\\", b"/") if os.name == "nt" else path


# SQL has no function for the last part of a path; what can be put together from its others takes five times as long.
_FUNCTIONS = {"vitembed_name": _name_of, "vitembed_folder": _folder_of}
_FOLDER = "CAST(vitembed_folder(path) AS TEXT)"
_ABSOLUTE_PATH = f"(CASE WHEN external OR {_ABSOLUTE} THEN {_TEXT} ELSE CAST(? AS TEXT) || {_TEXT} END)"
_COLUMNS = {
    "path": Clause(_TEXT),
    "name": Clause("CAST(vitembed_name(path) AS TEXT)"),
    "folder": Clause(_FOLDER),
    "label": Clause(_FOLDER),  # as for probe: a class is a folder, unless labels were named
    "size": Clause("nullif(size, -1)"),
    "width": Clause("width"),
    "height": Clause("height"),
    "pixels": Clause("(width * height)"),
    "mtime": Clause("nullif(mtime_ns, -1)"),
}


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image that has a vector."""

    id: int
    path: str
    """Absolute, or the name that came with a vector from elsewhere."""
    external: bool
    size: int
    """Bytes; -1: not known."""
    mtime_ns: int
    """-1: not known."""
    content_hash: bytes | None
    width: int | None
    height: int | None

    @property
    def num_pixels(self) -> int:
        """0 where the size is not known."""
        return (self.width or 0) * (self.height or 0)


def matching_ids(catalog: Catalog, where: Where) -> np.ndarray:
    """Ids of the images that meet the filter, int64 ``[n]``, rising; inside ``catalog.read()``.

    What is not known of an image meets no comparison.
    """
    clause = where.clause(_columns(catalog))
    found = catalog.select("id", clause.sql, clause.parameters)
    return np.fromiter((row[0] for row in found), dtype=np.int64)


def num_unknown(catalog: Catalog, where: Where) -> int:
    """How many images the filter cannot judge, as something it asks for was never recorded."""
    columns = _columns(catalog)
    maybe = ["size", "width", "height", "pixels", "mtime", *(["label"] if catalog.labels is not None else [])]
    asked = [columns[name] for name in where.fields if name in maybe]
    if not asked:
        return 0
    condition = " OR ".join(f"{column.sql} IS NULL" for column in asked)
    parameters = [value for column in asked for value in column.parameters]
    # Not by count(*): the rows come by an index of their own.
    return sum(1 for _ in catalog.select("id", f"({condition})", parameters))


def image_facts(catalog: Catalog) -> Iterator[ImageFacts]:
    """Everything known of each image that has a vector, by rising id; inside ``catalog.read()``."""
    columns = "id, path, external, size, mtime_ns, content_hash, width, height"
    for row, path, external, *rest in catalog.select(columns):
        yield ImageFacts(row, catalog.decode_path(path, bool(external)), bool(external), *rest)


def _columns(catalog: Catalog) -> Columns:
    """The fields in SQL over this catalogue, whose own functions are made known to it."""
    for name, function in _FUNCTIONS.items():
        catalog.define(name, function)
    # What lies below the root is stored relative to it.
    absolute = Clause(_ABSOLUTE_PATH, (os.fsencode(catalog.root.rstrip(os.sep) + os.sep),))
    columns = {**_COLUMNS, "absolute": absolute}
    if catalog.labels is not None:
        catalog.define("vitembed_label", catalog.labels.get)
        columns["label"] = Clause(f"CAST(vitembed_label(CAST({absolute.sql} AS BLOB)) AS TEXT)", absolute.parameters)
    return columns
