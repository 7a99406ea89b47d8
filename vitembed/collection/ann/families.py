"""Families of approximate indexes, as data: which one for how many vectors, what it costs, how it is called.

All are inverted files (IVF): vectors lie in lists around centroids, and a query looks at the nearest lists alone. They
can be added to and removed from without new training, memory-map, and are built many times faster than graphs over all
vectors (measured at 10^5 x 384: 8 s against 26 s for HNSW, at a better recall). Names are FAISS's factory strings.

Source: the table in 3.3 of the project's notes on search; Faiss wiki, "Guidelines to choose an index" (lists by count,
30 to 256 training points a list).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitembed.errors import ConfigError

MIN_POINTS_PER_LIST = 39
"""FAISS warns below; centroids of fewer points are noise."""
TRAIN_POINTS_PER_LIST = 64
_GRAPH_BYTES_PER_LIST = 300
"""Links of HNSW32 over the centroids, in both directions, and some air."""
_ID_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Codec:
    """How an index keeps a vector."""

    name: str
    bytes_per_dim: float
    extra_bytes: int
    """Per vector, on top."""
    k_factor: int
    """Candidates fetched for each result, to be scored again by the stored vectors: the coarser the code, the more."""


CODECS = {
    codec.name: codec
    for codec in (
        Codec(name="SQ8", bytes_per_dim=1.0, extra_bytes=0, k_factor=4),
        Codec(name="SQfp16", bytes_per_dim=2.0, extra_bytes=0, k_factor=2),
        Codec(name="RaBitQ", bytes_per_dim=0.125, extra_bytes=8, k_factor=16),
    )
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of index."""

    num_lists: int
    graph: bool
    """Whether the centroids are found by a graph (HNSW32) and not by comparing with all."""
    codec: str

    @property
    def name(self) -> str:
        """FAISS's factory string."""
        return f"IVF{self.num_lists}{'_HNSW32' if self.graph else ''},{self.codec}"

    @property
    def k_factor(self) -> int:
        """Candidates fetched for each result."""
        return CODECS[self.codec].k_factor

    @property
    def min_vectors(self) -> int:
        """The fewest that its centroids can be trained on."""
        return MIN_POINTS_PER_LIST * self.num_lists

    def num_train(self, num_vectors: int) -> int:
        """How many vectors it is trained on."""
        return min(num_vectors, TRAIN_POINTS_PER_LIST * self.num_lists)

    def code_bytes(self, dim: int) -> int:
        """Of one vector, without its id."""
        codec = CODECS[self.codec]
        return int(-(-dim * codec.bytes_per_dim // 1)) + codec.extra_bytes

    def index_bytes(self, num_vectors: int, dim: int) -> int:
        """On disk, and in memory when it is read whole."""
        centroids = self.num_lists * (4 * dim + (_GRAPH_BYTES_PER_LIST if self.graph else 0))
        return num_vectors * (self.code_bytes(dim) + _ID_BYTES) + centroids


# From how many vectors on: lists, graph over them, codecs from the cheapest to the next better.
_BY_COUNT: tuple[tuple[int, int, bool, tuple[str, ...]], ...] = (
    (10_500, 256, False, ("SQ8", "SQfp16")),
    (41_000, 1024, False, ("SQ8", "SQfp16")),
    (300_000, 4096, False, ("SQ8", "SQfp16")),
    (3_000_000, 65_536, True, ("SQ8", "SQfp16")),
    (30_000_000, 262_144, True, ("RaBitQ", "SQ8", "SQfp16")),
    (300_000_000, 1_048_576, True, ("RaBitQ", "SQ8")),
)


def families_for(num_vectors: int) -> list[Family]:
    """What to try, in this order; nothing where there are too few vectors for any."""
    found = list[Family]()
    for least, num_lists, graph, codecs in _BY_COUNT:
        if num_vectors >= least:
            found = [Family(num_lists=num_lists, graph=graph, codec=codec) for codec in codecs]
    return found


def better(family: Family) -> Sequence[Family]:
    """The same lists with each more faithful code."""
    order = sorted(CODECS.values(), key=lambda codec: codec.bytes_per_dim)
    place = order.index(CODECS[family.codec])
    return [replace(family, codec=codec.name) for codec in order[place + 1 :]]


def parse_family(name: str) -> Family:
    """The family of a factory string such as ``IVF4096,SQ8`` or ``IVF65536_HNSW32,RaBitQ``.

    Raises:
        ConfigError: If it is none of those that are read back after being written.
    """
    found = re.fullmatch(rf"IVF([1-9]\d{{0,7}})(_HNSW32)?,({'|'.join(CODECS)})", name)
    if found is None:
        raise ConfigError(
            f"index family is {name!r}, expected auto, exact, or IVF<lists>[_HNSW32],<{'|'.join(CODECS)}>, "
            "such as IVF4096,SQ8"
        )
    return Family(num_lists=int(found[1]), graph=found[2] is not None, codec=found[3])
