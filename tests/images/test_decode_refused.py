"""What cannot be decoded: one reason for whatever is wrong with a file, whatever the program around us has set."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from vitembed.errors import BadImage
from vitembed.images import decode as decode_module
from vitembed.images.decode import decode
from vitembed.images.source import ImageRef


def reason(ref: ImageRef, **options) -> str:
    with pytest.raises(BadImage) as caught:
        decode(ref, **options)
    assert caught.value.path == ref.path
    assert "\n" not in caught.value.reason
    assert len(caught.value.reason) < 120
    return caught.value.reason


def test_reasons(put, draw, photo, tmp_path):
    jpeg = draw.encoded(Image.fromarray(photo), "JPEG")
    assert reason(put(b"")) == "zero bytes"
    assert reason(put(b"hello world, I am text")) == "not an image"
    assert reason(put(jpeg[: len(jpeg) // 2])) == "truncated"
    assert reason(put(jpeg[:-40]), target_px=4) == "truncated"
    assert reason(ImageRef(str(tmp_path / "gone.jpg"))) == "no such file"
    assert reason(ImageRef(str(tmp_path))) in ("not a regular file", "permission denied")
    assert reason(ImageRef("nul\0byte")) == "cannot be read"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    assert reason(put(eps)) == "EPS: a PostScript drawing; convert it to PNG"


def test_permission_and_read_errors(put, draw, photo, monkeypatch):
    ref = put(draw.encoded(Image.fromarray(photo), "PNG"))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert reason(ref) == "permission denied"

    def dying_disk(*args, **kwargs):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(ImageFile.ImageFile, "load", dying_disk)
        assert reason(ref) == "cannot be read (input/output error)"


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be deleted there")
def test_a_file_cut_while_it_is_read(put, draw, photo, monkeypatch):
    ref = put(draw.encoded(Image.fromarray(photo), "BMP"))
    real_load = ImageFile.ImageFile.load

    def cut_first(self):
        os.truncate(ref.path, 4000)
        return real_load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", cut_first)
    assert reason(ref) == "truncated"


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("AVIF", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("BMP", {}),
        ("PPM", {}),
        ("ICO", {}),
        ("JPEG2000", {}),
        ("PCX", {}),
        ("SGI", {}),
        ("QOI", {}),
        ("DDS", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_file_cut_anywhere_is_bad_or_whole_never_half(put, draw, photo, format_name, options):
    if format_name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = draw.encoded(Image.fromarray(photo), format_name, **options)
    whole = decode(put(data))
    num_bad = 0
    for length in np.unique(np.linspace(1, len(data) - 1, 40).astype(int)):
        try:
            pixels = decode(put(data[:length]))
        except BadImage:
            num_bad += 1
        else:  # only what follows the pixels was lost
            np.testing.assert_array_equal(pixels, whole)
    assert num_bad > 30


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "format_name", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "JPEG2000", "PCX", "SGI", "DDS"]
)
def test_garbage_gives_bad_image_or_pixels_and_nothing_else(put, draw, photo, format_name):
    data = np.frombuffer(draw.encoded(Image.fromarray(photo), format_name), np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(40):
        hurt = data.copy()
        where = rng.integers(0, min(len(hurt), 400), 6)
        hurt[where] = rng.integers(0, 256, len(where))
        try:
            pixels = decode(put(hurt.tobytes()))
        except BadImage:
            continue
        assert pixels.ndim == 3


def test_bombs_are_refused_before_they_unpack(put, draw, monkeypatch):
    assert reason(put(draw.png_header(300_000, 300_000))).startswith("too large: 300000 x 300000 px, the limit")
    monkeypatch.setattr(decode_module, "pixel_limit", lambda: 100)
    monkeypatch.setattr(decode_module, "MIN_DRAFT_PIXELS", 0)
    assert decode(put(draw.encoded(Image.new("RGB", (10, 10)), "PNG"))).shape == (10, 10, 3)
    assert reason(put(draw.encoded(Image.new("RGB", (10, 11)), "PNG"))).startswith("too large: 10 x 11 px")
    # A scaled JPEG needs only the memory of the small image; a progressive one keeps everything.
    jpeg = Image.new("RGB", (80, 80))
    assert decode(put(draw.encoded(jpeg, "JPEG")), target_px=5).shape == (10, 10, 3)
    assert reason(put(draw.encoded(jpeg, "JPEG", progressive=True)), target_px=5).startswith("too large")


def test_the_limit_has_a_floor_and_grows_with_memory(monkeypatch):
    limit = decode_module.pixel_limit.__wrapped__
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(decode_module, "memory_bytes", lambda: 0)
    assert limit() == decode_module.FLOOR_PIXELS == 89_478_485
    monkeypatch.setattr(decode_module, "memory_bytes", lambda: 96 * 10**9)
    assert limit() == 10**9


# The program around us


def test_pillows_settings_of_the_program_neither_matter_nor_change(put, draw, photo, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    png = draw.encoded(Image.fromarray(photo), "PNG")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(decode(put(png)), photo)
    assert caught == []
    assert reason(put(png[:-60])) == "truncated"
    assert reason(put(draw.encoded(Image.fromarray(photo), "JPEG")[:-200])) == "truncated"
    assert Image.MAX_IMAGE_PIXELS == 10
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_threads_are_strict_together(put, draw, photo, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = draw.encoded(Image.fromarray(photo), "PNG")
    whole, half = put(data, "whole.png"), put(data[: len(data) // 2], "half.png")
    outcomes: list[str] = []

    def work(ref: ImageRef) -> None:
        for _ in range(30):
            try:
                decode(ref)
                outcomes.append("pixels")
            except BadImage as error:
                outcomes.append(error.reason)

    threads = [threading.Thread(target=work, args=(ref,)) for ref in (whole, half, whole, half)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(outcomes)) == ["pixels", "truncated"]
    assert outcomes.count("pixels") == 60
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX names")
@pytest.mark.parametrize("name", [b"caf\xe9.png", b"line\nbreak.png"])
def test_odd_names(draw, photo, tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        Path(os.fsdecode(path)).write_bytes(draw.encoded(Image.fromarray(photo), "PNG"))
    except OSError:
        pytest.skip("this file system refuses the name")
    np.testing.assert_array_equal(decode(ImageRef(os.fsdecode(path))), photo)
    os.truncate(path, 50)
    with pytest.raises(BadImage) as caught:
        decode(ImageRef(os.fsdecode(path)))
    assert str(caught.value).isprintable()
