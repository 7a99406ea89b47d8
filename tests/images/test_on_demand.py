"""Without a cache the pixels are those of a cache; an image that goes bad later is an error, never another's pixels."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
from PIL import Image

from vitembed.errors import DataError
from vitembed.images import cache_place, on_demand
from vitembed.images.cache import ImageCache
from vitembed.images.source import ImageRef


@pytest.fixture
def refs(tmp_path) -> list[ImageRef]:
    """40 noise images of varying aspect; every tenth is broken."""
    (tmp_path / "set").mkdir()
    made = []
    for i in range(40):
        path = tmp_path / "set" / f"{i:03d}.png"
        if i % 10 == 9:
            path.write_bytes(b"broken")
        else:
            noise = np.random.default_rng(i).integers(0, 256, (10, 8 + i % 5, 3), np.uint8)
            Image.fromarray(noise).save(path)
        made.append(ImageRef(str(path)))
    return made


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_rows_are_those_of_a_cache_in_any_order(tmp_path, refs, num_workers):
    kept = ImageCache.in_memory(refs, size=6)
    anew = ImageCache.on_demand(refs, tmp_path / "cache", size=6, num_workers=num_workers)
    assert anew.refs == kept.refs
    assert [bad.path for bad in anew.bad] == [bad.path for bad in kept.bad]
    assert np.array_equal(anew.aspect, kept.aspect)
    assert len(anew) == len(anew.images) == 36
    assert anew.images.shape == kept.images.shape
    rows = np.random.default_rng(0).permutation(36)[:20]
    for wanted in (rows, slice(3, 9), [5, 5, 1]):
        assert np.array_equal(anew.images[wanted], kept.images[wanted])
    anew.close()
    assert np.array_equal(anew.images[rows], kept.images[rows])  # may be used again
    anew.close()


def test_checked_once_and_pixels_are_not_kept(tmp_path, refs, decoded):
    ImageCache.on_demand(refs, tmp_path / "cache", size=6)
    assert len(decoded) == 40
    ImageCache.on_demand(refs, tmp_path / "cache", size=6)
    assert len(decoded) == 40
    assert [path.stat().st_size for path in (tmp_path / "cache").rglob("pixels.u8")] == [0]
    assert [path.stat().st_size for path in (tmp_path / "cache").rglob("aspect.f32")] == [36 * 4]
    ImageCache.on_demand(refs, tmp_path / "cache", size=7)  # a scaled decode at another size may meet other bytes
    assert len(decoded) == 80


def test_an_image_that_goes_bad_later_is_named_and_not_replaced(tmp_path, refs):
    cache = ImageCache.on_demand(refs, tmp_path / "cache", size=6)
    Image.open(refs[3].path).close()
    with open(refs[3].path, "r+b") as file:
        file.truncate(60)
    with pytest.raises(DataError, match=r"003\.png: truncated; it could be read .*bring the file back.*--fresh"):
        cache.images[np.arange(10)]
    assert cache.images[np.arange(4, 8)].shape == (4, 6, 6, 3)


def test_closing_cancels_what_waits(tmp_path, refs, monkeypatch):
    cache = ImageCache.on_demand(refs, tmp_path / "cache", size=6, num_workers=1)
    begun, go_on, decoded = threading.Event(), threading.Event(), []

    def slow(ref, *args, **kwargs):
        decoded.append(ref)
        begun.set()
        go_on.wait(20)
        return real(ref, *args, **kwargs)

    real = on_demand.decode_image
    monkeypatch.setattr(on_demand, "decode_image", slow)
    raised = []

    def read():
        try:
            cache.images[np.arange(30)]
        except CancelledError as error:
            raised.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(20)
    closer = threading.Thread(target=cache.close)
    closer.start()
    while cache.images._pool is not None:
        time.sleep(0.001)
    time.sleep(0.1)  # what waits is cancelled while the image at hand is still being decoded
    go_on.set()
    reader.join(20)
    closer.join(20)
    assert len(raised) == 1
    assert len(decoded) < 30


GB = 10**9


@pytest.mark.parametrize(
    ("num_images", "memory", "disk", "alone", "place"),
    [
        (1_000, 16 * GB, 100 * GB, True, "ram"),  # 0.3 GB: few
        (1_000, 16 * GB, 100 * GB, False, "disk"),  # several processes share one
        (1_000, GB, 100 * GB, True, "disk"),  # few, but so is the memory
        (100_000, 16 * GB, 100 * GB, True, "disk"),  # 34 GB
        (20_000, 16 * GB, 2 * GB, True, "ram"),  # 6.8 GB: no room on disk
        (20_000, 16 * GB, 2 * GB, False, "off"),
        (100_000, 16 * GB, 2 * GB, True, "off"),
    ],
)
def test_auto_goes_by_what_is_free(tmp_path, monkeypatch, num_images, memory, disk, alone, place):
    monkeypatch.setattr(cache_place, "available_bytes", lambda: memory)
    monkeypatch.setattr(cache_place, "free_bytes", lambda directory: disk)
    found, words = cache_place.choose_place(num_images, 336, tmp_path, alone=alone)
    assert found == place
    assert f"{num_images * (336 * 336 * 3 + 4) / 1e9:.1f} GB" in words
    assert f"{memory / 1e9:.1f} GB of memory" in words


def test_what_is_asked_for_is_taken(tmp_path):
    for asked in ("ram", "disk", "off"):
        assert cache_place.choose_place(10**9, 336, tmp_path, asked=asked)[0] == asked
    assert cache_place.choose_place(10, 336, tmp_path, asked="ram", alone=False)[0] == "disk"


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path):
    assert cache_place.free_bytes(tmp_path / "a" / "b") > 0
