"""Each file of an index cut off and with single bits flipped: found, or without effect, but never a wrong answer."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from vitembed.collection.collection import Collection
from vitembed.errors import CollectionError

FILES = ("catalog.sqlite", "catalog.sqlite-wal", "vectors.faiss", "vectors.json")
EVERY = int(os.environ.get("VITEMBED_FLIP_EVERY", "116"))
"""Distance of the bytes that each part flips; 28 with four parts looks at every seventh, which takes minutes."""
PARTS = 4


@pytest.fixture(scope="module")
def with_log(old_place, fast_folder):
    """An index whose last change is still in the write-ahead log, and the states that it has been in."""
    place = old_place.copy(fast_folder / "damage" / "place")
    states = [place.snapshot()]
    place.color_grid.draw(str(place.photos / "b" / "01.png"), 300)
    os.remove(place.photos / "a" / "02.png")
    # A reader keeps the log from being folded in.
    with (
        Collection.open(place.index) as collection,
        Collection.open(place.index) as reader,
        reader._catalog.read(),
    ):
        reader._catalog.state()
        collection.update(place.color_grid.ColorGrid(), [place.photos])
        shutil.copytree(place.top, place.top.with_name("copy"))
    # Deletions are committed before the first image is embedded.
    states.append({name: vector for name, vector in states[0].items() if name != "photos/a/02.png"})
    states.append(place.snapshot())
    copy = type(place)(place.top.with_name("copy"), place.color_grid)
    assert (copy.index / "catalog.sqlite-wal").stat().st_size > 0
    return copy, states


def answers(index, top):
    """Everything that a collection can be asked, in a form to be compared."""
    with Collection.open(index) as collection:
        held = collection.embeddings()
        names = [os.path.relpath(path, top) for path in held.ids]
        state = dict(zip(names, (row.tobytes() for row in held.vectors), strict=True))
        for path, vector in zip(held.ids, held.vectors, strict=True):
            np.testing.assert_array_equal(collection.vector(path), vector)
        truth = held.vectors.astype(np.float64)
        for query in np.random.default_rng(3).standard_normal((2, 48)).astype(np.float32):
            unit = (query / np.linalg.norm(query)).astype(np.float32)
            scores = (truth * unit.astype(np.float64)).sum(axis=1).astype(np.float32)
            expected = [path for _, path in sorted(zip((-scores).tolist(), held.ids, strict=True))[:5]]
            assert [hit.path for hit in collection.search(query, k=5)] == expected
        return state


def judge(with_log, folder, name, damage):
    """Damage a copy; whether it was found (True), or did not matter."""
    place, states = with_log
    copy = place.copy(folder / "damaged")
    try:
        damage(copy.index / name)
        found = ""
        try:
            assert answers(copy.index, copy.top) in states
        except CollectionError as error:
            found = str(error)
        assert "\n" not in found
        # Whatever it was, the next update ends in the right state or says what to do.
        later = ""
        try:
            copy.bring_up_to_date()
        except CollectionError as error:
            later = str(error)
        assert "\n" not in later
        if "no vitembed collection" in later:  # which is not ours to empty
            return True
        if later:
            assert name == "catalog.sqlite"
            copy.bring_up_to_date(rebuild=True)
        assert answers(copy.index, copy.top) == states[-1], f"after {found or 'no finding'}"
        return bool(found)
    finally:
        shutil.rmtree(copy.top)


def flip(place, bit):
    def damage(file):
        with file.open("r+b") as stream:
            stream.seek(place)
            byte = stream.read(1)[0]
            stream.seek(place)
            stream.write(bytes([byte ^ (1 << bit)]))

    return damage


def cut(length):
    return lambda file: os.truncate(file, length)


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(name, with_log, fast_folder):
    size = (with_log[0].index / name).stat().st_size
    rng = np.random.default_rng(FILES.index(name))
    places = sorted({*rng.integers(0, size, 25).tolist(), *range(0, min(size, 100), 12), size - 1})
    for place in places:
        try:
            judge(with_log, fast_folder, name, flip(place, int(rng.integers(8))))
        except Exception as error:
            raise AssertionError(f"{name}, byte {place} of {size}: {error!r}") from error


@pytest.mark.parametrize("name", FILES)
def test_cut_off(name, with_log, fast_folder):
    size = (with_log[0].index / name).stat().st_size
    for length in sorted({0, 1, 100, 511, 512, 4096, size // 3, size // 2, size - 4096, size - 1} & {*range(size)}):
        try:
            judge(with_log, fast_folder, name, cut(length))
        except Exception as error:
            raise AssertionError(f"{name} cut to {length} of {size}: {error!r}") from error


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, EVERY, EVERY // PARTS))
def test_bytes_from_end_to_end_of_the_catalogue(first, with_log, fast_folder):
    size = (with_log[0].index / "catalog.sqlite").stat().st_size
    rng = np.random.default_rng(first)
    wrong, num_found = [], 0
    for place in range(first, size, EVERY):
        try:
            num_found += judge(with_log, fast_folder, "catalog.sqlite", flip(place, int(rng.integers(8))))
        except Exception as error:
            wrong.append((place, repr(error)[:300]))
    assert not wrong, f"{len(wrong)}: {wrong[:10]}"
    assert num_found > 10  # most of so small a file is unused space
