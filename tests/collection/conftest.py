from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

from vitembed.collection.collection import Collection


@pytest.fixture(scope="session")
def color_grid():
    """The module beside this file; tests are not a package."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    try:
        import color_grid as module
    finally:
        sys.path.remove(folder)
    return module


@pytest.fixture
def encoder(color_grid):
    return color_grid.ColorGrid()


@pytest.fixture
def draw(color_grid):
    return color_grid.draw


@pytest.fixture
def photos(tmp_path, draw):
    """A folder of 30 images in two sub-folders."""
    folder = tmp_path / "photos"
    for seed in range(30):
        draw(str(folder / ("a" if seed % 2 else "b") / f"{seed:02}.png"), seed)
    return folder


@pytest.fixture
def make(tmp_path, encoder):
    """Makes or opens the collection of the workspace in ``tmp_path``."""
    opened = []

    def _make(**changes):
        wanted = {"fingerprint": encoder.fingerprint, "dim": encoder.embed_dim, "meta": {"name": "grid"}} | changes
        opened.append(Collection.create(tmp_path / ".vitembed" / "index", **wanted))
        return opened[-1]

    yield _make
    for collection in opened:
        collection.close()


@pytest.fixture
def referee(color_grid):
    """Checks that a collection answers exactly as a loop over the files themselves would."""

    def _stored(path):
        vector = color_grid.embed_file(path).astype(np.float64)
        rounded = (vector / np.linalg.norm(vector)).astype(np.float32).astype(np.float16).astype(np.float64)
        return rounded / np.linalg.norm(rounded)

    def _check(collection, paths, k=7):
        paths = sorted(map(os.fspath, paths))
        assert collection.paths() == paths
        assert len(collection) == len(paths)
        names = {}  # results name each file once, rather by its own path than by a link
        for path in paths:
            names.setdefault((os.stat(path).st_dev, os.stat(path).st_ino), []).append(path)
        paths = sorted(min(same, key=lambda path: (os.path.realpath(path) != path, path)) for same in names.values())
        truth = np.stack([_stored(path) for path in paths]) if paths else np.zeros((0, 48))
        rng = np.random.default_rng(5)
        queries = [rng.standard_normal(48) for _ in range(3)] + list(truth[:3])
        for query in queries:
            unit = (query / np.linalg.norm(query)).astype(np.float32)
            scores = (truth * unit.astype(np.float64)).sum(axis=1).astype(np.float32)
            expected = sorted(zip((-scores).tolist(), paths, strict=True))[:k]
            hits = collection.search(query, k=k)
            assert [hit.path for hit in hits] == [path for _, path in expected]
            np.testing.assert_allclose([hit.score for hit in hits], [-score for score, _ in expected], atol=1e-6)
            assert [hit.rank for hit in hits] == list(range(1, len(expected) + 1))

    return _check


@pytest.fixture
def permissions_bind(tmp_path):
    """Skips where the user may read and write everything anyway, as root mostly does."""
    closed = tmp_path / "closed"
    closed.touch(mode=0)
    if os.access(closed, os.R_OK):
        pytest.skip("permissions do not bind this user")
    closed.unlink()


@pytest.fixture
def in_child():
    """A function that runs another in a copy of this process."""

    def run(function) -> int:
        """Run it in a copy of this process; its exit status, negative for a signal."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 99
            try:
                function()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return run
