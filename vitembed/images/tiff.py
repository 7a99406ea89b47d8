"""TIFFs that Pillow refuses or reads wrongly: deep samples in planes, signed bytes, half floats, doubles and kin."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ImageFile

from vitembed.errors import BadImage
from vitembed.images.deep import Deep, stated_bits, to_8_bits, wide_rawmode

_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANAR, _EXTRA, _SAMPLE_FORMAT = 258, 262, 274, 284, 338, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK = 0, 1, 2, 5
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _CMYK: 4}
_MAX_SAMPLES = 64
NEEDS_CODECS = "needs the package imagecodecs"
"""In the reason of a compression that is read with more packages alone."""


class TiffPixels(NamedTuple):
    """One picture of a TIFF."""

    deep: Deep
    orientation: int
    notes: tuple[str, ...]


def is_misread(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow, which has opened this TIFF, would give other pixels than are in it, or none."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = _tuple(tags.get(_BITS, 1))
    planes = tags.get(_PLANAR) == 2 and len(bits) > 1
    signed_bytes = 2 in _tuple(tags.get(_SAMPLE_FORMAT, 1)) and max(bits) == 8
    return signed_bytes or (planes and (max(bits) > 8 or 1 in _tuple(tags.get(_EXTRA, ()))))


def has_right_high_bytes(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow reads this TIFF's planes of 16-bit RGB as their high bytes: libtiff joins compressed ones."""
    tile = image.tile[0] if len(image.tile) == 1 else None
    return tile is not None and tile.codec_name == "libtiff" and (wide_rawmode(image) or "").startswith("RGB")


def read_tiff(file: BinaryIO | io.BytesIO, path: str, frame: int, max_pixels: int) -> TiffPixels:
    """Samples of one picture, by tifffile.

    Args:
        file: The file.
        path: For messages.
        frame: Which picture.
        max_pixels: Of an image that is read.

    Raises:
        BadImage: If it cannot be read, with what would help.
    """
    if importlib.util.find_spec("tifffile") is None:
        raise BadImage(path, "TIFF: this layout needs the package tifffile (pip install tifffile)")
    tifffile: Any = importlib.import_module("tifffile")
    log = logging.getLogger("tifffile")  # it logs what it also raises
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)
    file.seek(0)
    with tifffile.TiffFile(file, name="image.tif") as opened:
        try:
            page = opened.pages[frame].aspage()
        except IndexError:
            raise BadImage(path, f"has no frame {frame}") from None
        return _read(page, path, max_pixels, file)


def _read(page: Any, path: str, max_pixels: int, file: BinaryIO | io.BytesIO) -> TiffPixels:
    width, height, samples = int(page.imagewidth), int(page.imagelength), int(page.samplesperpixel)
    if width * height > max_pixels:
        raise BadImage(path, f"too large: {width} x {height} px, the limit here is {max_pixels // 10**6} megapixels")
    photometric = int(page.photometric) if page.photometric is not None else _BLACK_IS_ZERO
    colours = _COLOURS.get(photometric)
    kind = f"{samples} channel{'s' if samples != 1 else ''} of {page.dtype}"
    if colours is None or page.imagedepth != 1 or page.dtype is None or page.dtype.kind not in "uif":
        name = str(getattr(page.photometric, "name", photometric)).lower()
        raise BadImage(path, f"TIFF: {name} with {kind} is not read here: save it as 8- or 16-bit RGB or grey")
    if not colours <= samples <= _MAX_SAMPLES:
        raise BadImage(path, f"TIFF: {kind} is not read here: save it as 8- or 16-bit RGB or grey")
    tags = {tag.code: tag.value for tag in page.tags if tag.code not in (273, 279, 324, 325)}
    extra = [int(value) for value in _tuple(tags.get(_EXTRA, ()))]
    has_alpha = extra[:1] in ([1], [2]) and samples > colours
    _refuse_truncated(page, path, file, colours + has_alpha)
    try:
        array = page.asarray(maxworkers=1)
    except Exception as error:
        if "imagecodecs" in str(error):
            packed = str(getattr(page.compression, "name", page.compression)).lower()
            raise BadImage(
                path,
                f"TIFF: {kind}, {packed}: {NEEDS_CODECS} (pip install imagecodecs), or save it without compression",
            ) from error
        raise
    planes = samples > 1 and page.planarconfig == 2
    array = (
        np.moveaxis(array.reshape(samples, height, width), 0, 2) if planes else array.reshape(height, width, samples)
    )
    notes = (f"only the first of {samples} channels is read",) if samples > colours and not {1, 2} & {*extra} else ()
    values, alpha = array[..., :colours], None
    if has_alpha:
        share = _share(array[..., colours])
        alpha = np.rint(share * 255).astype(np.uint8)
        if extra[0] == 1:  # colours come multiplied by it
            values = _unmultiplied(values, share)
    orientation = int(_tuple(tags.get(_ORIENTATION, 1))[0])
    bits = stated_bits(tags)
    if photometric == _CMYK:
        inks, _ = to_8_bits(Deep(values), "full")
        light = 255 - inks.astype(np.uint16)
        rgb = (light[..., :3] * light[..., 3:] + 127) // 255
        return TiffPixels(Deep(rgb.astype(np.uint8), alpha), orientation, notes)
    if photometric != _RGB:
        values = values[..., 0]
    return TiffPixels(Deep(values, alpha, bits, photometric == _WHITE_IS_ZERO), orientation, notes)


def _refuse_truncated(page: Any, path: str, file: BinaryIO | io.BytesIO, num_read: int) -> None:
    """Refuse a file without all pixels of the channels that are read: zeros would take their place."""
    end = file.seek(0, 2)
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    samples = page.samplesperpixel
    if samples > 1 and page.planarconfig == 2:  # one channel behind the other
        parts, samples = parts[: len(parts) * num_read // samples], num_read
    packed = int(page.compression) != 1
    total = sum(count for _, count in parts)
    whole = page.imagewidth * page.imagelength * samples * page.bitspersample // 8
    broken = not parts or any(at <= 0 or count <= 0 or at + count > end for at, count in parts)
    if broken or (not packed and total < whole):
        raise BadImage(path, "truncated")


def _share(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    top = float(np.iinfo(values.dtype).max) if values.dtype.kind in "ui" else 1.0  # type: ignore[type-var]
    return np.clip(np.nan_to_num(values.astype(np.float64)) / top, 0.0, 1.0)


def _unmultiplied(values: npt.NDArray[np.generic], share: npt.NDArray[np.float64]) -> npt.NDArray[np.generic]:
    plain: npt.NDArray[np.generic] = values / np.maximum(share, 1e-6)[..., None]
    if values.dtype.kind == "f":
        return plain.astype(values.dtype)
    top = np.iinfo(values.dtype).max  # type: ignore[type-var]
    whole: npt.NDArray[np.generic] = np.clip(np.rint(plain), 0, top).astype(values.dtype)
    return whole


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
