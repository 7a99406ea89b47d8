"""Progressive JPEGs with scans left out, against Pillow's decode of the whole file."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from vitembed.errors import BadImage
from vitembed.images import jpeg_segments
from vitembed.images.decode import DecodeOptions, decode, decode_image
from vitembed.images.decode_scans import fewer_scans


def natural(height: int = 480, width: int = 640, *, grey: bool = False) -> Image.Image:
    """Smooth shapes, edges and grain, as in a photo."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / height
    base = np.stack([np.sin(9 * x + 3 * y), np.cos(7 * y - 2 * x * x), np.sin(5 * x * y)], axis=-1) * 80 + 128
    base[((x - 0.6) ** 2 + (y - 0.4) ** 2) < 0.03] = (230, 40, 60)
    image = Image.fromarray(np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8))
    return image.convert("L") if grey else image


def progressive(draw, image: Image.Image | None = None, **options) -> bytes:
    settings = {"quality": 90, "progressive": True} | options
    return draw.encoded(image or natural(), "JPEG", **settings)


def drafted(data: bytes, scale: int) -> np.ndarray:
    """Pillow's own scaled decode."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (image.width // scale, image.height // scale))
        return np.asarray(image)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"image": natural(grey=True)},
        {"keep_rgb": True},
        {"restart_marker_blocks": 7},
        {"quality": 40},
        {"image": natural(101, 333)},
    ],
)
def test_an_eighth_has_the_very_same_pixels(draw, options):
    whole = progressive(draw, **options)
    short = fewer_scans(whole, 8)
    assert short is not None
    assert len(short) < 0.9 * len(whole)
    np.testing.assert_array_equal(drafted(short, 8), drafted(whole, 8))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"image": natural(grey=True)}, {"quality": 75}])
def test_a_quarter_is_as_near_to_the_full_decode_as_pillows(draw, options):
    whole = progressive(draw, **options)
    short = fewer_scans(whole, 4)
    assert short is not None
    assert len(short) < 0.8 * len(whole)
    with Image.open(io.BytesIO(whole)) as image:
        small = (image.width // 8, image.height // 8)  # scaled decode is used at twice the size that is needed
        full = np.asarray(image.resize(small, Image.Resampling.BICUBIC)).astype(float)
    near, nearest = (
        np.abs(np.asarray(Image.fromarray(drafted(data, 4)).resize(small, Image.Resampling.BICUBIC)) - full).mean()
        for data in (short, whole)
    )
    assert near < nearest + 0.06
    assert near < 1


def test_what_would_be_seen_or_gains_nothing_is_decoded_as_it_is(draw):
    whole = progressive(draw)
    assert fewer_scans(whole, 1) is None
    assert fewer_scans(whole, 2) is None
    assert fewer_scans(draw.encoded(natural(), "JPEG", quality=90), 8) is None  # baseline
    assert fewer_scans(progressive(draw, quality=50), 4) is None  # coarse steps
    assert fewer_scans(progressive(draw, keep_rgb=True), 4) is None  # red alone would lose a bit
    assert fewer_scans(progressive(draw, natural().convert("CMYK")), 8) is None
    assert fewer_scans(fewer_scans(whole, 4), 4) is None  # nothing left to leave out


def test_decoding_uses_it_where_its_option_says_so(put, draw):
    data = progressive(draw)
    ref = put(data)
    for target_px, scale in ((30, 8), (60, 4), (120, 2)):
        on, off = (decode(ref, DecodeOptions(fewer_scans=choice), target_px=target_px) for choice in (True, False))
        np.testing.assert_array_equal(off, drafted(data, scale))
        np.testing.assert_array_equal(on, drafted(fewer_scans(data, scale) or data, scale))
        assert (on == off).all() == (scale != 4)
    np.testing.assert_array_equal(decode(ref), np.asarray(Image.open(ref.path)))


@pytest.mark.parametrize("behind", [b"", b"\0" * 100, b"\xff\xd8\xff\xd9"])
def test_exif_and_its_thumbnail_and_what_lies_behind_change_nothing(put, draw, behind):
    data = draw.jpeg_with_orientation(progressive(draw), 6)
    thumbnail = draw.encoded(natural(40, 60), "JPEG")
    segment = b"Thumbnail\0" + thumbnail
    data = data[:2] + b"\xff\xe9" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]
    decoded = decode_image(put(data + behind), target_px=60)
    assert decoded.full_size == (480, 640)
    expected = np.rot90(drafted(fewer_scans(progressive(draw), 4), 4), -1)
    np.testing.assert_array_equal(np.asarray(decoded.image), expected)


def test_a_cut_file_is_never_taken_for_a_whole_one(put, draw):
    data = progressive(draw, natural(240, 320))
    for end in [*range(2, len(data), len(data) // 60), *range(len(data) - 6, len(data))]:
        for target_px in (15, 30):
            # Without its end marker alone it is whole.
            with contextlib.nullcontext() if end >= len(data) - 2 else pytest.raises(BadImage):
                decode(put(data[:end]), target_px=target_px)
        assert fewer_scans(data[:end], 4) is None
        assert fewer_scans(data[:end], 8) is None
    assert fewer_scans(data[: len(data) // 2] + b"\0" * (len(data) // 2), 8) is None  # a hole at the end


def test_damage_in_the_file_gives_what_it_would_give_undone(put, draw):
    data = progressive(draw, natural(240, 320))
    rng = np.random.default_rng(0)
    for place in rng.integers(2, len(data), 60).tolist():
        damaged = put(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])
        outcomes = []
        for choice in (True, False):
            try:
                outcomes.append(decode(damaged, DecodeOptions(fewer_scans=choice), target_px=30).shape)
            except BadImage:
                outcomes.append(None)
        # Without the damaged scan the image is whole, so it may only ever be that more of it is read.
        assert outcomes[0] == outcomes[1] or outcomes[1] is None


def test_hostile_files_cost_no_time(monkeypatch):
    monkeypatch.setattr(jpeg_segments, "MAX_SEGMENTS", 100)
    start = b"\xff\xd8"
    assert fewer_scans(start + b"\xff\xe0\x00\x02" * 101 + b"\xff\xd9", 8) is None
    assert fewer_scans(start + b"\xff" * 10**7, 8) is None
    assert fewer_scans(start + b"\xff\xda\x00\x02" + b"\xff\0" * 10**6, 8) is None
    for data in (
        b"",
        b"\xff",
        start,
        start + b"\xff",
        start + b"\xff\xe0",
        start + b"\xff\xe0\xff\xff",
        start + b"\xff\xd8",
    ):
        assert fewer_scans(data, 8) is None
