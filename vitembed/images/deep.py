"""Pixels with more than 8 bits per channel: read in full, and scaled to 8 by what the file or its values say.

Pillow gives 16-bit colour as its high bytes, which leaves nothing of 12-bit values. Decoded a second time with the
bytes of each sample swapped, it gives the low bytes too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ImageFile
from PIL.Image import Image as PILImage

from vitembed.images.loaded import GUESSED_DEPTH

LIKELY_BITS = (8, 12, 14, 16)
"""Depths that values are taken for. Not 10: a dim 12-bit image must not be as bright as a bright one of its folder."""
UNUSED = "less than a quarter of the range in use, nearly black (see data.depth, --depth)"
"""Note of an image that is nearly black as it is read."""
_PERCENTILES = (0.1, 99.9)
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_DESCRIPTION, _TIFF_SAMPLE_FORMAT, _TIFF_GDAL = 258, 262, 270, 339, 42112
_TIFF_MAXIMA = (341, 281)  # SMaxSampleValue, MaxSampleValue
# OME-TIFF; GDAL; ImageJ's display range.
_DESCRIBED_BITS = re.compile(r"SignificantBits=\"(\d+)\"")
_GDAL_BITS = re.compile(r"name=\"NBITS\"[^>]*>\s*(\d+)\s*<")
_IMAGEJ_MAX = re.compile(r"^max=([\d.]+)\s*$", re.MULTILINE)
_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
# libtiff gives samples in the machine's order; Pillow turns those of big-endian files once more.
_NATIVE = {"I;16BS": "I;16NS", "I;32B": "I;32N", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


class Deep(NamedTuple):
    """Samples as they are in the file."""

    values: npt.NDArray[np.generic]
    """``[h, w]`` or ``[h, w, 3]``, of any number type."""
    alpha: npt.NDArray[np.uint8] | None = None
    """0..255, ``[h, w]``; colours are not multiplied by it."""
    bits: int | None = None
    """Depth that the file states."""
    negative: bool = False
    """Whether 0 is white."""


def to_8_bits(deep: Deep, depth: str) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    """Scale samples to 0..255; with notes on what is odd about them.

    Args:
        deep: The samples. Integers beyond 16 bits, negative ones and floats are scaled as ``modes.to_rgb`` says,
            unless ``depth`` is minmax or percentile.
        depth: One of ``vitembed.config.running.DEPTHS``.
    """
    values = deep.values
    if values.size == 0:
        return values.astype(np.uint8), ()
    notes: tuple[str, ...] = ()
    if values.dtype == np.uint8:
        pixels = values.astype(np.uint8)
    elif depth in ("minmax", "percentile"):
        pixels = _between(values, *_ends(values, depth))
    elif _is_counted(values):
        largest = int(values.max())
        bits = _bits(largest, deep.bits, depth)
        white = (1 << bits) - 1
        pixels = _between(values, 0.0, float(white))
        if depth == "auto" and bits != deep.bits:
            notes = (f"{GUESSED_DEPTH} {bits} bits",)
        if largest * 4 <= white and largest:
            notes = (*notes, UNUSED)
    else:
        pixels = stretched(values)
    return 255 - pixels if deep.negative else pixels, notes


def stretched(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Values of no stated range: kept in 0..255, floats in 0..1 to 0..255, else from the smallest to the largest."""
    low, high = _ends(values, "minmax")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return _between(values, 0.0, 1.0, nan=low, top=high)
    if low >= 0 and high <= 255:
        return _between(values, 0.0, 255.0, nan=low, top=high)
    return _between(values, low, high)


def _bits(largest: int, stated: int | None, depth: str) -> int:
    if depth.isdecimal():
        return int(depth)
    if depth == "full":
        return 12 if stated == 12 else 16
    if stated is not None and largest < 1 << stated:
        return stated
    return next((bits for bits in LIKELY_BITS if largest < 1 << bits), 16)


def _is_counted(values: npt.NDArray[np.generic]) -> bool:
    """Whether they are what a sensor or scanner of at most 16 bits counts."""
    return values.dtype.kind == "u" and values.dtype.itemsize == 2


def _ends(values: npt.NDArray[np.generic], depth: str) -> tuple[float, float]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return 0.0, 0.0
    if depth == "percentile":
        low, high = np.percentile(finite, _PERCENTILES)
        if low < high:
            return float(low), float(high)
    return float(finite.min()), float(finite.max())


def _between(
    values: npt.NDArray[np.generic], low: float, high: float, *, nan: float | None = None, top: float | None = None
) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.float64] = values.astype(np.float64)
    if values.dtype.kind == "f":
        bottom = low if nan is None else nan
        pixels = np.nan_to_num(pixels, nan=bottom, posinf=high if top is None else top, neginf=bottom)
    if (low, high) != (0.0, 255.0):
        # A constant image has no range to stretch: black.
        pixels = (pixels - low) * 255.0 / ((high - low) or 1.0)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def grey_values(image: PILImage, *, only_packed: bool) -> Deep:
    """Samples of a loaded grey image of mode I, F or I;16 and kin, with what its file says of them.

    Args:
        image: A Pillow image.
        only_packed: Take 12 bits alone for a statement, of a TIFF that stores no more.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if (
        values.dtype == np.int32
        and _first(tags.get(_TIFF_SAMPLE_FORMAT, 1)) == 1
        and _first(tags.get(_TIFF_BITS)) == 32
    ):
        values = values.view(np.uint32)  # Pillow has signed ones only
    packed = 12 if _first(tags.get(_TIFF_BITS)) == 12 else None
    bits = packed if only_packed else stated_bits(tags)
    return Deep(values, bits=bits, negative=bool(tags) and tags.get(_TIFF_PHOTOMETRIC) == 0)


def stated_bits(tags: Mapping[int, Any]) -> int | None:
    """Bits per sample that are in use, by the tags of a TIFF; None where they do not say, or say all."""
    bits = _first(tags.get(_TIFF_BITS))
    if isinstance(bits, int) and 8 < bits < 16:
        return bits
    for tag, expression in ((_TIFF_DESCRIPTION, _DESCRIBED_BITS), (_TIFF_GDAL, _GDAL_BITS)):
        found = expression.search(_text(tags.get(tag)))
        if found is not None and 8 <= int(found[1]) < 16:
            return int(found[1])
    maxima = [_first(tags.get(tag)) for tag in _TIFF_MAXIMA]
    if "ImageJ=" in (described := _text(tags.get(_TIFF_DESCRIPTION))):
        maxima += [float(found) for found in _IMAGEJ_MAX.findall(described)[:1] if found.count(".") < 2]
    for largest in maxima:
        # 4095 is a depth; 3120 is the brightest pixel, which the pixels tell as well.
        if isinstance(largest, (int, float)) and largest in [(1 << bits) - 1 for bits in range(8, 16)]:
            return int(largest).bit_length()
    return None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) and value else value


def _text(value: Any) -> str:
    value = _first(value)
    return value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def mend_order(image: ImageFile.ImageFile) -> None:
    """Let Pillow take what libtiff gives for what it is; for a TIFF that is not loaded yet."""
    if len(image.tile) == 1 and image.tile[0].codec_name == "libtiff":
        tile = image.tile[0]
        assert isinstance(tile.args, tuple)
        rawmode = _NATIVE.get(str(tile.args[0]))
        if rawmode is not None:
            image.tile = [tile._replace(args=(rawmode, *tile.args[1:]))]


def wide_rawmode(image: ImageFile.ImageFile) -> str | None:
    """How the samples of an unloaded 16-bit colour image (PNG, TIFF) are packed; None for any other."""
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return None
    modes = {str(tile.args[0] if isinstance(tile.args, tuple) else tile.args) for tile in image.tile}
    mode = modes.pop()
    fits = re.fullmatch(r"(LA|RGB|RGBA|RGBX|RGBa);16[BLN]", mode)
    return mode if fits and not modes else None


def wide_pixels(rawmode: str, reopen: Callable[[], ImageFile.ImageFile]) -> Deep:
    """All 16 bits of a colour image.

    Args:
        rawmode: As ``wide_rawmode`` gave it.
        reopen: Opens the image once more; called twice at most.
    """
    image = reopen()
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = stated_bits(tags)
    if rawmode == "LA;16B":  # four bytes, as an RGBA pixel of 8 bits
        image._mode = "RGBA"
        parts = np.asarray(_loaded(image, "RGBA")).astype(np.uint16)
        return Deep(parts[..., 0] << 8 | parts[..., 1], parts[..., 2].astype(np.uint8), bits)
    plain = rawmode.replace("RGBa", "RGBA")
    high = np.asarray(_loaded(image, plain)).astype(np.uint16)
    low = np.asarray(_loaded(reopen(), plain[:-1] + _SWAPPED[plain[-1]]))
    samples = high << 8 | low
    values, alpha = samples[..., :3], None
    if plain.startswith("RGBA"):
        alpha = (samples[..., 3] >> 8).astype(np.uint8)
        if rawmode.startswith("RGBa"):
            share = np.maximum(samples[..., 3:].astype(np.float64) / 65535, 1 / 65535)
            values = np.clip(np.rint(values / share), 0, 65535).astype(np.uint16)
    key = image.info.get("transparency")
    if alpha is None and isinstance(key, tuple) and len(key) == 3:
        alpha = np.where((values == np.array(key, np.uint16)).all(axis=2), 0, 255).astype(np.uint8)
    return Deep(values, alpha, bits)


def _loaded(image: ImageFile.ImageFile, rawmode: str) -> ImageFile.ImageFile:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]
    image.load()
    return image


def png_bits(head: bytes) -> int | None:
    """Bits that a 16-bit PNG states as significant (sBIT), from its first bytes; None where it states none."""
    place = head.find(b"sBIT")
    if place < 4 or place > head.find(b"IDAT") > 0:
        return None
    length = int.from_bytes(head[place - 4 : place], "big")
    bits = max(head[place + 4 : place + 4 + length][: 3 if length >= 3 else 1], default=16) if length <= 4 else 16
    return bits if 8 <= bits < 16 else None


def jpeg2000_bits(head: bytes) -> int | None:
    """Bits per sample of the first channel of a JPEG 2000, from its first bytes."""
    # ITU-T T.800, A.5.1: SOC, SIZ, then Ssiz of the first component behind 38 bytes.
    place = head.find(b"\xff\x4f\xff\x51")
    return (head[place + 42] & 0x7F) + 1 if 0 <= place < len(head) - 42 else None


_PNM = re.compile(rb"P([56])(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)(?:\s+|#[^\n]*\n)+(\d+)\s")


def read_pnm(head: bytes) -> tuple[int, int, int, int, int] | None:
    """Channels, width, height, largest value and where the pixels begin, of a binary PGM or PPM of over 8 bits."""
    found = _PNM.match(head)
    if found is None or not 255 < int(found[4]) < 65536:
        return None
    return (1 if found[1] == b"5" else 3, int(found[2]), int(found[3]), int(found[4]), found.end())
