"""Folders that can be copied whole, actions on them, and a judge of the state in which a fault leaves an index."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from vitembed import faults
from vitembed.collection import update
from vitembed.collection.collection import Collection

CREATION = {"fingerprint": "c0105" * 12 + "abcd", "dim": 48}


@pytest.fixture(autouse=True)
def _small_commits(monkeypatch):
    """Several commits in an update of a few images."""
    monkeypatch.setattr(update, "MAX_UNCOMMITTED_IMAGES", 3)
    yield
    faults.hook = None


class Place:
    """A folder with photos and an index."""

    def __init__(self, top: Path, color_grid) -> None:
        self.top = top
        self.photos = top / "photos"
        self.index = top / ".vitembed" / "index"
        self.color_grid = color_grid

    def copy(self, top: Path) -> Place:
        shutil.copytree(self.top, top, symlinks=True)  # times as well
        return Place(top, self.color_grid)

    def bring_up_to_date(self, **options) -> None:
        with Collection.create(self.index, **CREATION, **options) as collection:
            collection.update(self.color_grid.ColorGrid(), [self.photos], batch_size=3)

    def snapshot(self) -> dict[str, bytes]:
        """Vector of each image, by its path inside the folder."""
        with Collection.open(self.index) as collection:
            collection.verify()
            found = collection.embeddings()
        names = [os.path.relpath(path, self.top) if os.path.isabs(path) else path for path in found.ids]
        return dict(zip(names, (row.tobytes() for row in found.vectors), strict=True))

    def check_search(self) -> None:
        """Search against brute force over what the catalogue holds."""
        with Collection.open(self.index) as collection:
            held = collection.embeddings()
            truth = held.vectors.astype(np.float64)
            for query in np.random.default_rng(3).standard_normal((3, 48)).astype(np.float32):
                unit = (query / np.linalg.norm(query)).astype(np.float32)
                scores = (truth * unit.astype(np.float64)).sum(axis=1).astype(np.float32)
                expected = [path for _, path in sorted(zip((-scores).tolist(), held.ids, strict=True))[:6]]
                assert [hit.path for hit in collection.search(query, k=6)] == expected


@pytest.fixture(scope="session")
def fast_folder():
    """In memory where there is such a place: thousands of fsyncs would wait for the disk."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="vitembed-faults-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def old_place(fast_folder, color_grid):
    """14 images, indexed; times long ago, so that any change shows."""
    place = Place(fast_folder / "old", color_grid)
    for seed in range(14):
        path = place.photos / "ab"[seed % 2] / f"{seed:02}.png"
        color_grid.draw(str(path), seed)
        os.utime(path, ns=(10**18 + seed, 10**18 + seed))
    place.bring_up_to_date()
    return place


@pytest.fixture
def copy_of_old(old_place, fast_folder):
    with tempfile.TemporaryDirectory(dir=fast_folder) as folder:
        numbers = iter(range(1_000_000))
        yield lambda: old_place.copy(Path(folder, f"copy{next(numbers)}"))


def add(place):
    for seed in range(100, 105):
        place.color_grid.draw(str(place.photos / "new" / f"{seed}.png"), seed)


def change(place):
    for seed in (1, 2, 3, 4):
        place.color_grid.draw(str(place.photos / "ab"[seed % 2] / f"{seed:02}.png"), 200 + seed)


def delete(place):
    for seed in (5, 6, 7):
        os.remove(place.photos / "ab"[seed % 2] / f"{seed:02}.png")


def move(place):
    os.rename(place.photos / "a", place.photos / "elsewhere")


def break_some(place):
    for seed in (8, 9):
        (place.photos / "ab"[seed % 2] / f"{seed:02}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")


def everything(place):
    for each in (add, change, delete, move, break_some):
        with contextlib.suppress(FileNotFoundError):
            each(place)


CHANGES = {"add": add, "change": change, "delete": delete, "move": move, "everything": everything}


@pytest.fixture
def tools(in_child):
    """The functions above, as test modules cannot import a conftest."""
    from types import SimpleNamespace

    return SimpleNamespace(CHANGES=CHANGES, Place=Place, in_child=in_child, everything=everything, CREATION=CREATION)
