"""How a query becomes one vector: from stored vectors where the images are known, by the encoder where not."""
# ruff: noqa: PTH100
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.update import StreamsVectors
from vitembed.embeddings import unit_rows
from vitembed.errors import DataError, MismatchError, printable
from vitembed.images.source import ImageRef, is_image

Query = str | os.PathLike[str] | np.ndarray


@dataclass(frozen=True)
class QueryVector:
    """What to search for."""

    vector: np.ndarray
    """Unit, float32 ``[d]``."""
    own_paths: list[str]
    """Query images under the names by which the collection may know them: not to be found by themselves."""


def query_vector(
    collection: Collection,
    queries: Sequence[Query],
    encoder_factory: Callable[[], StreamsVectors],
    *,
    exclude: Sequence[Query] = (),
) -> QueryVector:
    """Mean of the queries' unit vectors, less the mean of those of ``exclude``.

    Args:
        collection: Where to search.
        queries: Paths of images, ids of the collection, or vectors ``[d]``.
        encoder_factory: Gives the encoder of the collection; not called when every image is indexed and unchanged.
        exclude: The same, to move away from.

    Raises:
        DataError: If there is no query, one does not exist, or the vectors cancel out.
        BadImage: If a query image cannot be read.
        MismatchError: If the encoder is not the one of the collection.
    """
    if not queries:
        raise DataError("no query image: name at least one")
    everything = [*queries, *exclude]
    vectors, own_paths = list[np.ndarray | None](), list[str]()
    for query in everything:
        if isinstance(query, np.ndarray):
            if query.shape != (collection.dim,):
                raise DataError(
                    f"a query vector has shape {list(query.shape)}, the collection's are [{collection.dim}]"
                )
            vectors.append(query)
            continue
        names = _names(query)
        own_paths.extend(names)
        vectors.append(
            next((found for name in names if (found := collection.vector(name, unchanged=True)) is not None), None)
        )
    missing = [place for place, vector in enumerate(vectors) if vector is None]
    if missing:
        embedded = _embed(collection, [_image(everything[place]) for place in missing], encoder_factory)
        for place, vector in zip(missing, embedded, strict=True):
            vectors[place] = vector
    unit = unit_rows(np.stack([vector for vector in vectors if vector is not None]))
    direction = unit[: len(queries)].mean(axis=0)
    if exclude:
        direction = direction - unit[len(queries) :].mean(axis=0)
    # Rounding leaves something even of equal vectors, and its direction would be noise.
    if np.linalg.norm(direction) < 1e-3:
        raise DataError("the query vectors cancel out: nothing is left to search for")
    return QueryVector(unit_rows(direction[None])[0], own_paths)


def _names(query: str | os.PathLike[str]) -> list[str]:
    text = os.fsdecode(query)
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
    collection: Collection, paths: Sequence[str], encoder_factory: Callable[[], StreamsVectors]
) -> list[np.ndarray]:
    encoder = encoder_factory()
    if encoder.fingerprint != collection.fingerprint:
        raise MismatchError(
            f"the collection is of encoder {collection.fingerprint[:12]}, the query's encoder is "
            f"{encoder.fingerprint[:12]}: run vitembed index --rebuild, or name another --workspace"
        )
    found: dict[int, np.ndarray] = {}
    for batch in encoder.stream([ImageRef(path) for path in paths], batch_size=min(64, len(paths))):
        for _, error in batch.bad:
            raise error
        found.update(zip(batch.indices.tolist(), batch.vectors, strict=True))
    return [found[place] for place in range(len(paths))]
