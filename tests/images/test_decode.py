"""Pixels against NumPy: formats, modes, orientation, scaled decoding."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
from PIL import Image, features

from vitembed.errors import BadImage
from vitembed.images.decode import DecodeOptions, decode, decode_image, decode_pil
from vitembed.images.source import ImageRef

TEAL = (10, 120, 200)


def decode_bytes(put, draw, image: Image.Image, format_name: str, **options) -> np.ndarray:
    return decode(put(draw.encoded(image, format_name, **options)), DecodeOptions(background=TEAL))


def over(rgb: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """The Porter-Duff "over" of straight alpha on an opaque background, in floats."""
    share = alpha[:, :, None] / 255.0
    return rgb * share + np.array(background) * (1 - share)


# Formats


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
        ("JPEG2000", {"irreversible": False}),
        ("TGA", {}),
        ("SGI", {}),
        ("PCX", {}),
        ("QOI", {}),
        ("DDS", {}),
    ],
)
def test_lossless_formats_give_their_very_pixels(put, draw, photo, format_name, options):
    data = draw.encoded(Image.fromarray(photo), format_name, **options)
    pixels = decode(put(data, "image.tga" if format_name == "TGA" else "image.wrong_suffix"))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, photo)


@pytest.mark.parametrize(
    ("format_name", "options", "tolerance"),
    [
        ("JPEG", {"quality": 95}, 2),
        ("JPEG", {"quality": 95, "progressive": True}, 2),
        ("WEBP", {"quality": 95}, 4),
        ("AVIF", {"quality": 95}, 4),
        ("GIF", {}, 12),
    ],
)
def test_lossy_formats_give_about_their_pixels(put, draw, photo, format_name, options, tolerance):
    if format_name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = decode(put(draw.encoded(Image.fromarray(photo), format_name, **options)))
    assert np.abs(pixels.astype(float) - photo).mean() < tolerance


def test_icon_takes_its_largest_picture(put, draw):
    icon = Image.fromarray(np.full((64, 64, 4), (200, 10, 30, 255), np.uint8))
    decoded = decode_image(put(draw.encoded(icon, "ICO", sizes=[(16, 16), (64, 64), (32, 32)])))
    assert decoded.full_size == (64, 64)
    assert (np.array(decoded.image) == (200, 10, 30)).all()


@pytest.mark.parametrize(
    ("format_name", "options"), [("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
def test_frames(put, draw, format_name, options):
    frames = [Image.new("RGB", (8, 6), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    ref = put(draw.encoded(frames[0], format_name, save_all=True, append_images=frames[1:], **options))
    assert (decode(ref) == (255, 0, 0)).all()
    assert (decode(ImageRef(ref.path, 2)) == (0, 0, 255)).all()
    with pytest.raises(BadImage, match="no frame 3"):
        decode(ImageRef(ref.path, 3))


def test_mpo_is_its_first_photo_and_may_decode_scaled(put, draw):
    photos = [Image.new("RGB", (640, 480), colour) for colour in [(250, 0, 0), (0, 250, 0)]]
    ref = put(draw.encoded(photos[0], "MPO", save_all=True, append_images=photos[1:]))
    decoded = decode_image(ref, target_px=60)
    assert decoded.image.size == (160, 120)
    assert decoded.full_size == (640, 480)
    assert np.array(decoded.image)[5, 5, 0] > 240


# Modes


def test_grey_and_bilevel(put, draw, photo):
    grey = photo[:, :, 1]
    pixels = decode_bytes(put, draw, Image.fromarray(grey), "PNG")
    np.testing.assert_array_equal(pixels, np.repeat(grey[:, :, None], 3, axis=2))
    bilevel = grey > 127
    pixels = decode_bytes(put, draw, Image.fromarray(bilevel), "PNG")
    np.testing.assert_array_equal(pixels[:, :, 0], bilevel * 255)


@pytest.mark.parametrize(("format_name", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")])
def test_transparency_shows_the_background(put, draw, photo, format_name, mode):
    alpha = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1))
    colour = photo if mode == "RGBA" else photo[:, :, :1]
    image = Image.fromarray(np.concatenate([colour, alpha[:, :, None]], axis=2))
    assert image.mode == mode
    options = {"lossless": True, "exact": True} if format_name == "WEBP" else {}
    pixels = decode_bytes(put, draw, image, format_name, **options)
    rgb = photo if mode == "RGBA" else np.repeat(photo[:, :, :1], 3, axis=2)
    assert np.abs(pixels - over(rgb, alpha, TEAL)).max() <= 1
    assert (pixels[:, 0] == TEAL).all()


def test_palette_with_and_without_transparency(put, draw):
    index = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    colours = np.array([(255, 0, 0), (0, 200, 0), (0, 0, 90)], np.uint8)
    image = Image.frombytes("P", (4, 3), index.tobytes())
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(decode_bytes(put, draw, image, "PNG"), colours[index])
    np.testing.assert_array_equal(decode_bytes(put, draw, image, "GIF"), colours[index])
    for format_name in ("PNG", "GIF"):
        pixels = decode_bytes(put, draw, image, format_name, transparency=1)
        np.testing.assert_array_equal(pixels, np.where((index == 1)[:, :, None], TEAL, colours[index]))
    half = decode_bytes(put, draw, image, "PNG", transparency=bytes([255, 128, 0]))
    expected = over(colours[index].astype(float), np.array([255, 128, 0])[index], TEAL)
    assert np.abs(half - expected).max() <= 1


def test_a_transparent_colour(put, draw):
    colours = np.array([[(255, 0, 0), (1, 2, 3)], [(9, 9, 9), (255, 0, 0)]], np.uint8)
    pixels = decode_bytes(put, draw, Image.fromarray(colours), "PNG", transparency=(255, 0, 0))
    key = (colours == (255, 0, 0)).all(axis=2, keepdims=True)
    np.testing.assert_array_equal(pixels, np.where(key, TEAL, colours))
    grey = np.array([[0, 7], [255, 8]], np.uint8)
    pixels = decode_bytes(put, draw, Image.fromarray(grey), "PNG", transparency=7)
    np.testing.assert_array_equal(pixels, np.where((grey == 7)[:, :, None], TEAL, grey[:, :, None]))


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBX", "HSV", "YCbCr", "LAB", "CMYK"])
def test_modes_in_memory(photo, mode):
    source = Image.fromarray(photo)
    if mode in ("La", "RGBa"):
        image = source.convert("LA" if mode == "La" else "RGBA").convert(mode)
    else:
        image = source.convert(mode)
    pixels = decode_pil(image).astype(float)
    expected = np.repeat(np.array(source.convert("L"))[:, :, None], 3, axis=2) if mode == "La" else photo
    assert np.abs(pixels - expected).mean() < 3


def test_palette_with_alpha_in_memory(photo):
    image = Image.fromarray(photo).convert("RGBA").convert("PA")
    index, alpha = image.getchannel("P"), np.tile(np.arange(90, dtype=np.uint8) * 2, (60, 1))
    image.putalpha(Image.fromarray(alpha))
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    pixels = decode_pil(image, DecodeOptions(background=TEAL))
    assert np.abs(pixels - over(colours[np.array(index)], alpha, TEAL)).max() <= 1


@pytest.mark.parametrize("format_name", ["JPEG", "TIFF"])
def test_cmyk_files(put, draw, photo, format_name):
    cmyk = Image.fromarray(photo).convert("CMYK")
    options = {"quality": 98} if format_name == "JPEG" else {}
    pixels = decode_bytes(put, draw, cmyk, format_name, **options)
    assert np.abs(pixels.astype(float) - photo).mean() < 3


@pytest.mark.parametrize(("mode", "options"), [("LAB", {}), ("YCbCr", {"compression": "jpeg", "quality": 95})])
def test_lab_and_ycbcr_tiff(put, draw, photo, mode, options):
    pixels = decode_bytes(put, draw, Image.fromarray(photo).convert(mode), "TIFF", **options)
    assert np.abs(pixels.astype(float) - photo).mean() < 3


@pytest.mark.parametrize("name", ["png", "tiff", "tiff_big_endian", "pgm", "jp2"])
def test_16_bit_grey_uses_the_full_range(put, draw, name):
    values = np.arange(0, 65536, 257 // 2, dtype=np.uint16)[:500].reshape(20, 25)
    values[0, :3] = (0, 65535, 32768)
    if name == "pgm":
        ref = put(b"P5 25 20 65535\n" + values.astype(">u2").tobytes())
    elif name == "tiff_big_endian":
        ref = put(draw.encoded(Image.frombytes("I;16B", (25, 20), values.astype(">u2").tobytes()), "TIFF"))
    else:
        options = {"irreversible": False} if name == "jp2" else {}
        format_name = {"png": "PNG", "tiff": "TIFF", "jp2": "JPEG2000"}[name]
        ref = put(draw.encoded(Image.fromarray(values), format_name, **options))
    expected = np.rint(values / 257.0)
    np.testing.assert_array_equal(decode(ref), np.repeat(expected[:, :, None], 3, axis=2))


def test_16_bit_rgb_with_a_transparent_colour(put, draw):
    # Pillow writes no such file; it reads the high bytes, so the colour is compared by them too.
    values = np.array([[(0x1234, 0x5678, 0x9ABC), (0xFFFF, 0, 0)]], np.uint16)
    key = draw.png_chunk(b"tRNS", values[0, 0].astype(">u2").tobytes())
    pixels = decode(put(draw.png_16_bit_rgb(values, before_pixels=key)), DecodeOptions(background=TEAL))
    np.testing.assert_array_equal(pixels, [[TEAL, (255, 0, 0)]])
    pixels = decode(put(draw.png_16_bit_rgb(values)))
    np.testing.assert_array_equal(pixels, [[(0x12, 0x56, 0x9A), (255, 0, 0)]])


def test_16_bit_grey_with_a_transparent_value(put, draw):
    values = np.array([[0, 1000], [2000, 65535]], np.uint16)
    pixels = decode_bytes(put, draw, Image.fromarray(values), "PNG", transparency=1000)
    np.testing.assert_array_equal(pixels[0, 1], TEAL)
    np.testing.assert_array_equal(pixels[1, 1], (255, 255, 255))
    np.testing.assert_array_equal(pixels[0, 0], (0, 0, 0))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 7], [200, 255]], np.int32), [[0, 7], [200, 255]]),
        (np.array([[-100, 0], [100, 300]], np.int32), [[0, 64], [128, 255]]),
        (np.array([[70_000, 70_000]], np.int32), [[0, 0]]),
        (np.array([[0.0, 0.5], [0.25, 1.0]], np.float32), [[0, 128], [64, 255]]),
        (np.array([[0.0, 12.4], [200.6, 255.0]], np.float32), [[0, 12], [201, 255]]),
        (np.array([[-1.0, 0.0], [1.0, 3.0]], np.float32), [[0, 64], [128, 255]]),
        (np.array([[np.nan, 0.0], [np.inf, 100.0]], np.float32), [[0, 0], [100, 100]]),
        (np.array([[np.nan, np.nan]], np.float32), [[0, 0]]),
    ],
)
def test_32_bit_integers_and_floats(put, draw, values, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode_bytes(put, draw, Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(pixels[:, :, 0], expected)


# Orientation

_SIDES = {
    # EXIF 2.3, tag 274: which side of the picture row 0 and column 0 of the stored pixels are.
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores the upright picture under an orientation, by the words of the standard."""
    height, width = upright.shape[:2]
    row_side, column_side = _SIDES[orientation]
    along = {"top": range(height), "bottom": range(height)[::-1], "left": range(width), "right": range(width)[::-1]}
    swapped = row_side in ("left", "right")
    rows = [[upright[c, r] if swapped else upright[r, c] for c in along[column_side]] for r in along[row_side]]
    return np.array(rows)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpeg(put, draw, photo, orientation):
    jpeg = draw.encoded(Image.fromarray(stored(photo, orientation)), "JPEG", quality=100, subsampling=0)
    ref = put(draw.jpeg_with_orientation(jpeg, orientation))
    decoded = decode_image(ref)
    assert decoded.full_size == (90, 60)
    assert np.abs(np.array(decoded.image).astype(float) - photo).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF", "TIFF16", "AVIF"])
def test_exif_orientation_of_other_formats(put, draw, photo, orientation, format_name):
    if format_name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = stored(photo, orientation)
    if format_name == "TIFF16":
        image = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
        data = draw.encoded(image, "TIFF", tiffinfo={274: orientation})
    elif format_name == "TIFF":
        data = draw.encoded(Image.fromarray(pixels), "TIFF", tiffinfo={274: orientation})
    else:
        options = {"PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}[format_name]
        data = draw.encoded(Image.fromarray(pixels), format_name, exif=draw.tiff_exif(orientation), **options)
    decoded = decode_image(put(data))
    expected = np.repeat(photo[:, :, :1], 3, axis=2) if format_name == "TIFF16" else photo
    assert decoded.full_size == (90, 60)
    assert np.abs(np.array(decoded.image).astype(float) - expected).max() <= (8 if format_name == "AVIF" else 0)


def test_orientation_of_an_image_in_memory(photo, draw, tmp_path):
    (tmp_path / "a.png").write_bytes(draw.encoded(Image.fromarray(stored(photo, 6)), "PNG", exif=draw.tiff_exif(6)))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(decode_pil(image), photo)
        assert image.size == (60, 90)  # the caller's image is as it was
        np.testing.assert_array_equal(decode_pil(image), photo)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_impossible_orientations_are_upright(put, draw, photo, orientation):
    jpeg = draw.encoded(Image.fromarray(photo), "JPEG", quality=100, subsampling=0)
    assert decode(put(draw.jpeg_with_orientation(jpeg, orientation))).shape == (60, 90, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_image(put, draw, photo):
    jpeg = draw.encoded(Image.fromarray(photo), "JPEG", quality=100, subsampling=0)
    whole = draw.jpeg_with_orientation(jpeg, 6)
    damaged = whole.replace(b"II*\0\x08\0\0\0\x01\0", b"II*\0\x08\0\0\0\xff\xff")
    assert damaged != whole
    assert decode(put(damaged)).shape[2] == 3


# Scaled decode


@functools.cache
def natural(height: int, width: int) -> np.ndarray:
    """Smooth shapes, edges and grain, as in a photo."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / height
    base = np.stack([np.sin(9 * x + 3 * y), np.cos(7 * y - 2 * x * x), np.sin(5 * x * y)], axis=-1) * 80 + 128
    base[((x - 0.6) ** 2 + (y - 0.4) ** 2) < 0.03] = (230, 40, 60)
    return np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("target_px", "size"),
    [
        (31, (100, 75)),
        (37, (100, 75)),
        (38, (200, 150)),
        (75, (200, 150)),
        (76, (400, 300)),
        (150, (400, 300)),
        (151, (800, 600)),
        (5000, (800, 600)),
    ],
)
def test_draft_keeps_the_shorter_side_at_twice_the_target(put, draw, target_px, size):
    ref = put(draw.encoded(Image.fromarray(natural(600, 800)), "JPEG"))
    decoded = decode_image(ref, target_px=target_px)
    assert decoded.image.size == size
    assert decoded.full_size == (800, 600)
    assert decode_image(ref, DecodeOptions(draft=False), target_px=target_px).image.size == (800, 600)
    assert decode_image(ref).image.size == (800, 600)


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_is_close_to_the_full_decode(put, draw, orientation):
    jpeg = draw.encoded(Image.fromarray(natural(600, 800)), "JPEG", quality=90)
    ref = put(draw.jpeg_with_orientation(jpeg, orientation))
    size = (85, 64) if orientation == 1 else (64, 85)
    fast, full = (
        np.array(
            decode_image(ref, DecodeOptions(draft=draft), target_px=64).image.resize(size, Image.Resampling.BICUBIC)
        )
        for draft in (True, False)
    )
    assert np.abs(fast.astype(float) - full).mean() < 1
