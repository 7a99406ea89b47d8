"""Small collections that nevertheless have an approximate index, and NumPy as their judge."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from vitembed.collection.ann import AnnSettings, keep
from vitembed.collection.ann.bandwidth import Speed
from vitembed.collection.collection import Collection
from vitembed.embeddings import Embeddings

NUM, DIM = 4_000, 24
FAMILY = AnnSettings(family="IVF64,SQ8")


def make_vectors(num=NUM, seed=0):
    """Unit rows around 100 centres."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((100, DIM))[rng.integers(0, 100, num)] + 0.5 * rng.standard_normal((num, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(collection, query, k, keep_path=lambda path: True, held=None):
    """The truth: every stored vector, in NumPy, ties by path."""
    held = collection.embeddings() if held is None else held
    unit = (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
    scores = (held.vectors.astype(np.float64) * unit).sum(axis=1).astype(np.float32)
    order = np.argsort(-scores, kind="stable")  # the vectors are sorted by path
    found = [(held.ids[row], float(scores[row])) for row in order.tolist() if keep_path(held.ids[row])]
    return found[:k]


def recall_of(collection, queries, k=10, **options):
    """Share of the true nearest that a search finds; every score it gives must be the true one."""
    held = collection.embeddings()
    num_found = 0
    for query in queries:
        every = brute_force(collection, query, None, held=held)
        scores = dict(every)
        hits = collection.search(query, k=k, **options)
        assert all(abs(scores[hit.path] - hit.score) < 1e-6 for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        num_found += len({hit.path for hit in hits} & {path for path, _ in every[:k]})
    return num_found / (k * len(queries))


@pytest.fixture(scope="session")
def tools():
    from types import SimpleNamespace

    return SimpleNamespace(
        NUM=NUM, DIM=DIM, FAMILY=FAMILY, make_vectors=make_vectors, brute_force=brute_force, recall_of=recall_of
    )


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """A collection without an index, to be copied."""
    folder = tmp_path_factory.mktemp("stored") / "index"
    with Collection.create(folder, fingerprint="f", dim=DIM) as collection:
        names = [f"{'ab'[row % 2]}/{row:05}" for row in range(NUM)]
        collection.update_from(Embeddings(make_vectors(), names, "f"))
    return folder


@pytest.fixture(scope="session")
def indexed_once(stored, tmp_path_factory):
    """The same with an index, to be copied."""
    folder = tmp_path_factory.mktemp("indexed") / "index"
    shutil.copytree(stored, folder)
    with Collection.open(folder) as collection:
        report = collection.build_ann(FAMILY)
    assert report.action == "built"
    return folder


@pytest.fixture
def plain(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "plain")


@pytest.fixture
def indexed(indexed_once, tmp_path):
    return shutil.copytree(indexed_once, tmp_path / "indexed")


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch):
    """Measuring the machine and 500 queries takes longer than building an index of 4,000 small vectors."""
    monkeypatch.setattr(keep, "NUM_HELD_OUT", 150)
    speed = Speed(bytes_per_second=3e9, flops_per_second=1e11)
    monkeypatch.setattr(keep, "measure_speed", lambda vectors, vector_type: speed)


@pytest.fixture
def slow_machine(monkeypatch, _known_machine):
    """One that scans a megabyte a second, so that 4,000 small vectors are too many."""
    speed = Speed(bytes_per_second=1e6, flops_per_second=1e10)
    monkeypatch.setattr(keep, "measure_speed", lambda vectors, vector_type: speed)
    return speed
