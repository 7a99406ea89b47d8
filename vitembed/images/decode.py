"""One image file to upright RGB pixels, or one ``BadImage`` that says why not.

Thread-safe: each call opens its own file, and the settings that a program may have made in Pillow neither matter here
nor are changed for it, with one exception that ``_whole_images_only`` explains.
"""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile
from PIL.Image import Image as PILImage
from PIL.Image import Transpose

from vitembed.errors import BadImage
from vitembed.images.decode_scans import fewer_scans
from vitembed.images.extras import develop, open_heif, open_raw, raw_size, require_extra
from vitembed.images.formats import explain_os_error, open_regular, sniff_file
from vitembed.images.jpeg_segments import MAX_BYTES
from vitembed.images.memory import memory_bytes
from vitembed.images.modes import to_rgb
from vitembed.images.source import ImageRef

FLOOR_PIXELS = 89_478_485
"""The pixel limit is never below this (Pillow's own warning level, a 256 MiB RGB image)."""

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeOptions:
    """Choices of decoding that change pixels."""

    background: tuple[int, int, int] = (255, 255, 255)
    """RGB, 0..255, that shows through transparent pixels."""
    draft: bool = True
    """Let JPEG decode at 1/2, 1/4 or 1/8 and RAW at 1/2 while the shorter side stays at least twice what is needed."""
    fewer_scans: bool = True
    """Let progressive JPEG that is decoded at 1/4 go without the last bit of its brightness (``decode_scans.py``)."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Upright RGB pixels, and the size that the image has in the file."""

    image: PILImage
    """Mode RGB; smaller than ``full_size`` after a scaled decode."""
    full_size: tuple[int, int]
    """Width and height of the upright original."""


def decode(
    ref: ImageRef, options: DecodeOptions = DecodeOptions(), *, target_px: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of one image, upright by its EXIF orientation.

    Args:
        ref: The file and the frame in it.
        options: What shows through transparency, and whether JPEG may decode scaled.
        target_px: The shorter side that will be needed; without it the image is decoded in full.

    Raises:
        BadImage: Whatever is wrong with the file; an incomplete image is never returned.
    """
    return np.array(decode_image(ref, options, target_px=target_px).image)


def decode_image(ref: ImageRef, options: DecodeOptions = DecodeOptions(), *, target_px: int | None = None) -> Decoded:
    """As ``decode``, as a Pillow image with its original size."""
    with open_regular(ref.path) as file:
        format_name = sniff_file(file, ref.path)
        if format_name is None:
            raise BadImage(ref.path, "not an image")
        # Pillow's plugins raise anything on damaged files (struct.error, KeyError, zlib.error, ...), hence Exception;
        # only Pillow's work and to_rgb are inside.
        try:
            if format_name == "RAW":
                return _decode_raw(file, ref, options, target_px)
            with _whole_images_only(), ExitStack() as stack:
                image = stack.enter_context(_open(file, format_name, ref.path))
                if ref.frame:
                    _seek(image, ref)
                full_size = image.size
                if options.draft and target_px is not None:
                    # Pillow takes the strongest of 1/8, 1/4, 1/2 that keeps both sides at least this long.
                    image.draft(None, (2 * target_px, 2 * target_px))
                    if image.size != full_size and image.format == "JPEG" and image.info.get("progressive"):
                        image = stack.enter_context(_quicker(image, full_size, file, options))
                _check_size(image, full_size, ref.path)
                scaled = image.size != full_size
                image.load()
                # Icons tell their true size only now.
                return _upright(image, full_size if scaled else image.size, options)
        except BadImage:
            raise
        except Exception as error:
            raise BadImage(ref.path, _reason(error, format_name)) from error


def decode_pil(image: PILImage, options: DecodeOptions = DecodeOptions()) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of a Pillow image, upright by its EXIF orientation; the image is not changed, only loaded.

    Raises:
        BadImage: If its pixels cannot be loaded, as when it was opened from a truncated file.
    """
    return np.array(upright_pil(image, options))


def upright_pil(image: PILImage, options: DecodeOptions = DecodeOptions()) -> PILImage:
    """As ``decode_pil``, as a Pillow image of mode RGB."""
    path = os.fsdecode(getattr(image, "filename", "") or "<image in memory>")
    try:
        with _whole_images_only():
            image.load()
        return _upright(image, image.size, options).image
    except Exception as error:
        raise BadImage(path, _reason(error, image.format or image.mode)) from error


@functools.cache
def pixel_limit() -> int:
    """Largest image that is decoded, in pixels: one image per core stays within a quarter of the memory.

    Depends on the machine's memory rather than on what is free, so that the same file is good tomorrow.
    """
    # Pillow keeps 4 bytes per pixel; converting or turning holds two copies, and the array a third.
    per_pixel = 12 * (os.cpu_count() or 1)
    return max(FLOOR_PIXELS, memory_bytes() // 4 // per_pixel)


def _open(file: BinaryIO | io.BytesIO, format_name: str, path: str) -> ImageFile.ImageFile:
    # Not Image.open: that one warns or raises by the program's MAX_IMAGE_PIXELS, and warnings cannot be silenced
    # thread-safely; and it would try every other plugin on a damaged file. No file name is handed on, as Pillow would
    # map the file into memory and a file truncated meanwhile would kill the process.
    if format_name == "HEIF":
        require_extra(format_name, path)
        return open_heif(file)
    if format_name not in Image.OPEN:
        Image.init()
    if format_name not in Image.OPEN:
        raise BadImage(path, f"{format_name}: Pillow has no decoder for it here; convert it to JPEG or PNG")
    if format_name == "DDS":
        file = _StopsAtEnd(io.FileIO(file.fileno(), closefd=False))
        file.seek(0)
    factory, _ = Image.OPEN[format_name]
    opened = factory(file, "")
    assert isinstance(opened, ImageFile.ImageFile)
    return opened


def _quicker(
    image: ImageFile.ImageFile, full_size: tuple[int, int], file: BinaryIO, options: DecodeOptions
) -> ImageFile.ImageFile:
    """A drafted progressive JPEG without the scans that it can do without; the image itself if there are none."""
    scale = round(max(full_size) / max(image.size))
    if scale < 8 and not options.fewer_scans:
        return image
    file.seek(0)
    data = file.read(MAX_BYTES + 1)
    shorter = fewer_scans(data, scale) if len(data) <= MAX_BYTES else None
    if shorter is None:
        file.seek(0)
        return image
    quicker = _open(io.BytesIO(shorter), "JPEG", "")
    quicker.draft(None, image.size)
    return quicker


def _decode_raw(file: BinaryIO, ref: ImageRef, options: DecodeOptions, target_px: int | None) -> Decoded:
    require_extra("RAW", ref.path)
    if ref.frame:
        raise BadImage(ref.path, f"has no frame {ref.frame}")
    with open_raw(file) as raw:
        width, height = raw_size(raw)
        if width * height > pixel_limit():
            raise BadImage(ref.path, _too_large((width, height)))
        half = options.draft and target_px is not None and min(width, height) // 2 >= 2 * target_px
        return Decoded(develop(raw, half=half), (width, height))


class _StopsAtEnd(io.BufferedReader):
    """A file that raises at its end: Pillow before 13 takes what is missing of a DDS file for black pixels."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        single_pixel = size is not None and 0 < size <= 4
        if not data or (single_pixel and len(data) < (size or 0)):
            raise EOFError("end of file")
        return data


def _seek(image: ImageFile.ImageFile, ref: ImageRef) -> None:
    try:
        image.seek(ref.frame)
    except EOFError:
        raise BadImage(ref.path, f"has no frame {ref.frame}") from None


def _check_size(image: PILImage, full_size: tuple[int, int], path: str) -> None:
    # A scaled decode only needs memory for the small image, except that progressive JPEG keeps all coefficients.
    width, height = full_size if image.info.get("progressive") else image.size
    if width * height > pixel_limit():
        raise BadImage(path, _too_large(full_size))


def _too_large(size: tuple[int, int]) -> str:
    return f"too large: {size[0]} x {size[1]} px, the limit here is {pixel_limit() // 10**6} megapixels"


def _upright(image: PILImage, full_size: tuple[int, int], options: DecodeOptions) -> Decoded:
    return upright(to_rgb(image, options.background), full_size, orientation_of(image))


def upright(rgb: PILImage, full_size: tuple[int, int], orientation: int) -> Decoded:
    """Pixels turned as their file says.

    Args:
        rgb: Mode RGB.
        full_size: Width and height in the file, before turning.
        orientation: EXIF's, 1 to 8; any other number turns nothing.
    """
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return Decoded(rgb, full_size)
    on_its_side = turn in (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90)
    return Decoded(rgb.transpose(turn), full_size[::-1] if on_its_side else full_size)


def orientation_of(image: PILImage) -> int:
    """EXIF's number for how a Pillow image lies; 1, upright, where there is none that can be read."""
    # Asked for after load(): PNG may carry it behind the pixels, and TIFF turns itself while loading. Damaged EXIF
    # beside good pixels is no reason to lose the image.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


_strict_lock = threading.Lock()
_strict_users = 0
_strict_restore = False


@contextmanager
def _whole_images_only() -> Iterator[None]:
    """Make Pillow refuse truncated files even in a program that has set ``LOAD_TRUNCATED_IMAGES``.

    Pillow has no such setting per image. Where the program has set it, it is put back as soon as no decode is running;
    where it has not, nothing is touched.
    """
    global _strict_users, _strict_restore
    with _strict_lock:
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            _strict_restore = True
        _strict_users += 1
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if _strict_users == 0 and _strict_restore:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
                _strict_restore = False


_TRUNCATED = (
    "truncat",
    "not enough image data",
    "broken data stream",
    "end of file",
    "eof",
    "unexpected end",
    "incomplete",
    "requires a buffer",
    "but only got",
    "missing dimensions",
    "no more images",
)


def _reason(error: Exception, format_name: str) -> str:
    """One short phrase for what Pillow raised."""
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "too large: a small file that unpacks to an enormous image"
    if isinstance(error, OSError) and error.errno is not None:
        return explain_os_error(error)
    message = " ".join(str(error).split())
    if isinstance(error, EOFError) or any(word in message.lower() for word in _TRUNCATED):
        return "truncated"
    return f"damaged {format_name} ({message[:80]})" if message else f"damaged {format_name}"
