"""An index that looks at the nearest lists alone, and its file: a second cache, used only with a measured recall."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitembed.collection.ann.cache_file import CacheFile, CacheKey, read_index, write_index
from vitembed.collection.ann.engine import METRIC, bits, faiss
from vitembed.collection.ann.families import Family, parse_family
from vitembed.errors import ConfigError, DataError

APPROX_FILE = "approx.faiss"
APPROX_MANIFEST_FILE = "approx.json"
FORMAT_VERSION = 1
MAX_RESULTS = 100
"""Recall is measured at 10 and at 100; for more results every vector is compared."""
_SPARE_CANDIDATES = 16


@dataclass(frozen=True, kw_only=True)
class ApproxFacts:
    """What is known of an index; kept in ``approx.json``."""

    state: str
    """Of the catalogue in which the index holds exactly the rows with a vector."""
    count: int
    family: str
    num_probes: int
    recall: float
    """At 10, with ``num_probes``."""
    recall_at_100: float
    min_recall: float
    """That was asked for when it was accepted."""
    score_error: float
    """The largest seen between its scores and the true ones."""
    query_ms: float
    exact_ms: float
    """Estimated for comparing one query with all vectors."""
    target_ms: float
    num_trained: int
    """Vectors in the collection when it was trained; it is trained anew when they have doubled."""
    build_seconds: float


class Approx:
    """Vectors by id in lists. A search never changes it; several threads may search it."""

    def __init__(self, index: Any, facts: ApproxFacts | None, family: Family) -> None:
        self.index = index
        self._facts = facts
        self.family = family

    @property
    def facts(self) -> ApproxFacts:
        """What was measured; only of an index that was accepted."""
        assert self._facts is not None
        return self._facts

    @property
    def state(self) -> str:
        """State of the catalogue in which it holds exactly the rows with a vector."""
        return self.facts.state

    @property
    def num_lists(self) -> int:
        """In how many lists the vectors lie."""
        return self.family.num_lists

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @cached_property
    def ids(self) -> np.ndarray:
        """int64 ``[n]``, rising."""
        lists = self.index.invlists
        sizes = [(number, lists.list_size(number)) for number in range(lists.nlist)]
        parts = [faiss.rev_swig_ptr(lists.get_ids(number), size).copy() for number, size in sizes if size]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    def recall_for(self, k: int) -> float:
        """Measured recall for so many results."""
        return self.facts.recall if k <= 10 else min(self.facts.recall, self.facts.recall_at_100)

    def is_good_for(self, k: int) -> bool:
        """Whether it has been shown to find so many as well as was asked."""
        return k <= MAX_RESULTS and self.recall_for(k) >= self.facts.min_recall

    def fetch(self, k: int) -> int:
        """How many candidates to ask for, to have the ``k`` nearest among them."""
        return min(len(self), k * self.family.k_factor + _SPARE_CANDIDATES)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        without: np.ndarray,
        only: np.ndarray | None = None,
        *,
        num_probes: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows that are probably the nearest, best first by a score that is about right.

        Args:
            queries: float32 ``[q, d]``.
            k: How many; fewer come where the lists that are looked at hold fewer.
            without: Ids to pass over, int64 ``[m]``.
            only: Ids to look at, int64 ``[n]``, rising, in place of ``without``.
            num_probes: Lists to look at; as was measured by default.

        Returns:
            Scores float32 ``[q, k]`` and ids int64 ``[q, k]``; -1 where there is none.
        """
        selector = None
        if only is not None:
            selector = faiss.IDSelectorBitmap(bits(only))
        elif len(without):  # the objects stay referenced until the search is over
            selected = faiss.IDSelectorBatch(without)
            selector = faiss.IDSelectorNot(selected)
        probes = min(num_probes or self.facts.num_probes, self.num_lists)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=probes)
        if self.family.graph:  # which would find no more centroids than it looks at
            graph = faiss.SearchParametersHNSW(efSearch=max(16, 2 * probes))
            parameters.quantizer_params = graph
        scores, ids = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), k, params=parameters)
        return scores, ids


class ApproxCache:
    """The pair ``approx.faiss`` and ``approx.json`` in the folder of a collection."""

    def __init__(self, directory: Path, key: CacheKey) -> None:
        self._key = key
        self._pair = CacheFile(directory / APPROX_FILE, key, FORMAT_VERSION, sealed=True)

    @property
    def manifest(self) -> Path:
        """The manifest, whose replacement tells of a new index."""
        return self._pair.manifest

    def load(self, *, mapped: bool = True) -> Approx:
        """Open the index, memory-mapped or, to be changed, in memory.

        Raises:
            FileNotFoundError: If there is none.
            DataError: If it is damaged, belongs to another collection, or is of a class that is never made here.
        """

        def read(path: Path, num_bytes: int, manifest: dict[str, Any]) -> Approx:
            facts = ApproxFacts(**{name: manifest[name] for name in ApproxFacts.__dataclass_fields__})
            try:
                family = parse_family(facts.family)
            except ConfigError as error:
                raise DataError(str(error)) from error
            return Approx(read_approx(path, num_bytes, facts.count, family, self._key, mapped=mapped), facts, family)

        return self._pair.load(read)

    def write(self, approx: Approx) -> int:
        """Publish an index that was accepted; its size in bytes. One process at a time (the caller holds a lock).

        Raises:
            OSError: If the folder cannot be written.
        """
        return self._pair.write(lambda file: write_index(approx.index, file, APPROX_FILE), asdict(approx.facts))

    def num_bytes(self) -> int:
        """The size of the index in bytes; 0 where there is none."""
        try:
            return self._pair.file.stat().st_size
        except OSError:
            return 0

    def remove(self) -> bool:
        """Take it away. Whether there was one."""
        return self._pair.remove()

    def verify(self) -> None:
        """Compare the whole file with its SHA-256.

        Raises:
            FileNotFoundError: If there is none.
            DataError: If it differs.
        """
        self._pair.verify(lambda path, num_bytes, manifest: None)


def read_approx(
    path: Path, num_bytes: int, num_rows: int, family: Family, key: CacheKey, *, mapped: bool = True
) -> Any:
    """The index in a file, if it is of exactly the family, width, metric and size that its manifest says.

    Raises:
        DataError: If it is anything else.
    """
    index = read_index(path, num_bytes, mapped=mapped)
    # Only the classes that are made here: FAISS would load any of its hundred.
    try:
        expected = faiss.index_factory(key.dim, family.name, METRIC)
        quantizer: Any = faiss.downcast_index(index.quantizer) if type(index) is type(expected) else None
        if type(quantizer) not in ((faiss.IndexHNSWFlat,) if family.graph else (faiss.IndexFlat, faiss.IndexFlatIP)):
            raise DataError(f"holds a {type(index).__name__}, expected {family.name}")
        lists = index.invlists
        types = [getattr(getattr(each, "sq", None), "qtype", None) for each in (index, expected)]
        shape = (index.d, index.ntotal, index.nlist, index.code_size, quantizer.d, quantizer.ntotal, lists.nlist)
        wanted = (key.dim, num_rows, family.num_lists, expected.code_size, key.dim, family.num_lists, family.num_lists)
        if shape != wanted or types[0] != types[1] or lists.code_size != expected.code_size:
            raise DataError("holds another number of vectors, lists or another width")
        if lists.compute_ntotal() != num_rows or not index.is_trained:
            raise DataError("its lists are not complete")
        if index.metric_type != METRIC or quantizer.metric_type != METRIC:
            raise DataError("holds another metric")
    except RuntimeError as error:
        raise DataError("FAISS cannot read it") from error
    return index
