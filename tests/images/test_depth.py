"""Images of more than 8 bits per channel: what is white, against NumPy; and what of it a model keeps."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vitembed.config.running import DEPTHS, DataConfig
from vitembed.errors import BadImage, ConfigError, ModelError
from vitembed.images.decode import DecodeOptions, decode, decode_image, decode_pil
from vitembed.images.deep import UNUSED
from vitembed.images.loaded import GUESSED_DEPTH, note_lines
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef

H, W = 20, 30
BEFORE = DecodeOptions(depth="full", rules=1)


def ramp(top: int, channels: int = 1) -> np.ndarray:
    """uint16 from 0 to ``top``, other in each channel."""
    y, x = np.mgrid[0:H, 0:W]
    planes = [x / (W - 1), y / (H - 1), (x + y) / (H + W - 2)]
    values = np.rint(np.stack(planes[:channels], axis=2) * top).astype(np.uint16)
    return values[:, :, 0] if channels == 1 else values


def png16(draw, values: np.ndarray, chunks: bytes = b"") -> bytes:
    """A 16-bit PNG of grey, grey and alpha, RGB or RGBA."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    head = draw.png_chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunks
        + draw.png_chunk(b"IDAT", zlib.compress(rows))
        + draw.png_chunk(b"IEND", b"")
    )


def files(draw, values: np.ndarray) -> dict[str, bytes]:
    """The same samples in every container that has 16 bits and states no depth."""
    tifffile = pytest.importorskip("tifffile")
    colour = values.ndim == 3
    found = {"png": png16(draw, values)}
    found["pnm"] = b"P%d %d %d 65535\n" % (6 if colour else 5, W, H) + values.astype(">u2").tobytes()
    for name, options in {
        "tiff": {}, "big-endian": {"byteorder": ">"}, "tiles": {"tile": (16, 16)}, "bigtiff": {"bigtiff": True},
        "deflate": {"compression": "zlib"}, "deflate-be": {"compression": "zlib", "byteorder": ">"},
    }.items():  # fmt: skip
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, values, photometric="rgb" if colour else "minisblack", **options)
        found[name] = buffer.getvalue()
    if not colour:
        found["jp2"] = draw.encoded(Image.fromarray(values), "JPEG2000", irreversible=False)
    return found


def scaled(values: np.ndarray, white: float, black: float = 0.0) -> np.ndarray:
    """uint8 [h, w, 3] by the definition."""
    grey = np.clip(np.rint((values.astype(float) - black) * 255 / (white - black)), 0, 255).astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("top", "white"), [(255, 255), (1023, 4095), (4080, 4095), (16383, 16383), (65535, 65535)])
def test_auto_takes_the_least_likely_depth_that_holds_all(put, draw, channels, top, white):
    values = ramp(top, channels)
    for name, data in files(draw, values).items():
        decoded = decode_image(put(data))
        np.testing.assert_array_equal(np.array(decoded.image), scaled(values, white), err_msg=name)
        odd = [words for words in decoded.notes if not words.startswith(GUESSED_DEPTH)]
        assert odd == ([UNUSED] if top * 4 <= white else []), name


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_setting(put, draw, depth):
    values = ramp(4000, 3) + np.uint16(90)
    low, high = np.percentile(values, (0.1, 99.9))
    expected = {
        "auto": scaled(values, 4095),
        "full": scaled(values, 65535),
        "minmax": scaled(values, 4090, 90),
        "percentile": scaled(values, high, low),
    }.get(depth)
    if expected is None:
        expected = scaled(values, 2 ** int(depth) - 1)
    np.testing.assert_array_equal(decode(put(png16(draw, values)), DecodeOptions(depth=depth)), expected)


def test_twelve_bit_greys_are_told_apart(put, draw):
    for channels in (1, 3):
        means = []
        for grey in np.linspace(0, 4080, 8).astype(np.uint16):
            values = np.full((H, W) if channels == 1 else (H, W, 3), grey, np.uint16)
            found = {round(float(decode(put(data)).mean()), 3) for data in files(draw, values).values()}
            assert len(found) == 1
            means += found
        assert np.diff(means).min() > 20
        assert decode(put(png16(draw, values)), BEFORE).mean() < 17  # as it was


GDAL = '<GDALMetadata><Item name="NBITS" domain="IMAGE_STRUCTURE">10</Item></GDALMetadata>'
STATED = 583  # in every range: what the values alone would be taken for is 12 bits


@pytest.mark.parametrize("bits", [9, 10, 14])
def test_png_states_its_bits(put, draw, bits):
    for channels in (1, 2, 3, 4):
        values = ramp(min(STATED, 2**bits - 1), 3)
        values = values[:, :, 0] if channels == 1 else values
        if channels in (2, 4):
            opaque = np.full((H, W, 1), 65535, np.uint16)
            values = np.concatenate([values[:, :, : channels - 1], opaque], axis=2)
        chunk = draw.png_chunk(b"sBIT", bytes([bits] * channels))
        expected = values if channels == 1 else values[:, :, 0] if channels == 2 else values[:, :, :3]
        if expected.max() > 2**bits - 1:
            continue
        pixels = decode(put(png16(draw, values, chunk)))
        np.testing.assert_array_equal(pixels, scaled(expected, 2**bits - 1))
    full = ramp(65535)  # as the specification wants it: filled up to 16 bits
    np.testing.assert_array_equal(decode(put(png16(draw, full, draw.png_chunk(b"sBIT", b"\x0a")))), scaled(full, 65535))


@pytest.mark.parametrize(
    "statement",
    [
        {"extratags": [(341, 3, 1, 1023, True)]},
        {"extratags": [(281, 3, 1, 1023, True)]},
        {"extratags": [(340, 3, 1, 0, True), (341, 3, 1, 1023, True)]},
        {"description": '<OME><Image><Pixels SignificantBits="10" Type="uint16"/></Image></OME>'},
        {"description": "ImageJ=1.54\nmin=0.0\nmax=1023.0\n"},
        {"extratags": [(42112, 2, 0, GDAL, True)]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_states_its_bits(put, statement, channels):
    tifffile = pytest.importorskip("tifffile")
    values = ramp(STATED, channels)
    for compression in (None, "zlib"):
        buffer = io.BytesIO()
        photometric = "rgb" if channels == 3 else "minisblack"
        tifffile.imwrite(buffer, values, photometric=photometric, compression=compression, metadata=None, **statement)
        np.testing.assert_array_equal(decode(put(buffer.getvalue())), scaled(values, 1023))


def test_a_statement_that_the_pixels_contradict_does_not_hold(put):
    tifffile = pytest.importorskip("tifffile")
    for maximum in (1023, 583):  # too small; and the brightest pixel, which is no depth
        buffer = io.BytesIO()
        values = ramp(3000) if maximum == 1023 else ramp(583)
        tifffile.imwrite(buffer, values, photometric="minisblack", extratags=[(281, 3, 1, maximum, True)])
        np.testing.assert_array_equal(decode(put(buffer.getvalue())), scaled(values, 4095))


@pytest.mark.parametrize("maximum", [300, 1023, 3000, 4095])
def test_the_maximum_of_a_pnm_is_white(put, maximum):
    for channels in (1, 3):
        values = ramp(maximum // 2, channels)
        head = b"P%d # made by hand\n%d %d\n%d\n" % (6 if channels == 3 else 5, W, H, maximum)
        pixels = decode(put(head + values.astype(">u2").tobytes()))
        assert np.abs(pixels.astype(int) - scaled(values, maximum)).max() <= 1
        # As Pillow scales it, for what is older.
        before = decode(put(head + values.astype(">u2").tobytes()), BEFORE)
        assert np.abs(before.astype(int) - scaled(values, maximum)).max() <= 1
    text = b"P2\n2 1\n%d\n%d 0\n" % (maximum, maximum)
    assert decode(put(text))[0, :, 0].tolist() == [255, 0]


def test_transparency_of_deep_images(put, draw):
    values = np.concatenate([ramp(4095, 3), np.full((H, W, 1), 65535, np.uint16)], axis=2)
    values[:, :10, 3] = 0
    options = DecodeOptions(background=(10, 120, 200))
    pixels = decode(put(png16(draw, values)), options)
    assert (pixels[:, :10] == (10, 120, 200)).all()
    np.testing.assert_array_equal(pixels[:, 10:], scaled(values[:, 10:, :3], 4095))
    rgb = ramp(4095, 3)
    key = draw.png_chunk(b"tRNS", rgb[3, 7].astype(">u2").tobytes())
    pixels = decode(put(png16(draw, rgb, key)), options)
    assert pixels[3, 7].tolist() == [10, 120, 200]
    assert (pixels == (10, 120, 200)).all(axis=2).sum() == 1  # not all that are alike in their high bytes
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    share = np.linspace(0.1, 1, W)[None, :, None]
    colours = np.rint(ramp(40_000, 3) * share)
    tifffile.imwrite(
        buffer,
        np.concatenate([colours, np.broadcast_to(share * 65535, (H, W, 1))], axis=2).astype(np.uint16),
        photometric="rgb",
        extrasamples=["assocalpha"],
    )
    exact = scaled(ramp(40_000, 3), 65535) * share + np.array((10, 120, 200)) * (1 - share)
    assert np.abs(decode(put(buffer.getvalue()), options) - exact).max() <= 2


def test_orientation_of_deep_colour(put, draw):
    tifffile = pytest.importorskip("tifffile")
    values = ramp(4095, 3)
    stored = np.rot90(values)  # what a rotation by 90 degrees clockwise undoes
    exif = draw.png_chunk(b"eXIf", draw.tiff_exif(6)[6:])
    np.testing.assert_array_equal(decode(put(png16(draw, stored, exif))), scaled(values, 4095))
    for compression in (None, "zlib"):
        for planar in ("contig", "separate"):
            buffer = io.BytesIO()
            array = np.moveaxis(stored, 2, 0) if planar == "separate" else stored
            tifffile.imwrite(
                buffer, array, photometric="rgb", planarconfig=planar, compression=compression,
                extratags=[(274, 3, 1, 6, True)],
            )  # fmt: skip
            decoded = decode_image(put(buffer.getvalue()))
            assert decoded.full_size == (W, H)
            np.testing.assert_array_equal(np.array(decoded.image), scaled(values, 4095))


def test_images_in_memory(draw):
    values = ramp(4000)
    np.testing.assert_array_equal(decode_pil(Image.fromarray(values)), scaled(values, 4095))
    np.testing.assert_array_equal(decode_pil(Image.fromarray(values), BEFORE), scaled(values, 65535))
    eight = np.array([[0, 60]], np.uint8)  # of 8 bits nothing is stretched
    for depth in DEPTHS:
        assert decode_pil(Image.fromarray(eight), DecodeOptions(depth=depth))[0, :, 0].tolist() == [0, 60]


def test_floats_are_stretched_where_that_is_asked_for(put, draw):
    values = np.linspace(0.2, 0.6, H * W).reshape(H, W).astype(np.float32)
    data = draw.encoded(Image.fromarray(values), "TIFF")
    np.testing.assert_array_equal(decode(put(data)), scaled(values, 1))
    assert decode(put(data), DecodeOptions(depth="minmax"))[0, 0, 0] == 0
    assert decode(put(data), DecodeOptions(depth="minmax")).max() == 255


def test_models_of_before_decode_as_before(put, draw):
    before = Preprocess(img_size=16, fewer_scans=False).as_before()
    record = {key: value for key, value in before.to_dict().items() if key not in ("depth", "decode_rules")}
    assert Preprocess.from_dict(record) == before
    assert "depth" not in before.canonical()
    assert "decode_rules" not in before.canonical()
    grey, colour = ramp(4000), ramp(4000, 3)
    np.testing.assert_array_equal(decode(put(png16(draw, grey)), before.decode_options), scaled(grey, 65535))
    np.testing.assert_array_equal(decode(put(png16(draw, colour)), before.decode_options), colour >> 8)
    assert len({replace(Preprocess(), depth=depth).canonical() for depth in DEPTHS}) == len(DEPTHS)


def test_wrong_depths_are_refused():
    with pytest.raises(ConfigError, match=r"data\.depth must be one of auto, full, 8"):
        DataConfig(depth="7")
    with pytest.raises(ModelError, match="depth is '17'"):
        Preprocess.from_dict(Preprocess().to_dict() | {"depth": "17"})
    with pytest.raises(ValueError, match="depth must be one of"):
        DecodeOptions(depth="bits")


def test_depths_that_pillow_does_not_give_are_named(put):
    psd = b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x08\0\0\0\x08\0\x10\0\3" + bytes(12) + b"\0\0" + bytes(384)
    with pytest.raises(BadImage, match="PSD of 16 bits per channel is not read here: save it as PNG or TIFF"):
        decode(put(psd))
    for white, notes in ((4095, (UNUSED,)), (65535, ())):
        samples = np.full((3, 8, 8), white, ">u2")
        sgi = b"\x01\xda\0\2\0\3\0\x08\0\x08\0\3" + bytes(500) + samples.tobytes()
        assert decode_image(put(sgi, "a.sgi")).notes == notes


def test_a_folder_whose_guessed_depths_differ_is_named(tmp_path):
    """200 of 12 bits is taken for 8 bits and comes out as 3200 does: that is said where depths differ."""
    notes = []
    for value in (200, 3200, 4000):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / f"{value}.png")
        decoded = decode_image(ImageRef(str(tmp_path / f"{value}.png")))
        notes += [(f"{value}.png", words) for words in decoded.notes]
    lines = note_lines(notes)
    assert [line[:8] for line in lines] == ["1 image:", "2 images"]
    assert "taken for 8 bits (200.png)" in lines[0]
    assert "taken for 12 bits (3200.png, 4000.png)" in lines[1]
    assert note_lines(notes[1:]) == []
