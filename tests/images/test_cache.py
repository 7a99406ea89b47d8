"""A cache is the right rows or none: reused, rebuilt, resumed after a kill, never taken when damaged."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitembed.errors import DataError
from vitembed.images import cache as cache_module
from vitembed.images import cache_files
from vitembed.images.cache import ImageCache
from vitembed.images.decode import DecodeOptions
from vitembed.images.source import ImageRef

COUNT = 150


@pytest.fixture
def refs(tmp_path: Path) -> list[ImageRef]:
    """150 images of their own grey (their number), of varying aspect; every tenth is broken."""
    (tmp_path / "set").mkdir()
    made = []
    for i in range(COUNT):
        path = tmp_path / "set" / f"{i:03d}.png"
        if i % 10 == 9:
            path.write_bytes(b"broken")
        else:
            Image.fromarray(np.full((4, 4 + i % 5, 3), i, np.uint8)).save(path)
        made.append(ImageRef(str(path)))
    return made


def check(cache: ImageCache, refs: list[ImageRef]) -> None:
    """Every row is its own image."""
    good = [i for i in range(len(refs)) if i % 10 != 9]
    assert cache.refs == [refs[i] for i in good]
    assert len(cache) == len(good)
    assert [bad.path for bad in cache.bad] == [ref.path for i, ref in enumerate(refs) if i % 10 == 9]
    assert {bad.reason for bad in cache.bad} <= {"not an image"}
    assert cache.images.shape[0] == len(good)
    for row, i in enumerate(good):
        assert (cache.images[row] == i).all(), i
        assert cache.aspect[row] == np.float32((4 + i % 5) / 4)


def folders(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_dir())


def test_rows_are_the_images_in_order(tmp_path, refs):
    cache = ImageCache.build(refs, tmp_path / "cache", size=6)
    check(cache, refs)
    assert cache.images.shape[1:] == (6, 6, 3)
    assert isinstance(cache.images, np.memmap)
    assert cache.aspect.dtype == np.float32
    (folder,) = folders(tmp_path / "cache")
    assert sum((folder / name).stat().st_size for name in ("pixels.u8", "aspect.f32")) == ImageCache.estimate_bytes(
        len(cache), 6
    )


def test_in_memory_is_the_same(tmp_path, refs):
    steps: list[tuple[int, int]] = []
    cache = ImageCache.in_memory(refs, size=6, progress=lambda *step: steps.append(step))
    check(cache, refs)
    assert not isinstance(cache.images, np.memmap)
    assert steps[-1] == (COUNT, COUNT)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_an_image_that_crashes_its_decoder_is_a_bad_one(tmp_path, refs, monkeypatch, beside):
    """Not the end of the run, and of every later run that goes on with the build."""
    monkeypatch.setattr(cache_module, "Squash", beside("odd_loads").Crashing)
    cache = ImageCache.build(refs, tmp_path / "cache", size=4)
    reasons = {bad.path: bad.reason for bad in cache.bad}
    assert len(cache) == 134
    assert reasons.pop(refs[20].path) == "crashed its decoder (SIGSEGV)"
    assert set(reasons.values()) == {"not an image"}
    assert [int(image[0, 0, 0]) for image in cache.images] == [i for i in range(COUNT) if i % 10 != 9 and i != 20]


def test_squash_and_aspect_of_a_turned_photo(tmp_path, draw, photo):
    jpeg = draw.encoded(Image.fromarray(photo), "JPEG", quality=100, subsampling=0)
    (tmp_path / "turned.jpg").write_bytes(draw.jpeg_with_orientation(jpeg, 6))
    cache = ImageCache.in_memory([ImageRef(str(tmp_path / "turned.jpg"))], size=20)
    assert cache.aspect.tolist() == [np.float32(60 / 90)]
    upright = Image.fromarray(np.rot90(photo, -1))
    expected = np.array(upright.resize((20, 20), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(cache.images[0] - expected).mean() < 2


def test_aspect_is_that_of_the_original_when_decoded_scaled(tmp_path):
    Image.new("RGB", (801, 401)).save(tmp_path / "a.jpg")
    cache = ImageCache.in_memory([ImageRef(str(tmp_path / "a.jpg"))], size=20)
    assert cache.aspect.tolist() == [np.float32(801 / 401)]


def test_an_unchanged_set_is_reused_without_decoding(tmp_path, refs, decoded):
    ImageCache.build(refs, tmp_path / "cache", size=6)
    decoded.clear()
    check(ImageCache.build(refs, tmp_path / "cache", size=6), refs)
    assert decoded == []


def touch_a_file(refs: list[ImageRef]) -> None:
    status = os.stat(refs[3].path)
    os.utime(refs[3].path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize("change", ["mtime", "content", "size", "options", "order", "fewer", "gone"])
def test_whatever_changes_the_rows_builds_anew(tmp_path, refs, decoded, change):
    ImageCache.build(refs, tmp_path / "cache", size=6)
    decoded.clear()
    size, options = 6, DecodeOptions()
    if change == "mtime":
        touch_a_file(refs)
    elif change == "content":  # other pixels of the same size, and the time set back
        data, status = bytearray(Path(refs[3].path).read_bytes()), os.stat(refs[3].path)
        data[-1] ^= 1
        Path(refs[3].path).write_bytes(data)
        os.utime(refs[3].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "size":
        size = 5
    elif change == "options":
        options = DecodeOptions(background=(0, 0, 0))
    elif change == "order":
        refs = refs[::-1]
    elif change == "fewer":
        refs = refs[:-1]
    else:
        os.unlink(refs[0].path)
    cache = ImageCache.build(refs, tmp_path / "cache", size=size, options=options)
    assert len(decoded) == len(refs)
    assert cache.images.shape[1] == size
    assert (cache.refs[0] == refs[0]) == (change not in ("order", "gone"))


def test_a_changed_file_shows_its_new_pixels(tmp_path, refs):
    old = ImageCache.build(refs, tmp_path / "cache", size=6)
    Image.fromarray(np.full((4, 4, 3), 250, np.uint8)).save(refs[0].path)
    new = ImageCache.build(refs, tmp_path / "cache", size=6)
    assert (new.images[0] == 250).all()
    assert (old.images[0] == 0).all()  # who has the old one mapped keeps it


@pytest.mark.parametrize("after", [1, 2])
def test_an_interrupted_build_goes_on(tmp_path, refs, decoded, after):
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageCache.build(refs, tmp_path / "cache", size=6, progress=interrupt)
    assert all(folder.suffix == ".partial" for folder in folders(tmp_path / "cache"))
    decoded.clear()
    check(ImageCache.build(refs, tmp_path / "cache", size=6), refs)
    # Threads decode in any order; what counts is that none of the saved rows was decoded again.
    assert sorted(decoded, key=lambda ref: ref.path) == sorted(refs[calls[-1] :], key=lambda ref: ref.path)
    assert [folder.suffix for folder in folders(tmp_path / "cache")] == [""]


def interrupted(tmp_path: Path, refs: list[ImageRef]) -> Path:
    """The folder of a build that stopped after its first batch."""

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageCache.build(refs, tmp_path / "cache", size=6, progress=interrupt)
    (partial,) = folders(tmp_path / "cache")
    return partial


def test_a_killed_build_starts_from_what_was_saved(tmp_path, refs, decoded):
    # Rows that were written after the last save, as by a process that was killed: not counted, so written again.
    partial = interrupted(tmp_path, refs)
    with open(partial / "pixels.u8", "ab") as file:
        file.write(b"\xff" * 1000)
    with open(partial / "aspect.f32", "ab") as file:
        file.write(b"\xff" * 7)
    decoded.clear()
    check(ImageCache.build(refs, tmp_path / "cache", size=6), refs)
    assert 0 < len(decoded) < COUNT


@pytest.mark.parametrize("damage", ["pixels cut", "pixels gone", "aspect cut", "progress cut", "progress gone"])
def test_a_damaged_part_is_not_gone_on_with(tmp_path, refs, decoded, damage):
    partial = interrupted(tmp_path, refs)
    name = {"pixels": "pixels.u8", "aspect": "aspect.f32", "progress": "progress.json"}[damage.split()[0]]
    if damage.endswith("cut"):
        os.truncate(partial / name, (partial / name).stat().st_size - 1)
    else:
        os.unlink(partial / name)
    decoded.clear()
    check(ImageCache.build(refs, tmp_path / "cache", size=6), refs)
    assert len(decoded) == COUNT


def test_files_that_change_while_interrupted_start_anew(tmp_path, refs, decoded):
    interrupted(tmp_path, refs)
    touch_a_file(refs)
    decoded.clear()
    check(ImageCache.build(refs, tmp_path / "cache", size=6), refs)
    assert len(decoded) == COUNT


@pytest.mark.parametrize("name", ["pixels.u8", "aspect.f32", "cache.json"])
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "gone"])
def test_a_damaged_cache_is_built_anew(tmp_path, refs, decoded, name, damage):
    ImageCache.build(refs, tmp_path / "cache", size=6)
    (folder,) = folders(tmp_path / "cache")
    path = folder / name
    if damage == "gone":
        os.unlink(path)
    elif damage == "longer":
        with open(path, "ab") as file:
            file.write(b"xxxx")
    else:
        os.truncate(path, path.stat().st_size // 2 if damage == "cut" else 0)
    decoded.clear()
    check(ImageCache.build(refs, tmp_path / "cache", size=6), refs)
    assert len(decoded) == COUNT


def test_processes_that_ask_at_once_build_once(tmp_path, refs, decoded):
    caches: list[ImageCache] = []
    threads = [
        threading.Thread(target=lambda: caches.append(ImageCache.build(refs, tmp_path / "cache", size=6)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caches) == 4
    for cache in caches:
        check(cache, refs)
    assert len(decoded) == COUNT


def test_only_the_two_last_used_are_kept(tmp_path, refs, decoded):
    for size in (3, 4):
        ImageCache.build(refs, tmp_path / "cache", size=size)
    ImageCache.build(refs, tmp_path / "cache", size=3)  # used last
    ImageCache.build(refs, tmp_path / "cache", size=5)
    assert len(folders(tmp_path / "cache")) == 2
    decoded.clear()
    ImageCache.build(refs, tmp_path / "cache", size=3)
    ImageCache.build(refs, tmp_path / "cache", size=5)
    assert decoded == []


def test_nothing_usable_is_an_empty_cache_with_its_reasons(tmp_path, refs):
    broken = [ref for i, ref in enumerate(refs) if i % 10 == 9]
    for cache in (ImageCache.build(broken, tmp_path / "cache", size=6), ImageCache.in_memory(broken, size=6)):
        assert len(cache) == 0
        assert cache.images.shape == (0, 6, 6, 3)
        assert len(cache.bad) == len(broken)
    assert len(ImageCache.build([], tmp_path / "cache", size=6)) == 0


def test_no_room_is_said_before_the_work(tmp_path, refs, decoded, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(DataError, match=r"needs 0\.0 GB .* 0\.0 GB are free"):
        ImageCache.build(refs, tmp_path / "cache", size=6)
    assert decoded == []
    monkeypatch.setattr(cache_module, "available_bytes", lambda: 10_000)
    with pytest.raises(DataError, match="keep the cache on disk"):
        ImageCache.in_memory(refs, size=6)


def test_a_disk_that_fills_meanwhile_loses_nothing(tmp_path, refs, decoded, monkeypatch):
    real_make = cache_module._decode_all

    def full_disk(*args):
        rows = real_make(*args)
        yield next(rows)
        rows.close()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_decode_all", full_disk)
        with pytest.raises(DataError, match="disk is full"):
            ImageCache.build(refs, tmp_path / "cache", size=6)
    decoded.clear()
    check(ImageCache.build(refs, tmp_path / "cache", size=6), refs)
    assert 0 < len(decoded) < COUNT


def test_a_folder_that_cannot_be_made(tmp_path, refs):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="image cache in"):
        ImageCache.build(refs, tmp_path / "file" / "cache", size=6)


def test_format_number_is_part_of_the_name(tmp_path, refs, monkeypatch, decoded):
    ImageCache.build(refs, tmp_path / "cache", size=6)
    decoded.clear()
    monkeypatch.setattr(cache_files, "_FORMAT", 2)
    ImageCache.build(refs, tmp_path / "cache", size=6)
    assert len(decoded) == COUNT
