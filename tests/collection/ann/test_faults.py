"""A process that ends, or a disk that is full, at each step of building, extending and removing an index."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vitembed import faults
from vitembed.collection.ann import AnnSettings, keep
from vitembed.collection.collection import Collection
from vitembed.embeddings import Embeddings
from vitembed.errors import CollectionError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")

EXIT = 9
NUM = 1_300
SETTINGS = AnnSettings(family="IVF16,SQ8", min_recall=0.8)


@pytest.fixture(autouse=True)
def _no_hook(monkeypatch):
    monkeypatch.setattr(keep, "MAX_TAIL_ROWS", 20)
    monkeypatch.setattr(keep, "NUM_HELD_OUT", 60)  # enough here, and quick
    yield
    faults.hook = None


@pytest.fixture(scope="module")
def small(tmp_path_factory, tools):
    """A collection with an index, one with some rows more than that, and one without."""
    top = tmp_path_factory.mktemp("small")
    with Collection.create(top / "build", fingerprint="f", dim=tools.DIM) as collection:
        rows = tools.make_vectors(NUM)
        collection.update_from(Embeddings(rows, [f"{row:05}" for row in range(NUM)], "f"))
    shutil.copytree(top / "build", top / "remove")
    with Collection.open(top / "remove") as collection:
        collection.build_ann(SETTINGS)
    shutil.copytree(top / "remove", top / "extend")
    with Collection.open(top / "extend") as collection:
        collection.update_from(Embeddings(tools.make_vectors(60, seed=5), [f"new/{row}" for row in range(60)], "f"))
        collection.delete([f"{row:05}" for row in range(10)])
    return top


def act(name, directory):
    with Collection.open(directory) as collection:
        report = collection.build_ann(AnnSettings(family="exact") if name == "remove" else SETTINGS)
        return report.action, report.exact


def check(directory, tools):
    """What is found has its true score, and is what brute force finds, or says that it is not all."""
    with Collection.open(directory) as collection:
        for query in tools.make_vectors(3, seed=9):
            hits = collection.search(query, k=5)
            expected = tools.brute_force(collection, query, 5)
            if hits.exact:
                assert [hit.path for hit in hits] == [path for path, _ in expected]
            else:
                assert len({hit.path for hit in hits} & {path for path, _ in expected}) >= 3
        return collection.search(tools.make_vectors(1, seed=9)[0]).exact


def telling(steps):
    """Numbers of the steps to stop at: of the many writes in a row the first, one amid them, and the last."""
    return [
        number
        for number, step in enumerate(steps)
        if step not in steps[max(0, number - 1) : number] or step not in steps[number + 1 : number + 2] or number == 40
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build", "extend", "remove"])
def test_the_process_ends_anywhere(name, small, tmp_path, tools, in_child):
    steps = []
    faults.hook = steps.append
    shutil.copytree(small / name, tmp_path / "whole")
    final = act(name, tmp_path / "whole")
    faults.hook = None
    assert final == {"build": ("built", False), "extend": ("extended", False), "remove": ("exact", True)}[name]
    assert len(steps) >= 5, steps
    for number in telling(steps):
        step = steps[number]
        directory = Path(shutil.copytree(small / name, tmp_path / f"at{number}"))
        count = iter(range(len(steps) + 50))

        def end(_, number=number, count=count):
            if next(count) == number:
                os._exit(EXIT)

        def run(directory=directory, end=end):
            faults.hook = end
            act(name, directory)

        assert in_child(run) == EXIT, step
        check(directory, tools)
        _, exact = act(name, directory)
        assert exact == final[1], step
        assert check(directory, tools) == final[1], step
        assert not [left for left in os.listdir(directory) if left.startswith(".tmp.") and "approx" in left], step
        shutil.rmtree(directory)


def test_the_disk_is_full_anywhere(small, tmp_path, tools):
    steps = []
    faults.hook = steps.append
    shutil.copytree(small / "build", tmp_path / "whole")
    act("build", tmp_path / "whole")
    for number in telling(steps)[::2]:
        directory = shutil.copytree(small / "build", tmp_path / f"at{number}")
        count = iter(range(10_000))

        def fail(_, number=number, count=count):
            if next(count) >= number:
                raise OSError(errno.ENOSPC, "No space left on device")

        faults.hook = fail
        with pytest.raises(CollectionError, match=r"^[^\n]*No space left on device[^\n]*$"):
            act("build", directory)
        faults.hook = None
        check(directory, tools)
        assert act("build", directory)[1] is False
        assert check(directory, tools) is False
        assert not [left for left in os.listdir(directory) if left.startswith(".tmp.")]
        shutil.rmtree(directory)


def test_an_interrupted_build_leaves_everything_as_it_was(small, tmp_path, tools, monkeypatch):
    directory = shutil.copytree(small / "extend", tmp_path / "place")
    before = (directory / "approx.faiss").read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(keep, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        act("extend", directory)
    assert (directory / "approx.faiss").read_bytes() == before
    assert check(directory, tools) is False
    np.testing.assert_array_equal(len(os.listdir(directory)), len(os.listdir(small / "extend")))
