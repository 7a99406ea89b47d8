"""TIFF in all its layouts, written by tifffile: the right pixels, or a bad image with its reason."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest

from vitembed.errors import BadImage
from vitembed.images import tiff as tiff_module
from vitembed.images.decode import DecodeOptions, decode, decode_image
from vitembed.images.source import ImageRef

tifffile = pytest.importorskip("tifffile")

H, W = 24, 40
WHITE = (255, 255, 255)


def shares(channels: int) -> np.ndarray:
    y, x = np.mgrid[0:H, 0:W]
    planes = [x / (W - 1), y / (H - 1), 1 - (x + y) / (H + W - 2)]
    return np.stack(planes[:channels], axis=2)


def samples(share: np.ndarray, dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return share.astype(kind)
    return np.rint(share * np.iinfo(kind).max).astype(kind)


def written(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, metadata=None, **options)
    return buffer.getvalue()


def decoded_or_reason(ref: ImageRef) -> np.ndarray | str:
    try:
        return decode(ref)
    except BadImage as error:
        return error.reason


AXES = {
    "dtype": ("u1", "u2", "u4", "i2", "i4", "f2", "f4", "f8"),
    "photometric": ("minisblack", "miniswhite", "rgb", "separated"),
    "planarconfig": ("contig", "separate"),
    "extra": (None, 1, 2),
    "compression": (None, "zlib", "lzw", "packbits"),
    "byteorder": ("<", ">"),
    "tile": (None, (16, 16)),
    "predictor": (None, True),
    "bigtiff": (False, True),
}
LAYOUTS = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def some_layouts(num: int) -> list[dict[str, object]]:
    """Draw layouts, from the same seed each time, in which each pair of values of the first four axes occurs."""
    rng = np.random.default_rng(0)
    some = [LAYOUTS[i] for i in rng.choice(len(LAYOUTS), num, replace=False)]
    missing = {
        (one, two, *values)
        for one, two in itertools.combinations(list(AXES)[:4], 2)
        for values in itertools.product(AXES[one], AXES[two])
    }
    assert not missing - {
        (one, two, layout[one], layout[two])
        for layout in some
        for one, two in itertools.combinations(list(AXES)[:4], 2)
    }
    return some


def check_layout(put, layout) -> bool:
    """Write and decode one image; False for a layout that cannot be written or read without imagecodecs."""
    options = {key: value for key, value in layout.items() if key not in ("dtype", "extra")}
    grey = layout["photometric"].startswith("minis")
    light = shares(1) if grey else shares(3)
    stored = {
        "minisblack": light, "miniswhite": 1 - light, "rgb": light,
        "separated": np.concatenate([1 - light, np.zeros((H, W, 1))], axis=2),
    }[layout["photometric"]]  # fmt: skip
    if layout["extra"] is not None:
        stored = np.concatenate([stored, np.ones((H, W, 1))], axis=2)
        options["extrasamples"] = [layout["extra"]]
    array = samples(stored, layout["dtype"])
    if array.shape[2] == 1:
        array = array[:, :, 0]
        del options["planarconfig"]
    elif layout["planarconfig"] == "separate":
        array = np.moveaxis(array, 2, 0)
    try:
        data = written(array, **options)
    except (ValueError, KeyError, TypeError, RuntimeError):  # needs a codec that is not installed
        return False
    pixels = decoded_or_reason(put(data))
    if isinstance(pixels, str):
        assert "imagecodecs" in pixels, layout
        return False
    expected = np.repeat(light, 3, axis=2) if grey else light
    assert np.abs(pixels / 255 - expected).max() < 0.012, layout
    return True


def test_some_layouts(put):
    assert sum(check_layout(put, layout) for layout in some_layouts(400)) > 80


@pytest.mark.slow
def test_all_layouts(put):
    assert sum(check_layout(put, layout) for layout in LAYOUTS) > 1000


def lzw_planes(planes: np.ndarray) -> bytes:
    """A TIFF of 16-bit RGB in planes; its LZW has codes of 9 bits alone, as the table is cleared before longer ones."""
    strips = []
    for plane in planes:
        data = plane.astype("<u2").tobytes()
        codes = [code for start in range(0, len(data), 200) for code in (256, *data[start : start + 200])]
        bits = "".join(f"{code:09b}" for code in [*codes, 257])
        strips.append(int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big"))
    starts = [8 + sum(map(len, strips[:i])) for i in range(3)]
    tags = {256: [W], 257: [H], 258: [16] * 3, 259: [5], 262: [2], 273: starts, 277: [3], 278: [H]}
    tags |= {279: [*map(len, strips)], 284: [2]}
    data, entries = b"".join(strips), b""
    for tag, numbers in tags.items():
        value = b"".join(number.to_bytes(4, "little") for number in numbers)
        if len(numbers) > 1:
            value, data = (8 + len(data)).to_bytes(4, "little"), data + value
        entries += tag.to_bytes(2, "little") + b"\4\0" + len(numbers).to_bytes(4, "little") + value
    head = b"II*\0" + (8 + len(data)).to_bytes(4, "little")
    return head + data + len(tags).to_bytes(2, "little") + entries + bytes(4)


@pytest.mark.parametrize("white", [4095, 65535])
def test_packed_planes_need_no_more_packages_where_high_bytes_do(put, white):
    light = shares(3)
    planes = np.rint(np.moveaxis(light, 2, 0) * white).astype(np.uint16)
    ref = put(lzw_planes(planes))
    high = decode(ref, DecodeOptions(depth="full", rules=1))  # as ever
    np.testing.assert_array_equal(high, np.moveaxis(planes, 0, 2) >> 8)
    pixels = decoded_or_reason(ref)
    if isinstance(pixels, str):  # 4 bits are left of 12
        assert (white, "imagecodecs" in pixels) == (4095, True)
    else:
        assert np.abs(pixels / 255 - light).max() < 0.004


@pytest.mark.parametrize("extra", [0, 2])
def test_only_channels_that_are_read_need_be_there(put, extra):
    planes = samples(np.moveaxis(shares(2), 2, 0), "u2")
    options = {"photometric": "minisblack", "planarconfig": "separate", "compression": "zlib", "extrasamples": [extra]}
    buffer = io.BytesIO(whole := written(planes, **options))
    with tifffile.TiffFile(buffer, mode="r+b") as file:
        tags = file.pages[0].tags
        tags[273].overwrite((tags[273].value[0], 0))
        tags[279].overwrite((tags[279].value[0], 0))
    ref = put(buffer.getvalue())
    if extra == 2:  # it is the transparency
        assert decoded_or_reason(ref) == "truncated"
    else:
        np.testing.assert_array_equal(decode(ref), decode(put(whole, "whole")))
        assert "only the first of 2 channels is read" in decode_image(ref).notes


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "u4", "f4"])
def test_numbers_beyond_0_to_1(put, dtype):
    kind = np.dtype(dtype)
    values = np.linspace(-100, 100, H * W) if kind.kind != "u" else np.linspace(0, 3e9, H * W)
    values = values.reshape(H, W).astype(kind)
    for byteorder, compression in itertools.product("<>", (None, "zlib")):
        pixels = decode(put(written(values, photometric="minisblack", byteorder=byteorder, compression=compression)))
        exact = (values.astype(float) - float(values.min())) * 255 / (float(values.max()) - float(values.min()))
        assert np.abs(pixels[:, :, 0] - exact).max() <= 0.51
    flat = np.full((H, W), 7, kind)
    assert (decode(put(written(flat, photometric="minisblack"))) == 7).all() or kind.kind == "f"


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_packed_bits(put, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (H, W))
    bitstring = "".join(
        "".join(f"{value:0{bits}b}" for value in row).ljust(-(-W * bits // 8) * 8, "0") for row in values
    )
    data = int(bitstring, 2).to_bytes(len(bitstring) // 8, "big")
    for photometric in (0, 1):
        tags = [
            (256, W),
            (257, H),
            (258, bits),
            (259, 1),
            (262, photometric),
            (273, 8),
            (277, 1),
            (278, H),
            (279, len(data)),
        ]
        start = 8 + len(data)
        entries = b"".join(
            tag.to_bytes(2, "little") + b"\x04\0" + b"\1\0\0\0" + value.to_bytes(4, "little") for tag, value in tags
        )
        file = b"II*\0" + start.to_bytes(4, "little") + data + len(tags).to_bytes(2, "little") + entries + bytes(4)
        found = decoded_or_reason(put(file))
        if isinstance(found, str):
            assert (photometric, bits) == (0, 12)
            assert "imagecodecs" in found or "damaged" in found
            continue
        pixels = found[:, :, 0]
        share = values / (2**bits - 1)
        assert np.abs(pixels / 255 - (share if photometric else 1 - share)).max() < 0.003


def test_frames_and_stacks(put):
    stack = np.stack([np.full((H, W), value, np.uint16) for value in (1000, 2000, 3000)])
    for options in ({"imagej": True}, {"ome": True}, {"photometric": "minisblack"}):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, stack, **options)
        ref = put(buffer.getvalue(), "stack.ome.tif" if "ome" in options else "stack.tif")
        assert (decode(ref) == round(1000 * 255 / 4095)).all(), options
    pages = io.BytesIO()
    with tifffile.TiffWriter(pages) as file:
        for value in (100, 30_000):
            planes = np.full((3, H, W), value, np.uint16)
            file.write(planes, photometric="rgb", planarconfig="separate")
    ref = put(pages.getvalue())
    assert (decode(ref) == 100).all()
    assert (decode(ImageRef(ref.path, 1)) == round(30_000 * 255 / 65535)).all()
    with pytest.raises(BadImage, match="no frame 2"):
        decode(ImageRef(ref.path, 2))


def test_what_is_not_read_says_why(put, monkeypatch):
    seven = np.zeros((H, W, 7), np.float32)
    decoded = decode_image(put(written(seven, photometric="minisblack", planarconfig="contig")))
    assert decoded.notes == ("only the first of 7 channels is read",)
    volume = written(np.zeros((16, 16, 16), np.float64), photometric="minisblack", volumetric=True, tile=(16, 16, 16))
    with pytest.raises(BadImage, match="TIFF: "):
        decode(put(volume))
    planes = written(samples(np.moveaxis(shares(3), 2, 0), "u2"), photometric="rgb", planarconfig="separate")
    for end in (len(planes) - 500, len(planes) // 2):
        with pytest.raises(BadImage, match="truncated|damaged"):
            decode(put(planes[:end]))
    monkeypatch.setattr(tiff_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadImage, match="needs the package tifffile"):
        decode(put(planes))


def test_misread_layouts_are_right_for_older_models_too(put):
    before = DecodeOptions(depth="full", rules=1)
    light = shares(3)
    planes = written(samples(np.moveaxis(light, 2, 0), "u2"), photometric="rgb", planarconfig="separate")
    assert np.abs(decode(put(planes), before) / 255 - light).max() < 0.003
    negative = written(samples(1 - shares(1)[:, :, 0], "u2"), photometric="miniswhite")
    assert np.abs(decode(put(negative), before) / 255 - shares(1)).max() < 0.003
