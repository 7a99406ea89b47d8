"""How a query becomes one vector: from stored vectors where the images are known, by the encoder where not."""
# ruff: noqa: PTH100
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.external import stat_of
from vitembed.collection.finding.crop import Crop
from vitembed.collection.nearest import QueryFile
from vitembed.collection.plan import hash_content
from vitembed.collection.update import StreamsVectors, version_of
from vitembed.embeddings import unit_rows
from vitembed.errors import DataError, MismatchError, ModelError, counted, printable
from vitembed.images.source import FileEntry, ImageRef, is_image

if TYPE_CHECKING:
    from vitembed.images.preprocess import Preprocess  # loads Pillow: not needed where every query is indexed

Query = str | os.PathLike[str] | np.ndarray
log = logging.getLogger("vitembed")

_IMAGES_AT_ONCE = 16
"""Few enough to be decoded right here: starting workers takes longer."""


@runtime_checkable
class EmbedsArrays(Protocol):
    """An encoder that takes preprocessed pixels: ``Encoder``, or ``OnnxEncoder``, which needs no torch."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that shapes a vector."""

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes its input."""

    def embed_arrays(self, images: np.ndarray) -> np.ndarray:
        """Vectors float32 ``[b, d]`` of uint8 images ``[b, s, s, c]``."""


QueryEncoder = StreamsVectors | EmbedsArrays


@dataclass(frozen=True)
class QueryVector:
    """What to search for."""

    vector: np.ndarray
    """Unit, float32 ``[d]``."""
    own_paths: list[str]
    """Query images under the names by which the collection may know them: not to be found by themselves."""
    content_hash: bytes | None = None
    """Of the file, where the query is one whole image."""


def query_vector(
    collection: Collection,
    queries: Sequence[Query],
    encoder_factory: Callable[[], QueryEncoder],
    *,
    exclude: Sequence[Query] = (),
    weights: Sequence[float] | None = None,
    crop: Crop | None = None,
) -> QueryVector:
    """Weighted mean of the queries' unit vectors, less the mean of those of ``exclude``.

    Args:
        collection: Where to search.
        queries: Paths of images, ids of the collection, or vectors ``[d]``.
        encoder_factory: Gives the encoder of the collection; not called when every image is indexed and unchanged.
        exclude: The same, to move away from.
        weights: One for each query, above 0; all the same by default.
        crop: The part of the one query image that counts.

    Raises:
        DataError: If there is no query, one does not exist, weights or crop do not fit, or the vectors cancel out.
        BadImage: If a query image cannot be read.
        MismatchError: If the encoder is not the one of the collection.
    """
    if not queries:
        raise DataError("no query image: name at least one")
    shares = _shares(weights, len(queries))
    vectors, files = resolve_queries(collection, [*queries, *exclude], encoder_factory, crop=crop)
    unit = unit_rows(vectors)
    direction = shares @ unit[: len(queries)]
    if exclude:
        direction = direction - unit[len(queries) :].mean(axis=0)
    # Rounding leaves something even of equal vectors, and its direction would be noise.
    if np.linalg.norm(direction) < 1e-3:
        raise DataError("the query vectors cancel out: nothing is left to search for")
    content_hash = files[0].content_hash if len(files) == 1 else None
    return QueryVector(unit_rows(direction[None])[0], [name for file in files for name in file.paths], content_hash)


def resolve_queries(
    collection: Collection,
    queries: Sequence[Query],
    encoder_factory: Callable[[], QueryEncoder],
    *,
    crop: Crop | None = None,
) -> tuple[np.ndarray, list[QueryFile]]:
    """The vector of each query, float32 ``[q, d]``, and the file that it is of, with all names that may be known.

    Raises:
        VitembedError: As ``query_vector``.
    """
    vectors, files = list[np.ndarray | None](), list[QueryFile]()
    for query in queries:
        if isinstance(query, np.ndarray):
            if query.shape != (collection.dim,):
                raise DataError(
                    f"a query vector has shape {list(query.shape)}, the collection's are [{collection.dim}]"
                )
            vectors.append(query)
            files.append(QueryFile())
            continue
        names = _names(query)
        vector, content_hash = (None, None) if crop else _known(collection, names)
        vectors.append(vector)
        files.append(QueryFile(names, content_hash))
    if crop is not None and (len(queries) > 1 or isinstance(queries[0], np.ndarray)):
        raise DataError(f"crop {crop.text} is for one query image alone, got {len(queries)} queries")
    missing = [place for place, vector in enumerate(vectors) if vector is None]
    if missing:
        embedded = _embed(collection, [_image(queries[place]) for place in missing], encoder_factory, crop)
        for place, vector in zip(missing, embedded, strict=True):
            vectors[place] = vector
            if crop is None:
                path = os.path.abspath(files[place].paths[-1])
                content_hash = hash_content(FileEntry(path, *stat_of(path)))
                files[place] = files[place]._replace(content_hash=content_hash)
    return np.stack([vector for vector in vectors if vector is not None]), files


def _known(collection: Collection, names: Sequence[str]) -> tuple[np.ndarray | None, bytes | None]:
    """Vector and content hash of an image that is indexed and unchanged."""
    for name in names:
        vector = collection.vector(name, unchanged=True)
        if vector is not None:
            row = collection.get(name)
            return vector, None if row is None else row.content_hash
    return None, None


def _shares(weights: Sequence[float] | None, num_queries: int) -> np.ndarray:
    """Float32 ``[num_queries]`` that sum to 1."""
    given = [1.0] * num_queries if weights is None else list(weights)
    if len(given) != num_queries:
        raise DataError(
            f"got {counted(len(given), 'weight')} for {counted(num_queries, 'query', 'queries')}: expected one "
            "each, in the same order"
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in given):
        raise DataError(f"weights are {', '.join(f'{weight:g}' for weight in given)}: expected numbers above 0")
    relative = np.array(given) / max(given)  # first, as the sum of the largest numbers is none
    shares: np.ndarray = (relative / relative.sum()).astype(np.float32)
    return shares


def _names(query: str | os.PathLike[str]) -> list[str]:
    text = os.fsdecode(query)
    if "\0" in text:
        raise DataError(f"no such image: {printable(text)} holds a NUL, as no path does")
    # As typed (an id that is no path), as a path, and where a link leads.
    return list(dict.fromkeys([os.path.abspath(text), os.path.realpath(text), text]))


def _image(query: Query) -> str:
    """Absolute path of an image that is worth loading an encoder for."""
    assert not isinstance(query, np.ndarray)
    path = os.path.abspath(os.fsdecode(query))
    if not os.path.lexists(path):
        raise DataError(f"no such image, neither on disk nor in the collection: {printable(os.fsdecode(query))}")
    is_image(path, named=True)
    return path


def _embed(
    collection: Collection, paths: Sequence[str], encoder_factory: Callable[[], QueryEncoder], crop: Crop | None
) -> list[np.ndarray]:
    encoder = version_of(encoder_factory(), collection.fingerprint)
    if encoder.fingerprint != collection.fingerprint:
        raise MismatchError(
            f"the collection is of encoder {collection.fingerprint[:12]}, the query's encoder is "
            f"{encoder.fingerprint[:12]}: run vitembed index --rebuild, or name another --workspace"
        )
    if crop is not None and not isinstance(encoder, EmbedsArrays):
        raise ModelError("this encoder takes whole files alone, so it cannot take a crop: cut the image yourself")
    if isinstance(encoder, EmbedsArrays) and (len(paths) <= _IMAGES_AT_ONCE or not isinstance(encoder, StreamsVectors)):
        return _embed_here(encoder, paths, crop)
    assert isinstance(encoder, StreamsVectors)
    found: dict[int, np.ndarray] = {}
    for batch in encoder.stream([ImageRef(path) for path in paths], batch_size=min(64, len(paths))):
        for _, error in batch.bad:
            raise error
        found.update(zip(batch.indices.tolist(), batch.vectors, strict=True))
        _say_odd([(paths[place], words) for place, words in getattr(batch, "notes", [])])
    return [found[place] for place in range(len(paths))]


def _embed_here(encoder: EmbedsArrays, paths: Sequence[str], crop: Crop | None) -> list[np.ndarray]:
    prepare = encoder.preprocess
    vectors, notes = list[np.ndarray](), list[tuple[str, str]]()
    for start in range(0, len(paths), _IMAGES_AT_ONCE):
        part = paths[start : start + _IMAGES_AT_ONCE]
        if crop is not None:
            pixels = [prepare.apply(crop.load(path, prepare.decode_options)) for path in part]
        else:
            loaded = [prepare.load_image(ImageRef(path)) for path in part]
            notes += [(path, words) for path, one in zip(part, loaded, strict=True) for words in one.notes]
            pixels = [one.pixels for one in loaded]
        vectors.extend(encoder.embed_arrays(np.stack(pixels)))
    _say_odd(notes)
    return vectors


def _say_odd(notes: Sequence[tuple[str, str]]) -> None:
    if notes:
        from vitembed.images.loaded import note_lines

        for line in note_lines(notes):
            log.warning("%s", line)
