"""Batches: order and positions hold whatever is bad, and the pool goes when it should."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from vitembed.errors import BadImage, ConfigError
from vitembed.images.loader import load_batches
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef, find_images


def refs(count: int) -> list[ImageRef]:
    return [ImageRef(str(i)) for i in range(count)]


def numbered(bad: frozenset[int] = frozenset(), *, jitter: bool = False):
    """A loader whose pixels are the position itself."""

    def load(ref: ImageRef) -> np.ndarray:
        number = int(ref.path)
        if jitter:
            time.sleep((number * 7919 % 5) / 1000)
        if number in bad:
            raise BadImage(ref.path, "bad on purpose")
        return np.full((2, 2, 3), number % 251, np.uint8)

    return load


def decode_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vitembed-decode")]


@pytest.mark.parametrize("num_workers", [0, 1, 4, None])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 50])
def test_every_position_comes_once_and_with_its_own_pixels(num_workers, count):
    rng = np.random.default_rng(count)
    bad = frozenset(np.flatnonzero(rng.random(count) < 0.3).tolist())
    batches = list(
        load_batches(refs(count), numbered(bad, jitter=True), batch_size=8, num_workers=num_workers, prefetch=2)
    )
    good_seen = [int(i) for batch in batches for i in batch.indices]
    bad_seen = [(i, error.path) for batch in batches for i, error in batch.bad]
    assert good_seen == [i for i in range(count) if i not in bad]
    assert bad_seen == [(i, str(i)) for i in sorted(bad)]
    for batch in batches:
        assert batch.images.shape == (len(batch.indices), 2, 2, 3)
        assert (batch.images == (batch.indices % 251)[:, None, None, None]).all()
    assert all(len(batch.indices) == 8 for batch in batches[:-1])


def test_decoded_folder_with_broken_files_stays_aligned(solid_folder):
    names = "abcdefghijkl"
    every = [ImageRef(str(solid_folder / f"{name}.png")) for name in names]
    batches = list(load_batches(every, Preprocess(img_size=16).load, batch_size=4, num_workers=3))
    reasons = {i: error.reason for batch in batches for i, error in batch.bad}
    assert reasons[2] == "truncated"
    assert reasons[5] == "zero bytes"
    assert reasons[8] == "not an image"
    assert reasons[11].startswith("too large: 200000 x 200000 px")
    assert sorted(reasons) == [2, 5, 8, 11]
    for batch in batches:
        for position, pixels in zip(batch.indices, batch.images, strict=True):
            assert (pixels == 10 * (position + 1)).all(), names[position]
    assert sum(len(batch.indices) for batch in batches) == 8
    assert len(find_images([solid_folder]).refs) == 10  # the listing reads heads only: two are bad at once


def test_a_run_of_bad_images_is_a_batch_of_none():
    batches = list(load_batches(refs(9), numbered(frozenset(range(6))), batch_size=3, num_workers=2))
    assert [len(batch.indices) for batch in batches] == [0, 0, 3]
    assert [len(batch.bad) for batch in batches] == [3, 3, 0]
    assert batches[0].indices.dtype == np.int64
    assert batches[0].images.dtype == np.uint8


def test_nothing_but_bad_images():
    batches = list(load_batches(refs(4), numbered(frozenset(range(4))), batch_size=8, num_workers=2))
    assert [(len(batch.indices), len(batch.bad)) for batch in batches] == [(0, 4)]


def test_look_ahead_is_bounded():
    started = []

    def load(ref: ImageRef) -> np.ndarray:
        started.append(ref)
        return np.zeros((2, 2, 3), np.uint8)

    batches = load_batches(refs(1000), load, batch_size=5, num_workers=2, prefetch=2)
    next(batches)
    time.sleep(0.05)
    assert len(started) <= 5 + 2 * 5
    batches.close()


def test_closing_stops_the_pool_promptly():
    loads = []

    def slow(ref: ImageRef) -> np.ndarray:
        loads.append(ref)
        time.sleep(0.02)
        return np.zeros((2, 2, 3), np.uint8)

    before = len(decode_threads())
    batches = load_batches(refs(10_000), slow, batch_size=4, num_workers=2, prefetch=50)
    next(batches)
    assert len(decode_threads()) > before
    batches.close()
    assert len(decode_threads()) == before
    assert len(loads) < 30  # 200 were queued


def test_an_exception_that_is_no_bad_image_comes_through_and_ends_the_pool():
    def load(ref: ImageRef) -> np.ndarray:
        if ref.path == "5":
            raise RuntimeError("a bug")
        return np.zeros((2, 2, 3), np.uint8)

    before = len(decode_threads())
    batches = load_batches(refs(100), load, batch_size=2, num_workers=2)
    with pytest.raises(RuntimeError, match="a bug"):
        list(batches)
    assert len(decode_threads()) == before


def test_an_exception_of_the_consumer_ends_the_pool():
    before = len(decode_threads())
    batches = load_batches(refs(100), numbered(), batch_size=2, num_workers=2)
    next(batches)
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt())
    assert len(decode_threads()) == before


def test_decode_seconds_sums_the_workers():
    def load(ref: ImageRef) -> np.ndarray:
        time.sleep(0.01)
        return np.zeros((2, 2, 3), np.uint8)

    batches = list(load_batches(refs(8), load, batch_size=4, num_workers=4))
    assert all(batch.decode_seconds >= 0.04 for batch in batches)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"batch_size": 1, "num_workers": -1}, {"batch_size": 1, "prefetch": 0}]
)
def test_impossible_settings_are_refused_at_once(wrong):
    with pytest.raises(ConfigError, match="must be a whole number in"):
        load_batches(refs(1), numbered(), **wrong)
