"""One image file to upright RGB pixels, or one ``BadImage`` that says why not.

Thread-safe: each call opens its own file, and the settings that a program may have made in Pillow neither matter here
nor are changed for it, with one exception that ``_whole_images_only`` explains.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile
from PIL.Image import Image as PILImage
from PIL.Image import Transpose

from vitembed.config.running import DEPTHS
from vitembed.errors import BadImage
from vitembed.images.decode_scans import fewer_scans
from vitembed.images.deep import (
    UNUSED,
    Deep,
    jpeg2000_bits,
    mend_order,
    png_bits,
    read_pnm,
    stated_bits,
    wide_pixels,
    wide_rawmode,
)
from vitembed.images.extras import develop, heif_orientation, open_heif, open_raw, raw_size, require_extra
from vitembed.images.formats import REFUSED, explain_os_error, not_an_image, open_regular, sniff_file
from vitembed.images.jpeg_segments import MAX_BYTES
from vitembed.images.memory import memory_bytes
from vitembed.images.mend import is_filled_up, missing_end, whole_jpegs, whole_png
from vitembed.images.modes import deep_to_rgb, to_rgb
from vitembed.images.source import ImageRef
from vitembed.images.tiff import NEEDS_CODECS, has_right_high_bytes, is_misread, read_tiff

Stream = BinaryIO | io.BytesIO
"""An open file, or what was made of one."""
FLOOR_PIXELS = 89_478_485
"""The pixel limit is never below this (Pillow's own warning level, a 256 MiB RGB image)."""

MIN_DRAFT_PIXELS = 512 * 512
"""Smaller JPEGs decode in full: it takes milliseconds, and a scaled decode brightens halftones and the like."""
HALF = "truncated, taken as far as it goes"
"""Note of a half image that was asked for."""
_HEAD_BYTES = 1 << 16
_ORIENTATION = 0x0112  # EXIF tag
_COMPRESSION = 259  # TIFF tag
_VERIFIED = (1, 8, 32946)
"""Compressions of TIFF that tell what is cut off: none, and two names of deflate."""
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
    depth: str = "auto"
    """What is white in images of more than 8 bits per channel, of integers of up to 16: 8 to 16 (bits), full (all 16),
    minmax or percentile (0.1 to 99.9; each image from its own darkest to its brightest, floats too), or auto: what the
    file states (TIFF's bits, maximum and metadata, PNG's sBIT, the maximum of a PGM), else the least of 8, 12, 14 and
    16 bits that holds its brightest pixel. Not a percentile: it would cut off the few bright cells of a dark image."""
    rules: int = 2
    """1: as the first models decoded. 2: what would vanish in the background is laid on black or white, 16-bit colour
    keeps all its bits, HEIC is turned by its EXIF where it has no rotation of its own, small JPEGs decode in full."""
    tolerant: bool = False
    """Take what is there of a truncated image, with a note."""

    def __post_init__(self) -> None:
        if self.depth not in DEPTHS or self.rules not in (1, 2):
            raise ValueError(
                f"depth must be one of {', '.join(DEPTHS)} and rules 1 or 2, got {self.depth!r} and {self.rules!r}"
            )


@dataclass(frozen=True, slots=True)
class Decoded:
    """Upright RGB pixels, and the size that the image has in the file."""

    image: PILImage
    """Mode RGB; smaller than ``full_size`` after a scaled decode."""
    full_size: tuple[int, int]
    """Width and height of the upright original."""
    notes: tuple[str, ...] = ()
    """What is odd about the file, in a few words each; its pixels are good."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom of the picture in ``image``, where a scaled decode rounded its sides up."""


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
    """As ``decode``, as a Pillow image with its original size and with notes."""
    with open_regular(ref.path) as file:
        format_name = sniff_file(file, ref.path)
        if format_name is None:
            raise BadImage(ref.path, not_an_image(ref.path))
        if format_name in REFUSED:
            raise BadImage(ref.path, REFUSED[format_name])
        try:
            decoded = _decode_strictly(file, format_name, ref, options, target_px)
            if format_name == "JPEG" and is_filled_up(file):
                raise BadImage(ref.path, "truncated")
        except BadImage as error:
            return _second_try(file, format_name, ref, options, target_px, error)
        end = missing_end(file, format_name)
        return decoded if end is None else replace(decoded, notes=(*decoded.notes, end))


def _decode_strictly(
    file: Stream, format_name: str, ref: ImageRef, options: DecodeOptions, target_px: int | None
) -> Decoded:
    with _whole_images_only():
        return _decode(file, format_name, ref, options, target_px)


def _second_try(
    file: Stream,
    format_name: str,
    ref: ImageRef,
    options: DecodeOptions,
    target_px: int | None,
    error: BadImage,
) -> Decoded:
    """An image whose pixels are all there though its file is not whole; a half one, if that was asked for.

    Raises:
        BadImage: ``error``, for any other.
    """
    if error.reason.startswith(("truncated", "damaged")) and format_name in ("JPEG", "PNG") and not ref.frame:
        data = _all_bytes(file)
        if format_name == "PNG" and (png := whole_png(data)) is not None:
            with contextlib.suppress(BadImage):
                decoded = _decode_strictly(io.BytesIO(png.data), format_name, ref, options, target_px)
                return replace(decoded, notes=(*decoded.notes, png.note))
        # Where nothing is missing, it does not matter what would follow.
        for pair in whole_jpegs(data) if format_name == "JPEG" else ():
            with contextlib.suppress(BadImage):
                one, other = (
                    _decode_strictly(io.BytesIO(jpeg.data), format_name, ref, options, target_px) for jpeg in pair
                )
                if np.array_equal(np.asarray(one.image), np.asarray(other.image)):
                    return replace(one, notes=(*one.notes, pair[0].note))
    if options.tolerant and error.reason.startswith("truncated"):
        with contextlib.suppress(BadImage), _half_images():
            decoded = _decode(file, format_name, ref, options, target_px)
            if any(low != high for low, high in decoded.image.getextrema()):  # type: ignore[misc]
                return replace(decoded, notes=(*decoded.notes, HALF))
    raise error


def _all_bytes(file: Stream) -> bytes:
    try:
        file.seek(0)
        data = file.read(MAX_BYTES + 1)
    except OSError:
        return b""
    return data if len(data) <= MAX_BYTES else b""


def _decode(file: Stream, format_name: str, ref: ImageRef, options: DecodeOptions, target_px: int | None) -> Decoded:
    # Pillow's plugins raise anything on damaged files (struct.error, KeyError, zlib.error, ...), hence Exception; only
    # the work of Pillow, tifffile and rawpy, and what turns theirs into RGB, is inside.
    try:
        file.seek(0)
        if format_name == "RAW":
            return _decode_raw(file, ref, options, target_px)
        if format_name == "TIFF":
            return _decode_tiff(file, ref, options)
        if format_name == "PPM" and options.rules > 1 and not ref.frame:
            deep = _deep_pnm(file, ref.path)
            if deep is not None:
                return _from_deep(deep, 1, options)
        with ExitStack() as stack:
            image = stack.enter_context(_open(file, format_name, ref.path))
            if ref.frame:
                _seek(image, ref)
            full_size = image.size
            if target_px is not None and may_draft(full_size, options):
                # Pillow takes the strongest of 1/8, 1/4, 1/2 that keeps both sides at least this long.
                image.draft(None, (2 * target_px, 2 * target_px))
                if image.size != full_size and image.format == "JPEG" and image.info.get("progressive"):
                    image = stack.enter_context(_quicker(image, full_size, file, options))
            _check_size(image, full_size, ref.path)
            scaled = image.size != full_size
            rawmode = wide_rawmode(image) if options.rules > 1 and not ref.frame else None
            if rawmode is not None:
                deep = wide_pixels(rawmode, lambda: stack.enter_context(_open(_rewound(file), format_name, ref.path)))
                image.load()  # for its EXIF, which may lie behind the pixels
                bits = png_bits(_head(file)) if format_name == "PNG" else deep.bits
                return _from_deep(deep._replace(bits=bits), orientation_of(image), options)
            image.load()
            # Icons tell their true size only now.
            size = full_size if scaled else image.size
            decoded = _upright(image, size, options, _stated_bits(file, image, options))
            return replace(decoded, notes=(*decoded.notes, UNUSED)) if _is_dim_sgi(file, image) else decoded
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(ref.path, _reason(error, format_name)) from error


def may_draft(full_size: tuple[int, int], options: DecodeOptions) -> bool:
    """Whether a JPEG of this width and height may decode scaled."""
    return options.draft and (options.rules == 1 or full_size[0] * full_size[1] > MIN_DRAFT_PIXELS)


def _decode_tiff(file: Stream, ref: ImageRef, options: DecodeOptions) -> Decoded:
    with ExitStack() as stack:

        def opened() -> ImageFile.ImageFile:
            image = stack.enter_context(_open(_rewound(file), "TIFF", ref.path))
            if ref.frame:
                _seek(image, ref)
            mend_order(image)
            return image

        try:
            image = opened()
        except SyntaxError as error:  # a layout that Pillow does not know, or no TIFF at all
            return _by_tifffile(file, ref, options, error)
        _check_size(image, image.size, ref.path)
        high_bytes = is_misread(image) and has_right_high_bytes(image)
        if is_misread(image) and not (high_bytes and options.rules == 1):
            try:
                return _by_tifffile(file, ref, options, None)
            except BadImage as error:
                if not (high_bytes and NEEDS_CODECS in error.reason and _needs_no_low_bytes(image, options)):
                    raise
        rawmode = wide_rawmode(image) if options.rules > 1 and not high_bytes else None
        try:
            if rawmode is not None:  # Pillow turns it while loading
                return _from_deep(wide_pixels(rawmode, opened), 1, options)
            image.load()
        except ValueError as error:  # samples that Pillow cannot unpack
            return _by_tifffile(file, ref, options, error)
        except OSError as error:  # libtiff refuses a whole directory for one odd tag
            if getattr(image, "tag_v2", {}).get(_COMPRESSION, 1) not in _VERIFIED:
                raise
            try:
                return _by_tifffile(file, ref, options, error)
            except BadImage:
                raise error from None
        return _upright(image, image.size, options, None)


def _needs_no_low_bytes(image: ImageFile.ImageFile, options: DecodeOptions) -> bool:
    """Whether an image whose high bytes alone can be read is scaled by all of its 16 bits."""
    tags = getattr(image, "tag_v2", {})
    image.load()
    brightest = max(int(high) for _, high in image.getextrema()[:3])  # type: ignore[misc]
    if options.depth == "auto":
        return stated_bits(tags) is None and brightest >= 128
    return options.depth in ("full", "16")


def _by_tifffile(file: Stream, ref: ImageRef, options: DecodeOptions, refused: Exception | None) -> Decoded:
    try:
        deep, orientation, notes = read_tiff(_rewound(file), ref.path, ref.frame, pixel_limit())
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(ref.path, _reason(refused or error, "TIFF")) from error
    decoded = _from_deep(deep, orientation, options)
    return replace(decoded, notes=(*decoded.notes, *notes))


def _from_deep(deep: Deep, orientation: int, options: DecodeOptions) -> Decoded:
    rgb, notes = deep_to_rgb(deep, options.background, depth=options.depth, contrast=options.rules > 1)
    return replace(upright(rgb, rgb.size, orientation), notes=notes)


def _deep_pnm(file: Stream, path: str) -> Deep | None:
    """Samples of a binary PGM or PPM of over 8 bits, which Pillow scales before anybody can look at them."""
    found = read_pnm(_head(file))
    if found is None:
        file.seek(0)
        return None
    channels, width, height, largest, start = found
    if width * height > pixel_limit():
        raise BadImage(path, _too_large((width, height)))
    file.seek(start)
    data = file.read(width * height * channels * 2)
    if len(data) < width * height * channels * 2:
        raise BadImage(path, "truncated")
    values = np.frombuffer(data, ">u2").reshape((height, width, channels) if channels == 3 else (height, width))
    bits = largest.bit_length() if largest < 65535 else None
    if bits is not None and largest != (1 << bits) - 1:
        values = np.minimum(values, largest) * 65535.0 / largest
        return Deep(np.rint(values).astype(np.uint16), bits=16)
    return Deep(values.astype(np.uint16), bits=bits)


def _stated_bits(file: Stream, image: PILImage, options: DecodeOptions) -> int | None:
    """Depth that a deep grey image states in a way that Pillow does not tell."""
    if options.depth != "auto" or image.mode not in ("I", "I;16", "I;16B"):
        return None
    if image.format == "PNG":
        return png_bits(_head(file))
    if image.format == "JPEG2000" and (jpeg2000_bits(_head(file)) or 16) < 16:
        return 16  # Pillow has filled up its bits
    if image.format == "PPM" and (maximum := _PLAIN_MAXIMUM.match(_head(file))) is not None:
        return None if int(maximum[1]) == 65535 else 16  # Pillow has scaled it
    return None


def _is_dim_sgi(file: Stream, image: PILImage) -> bool:
    """Whether an SGI of 16 bits, of which Pillow gives the high bytes alone, is nearly black."""
    # SGI's header has the bytes of a sample as its fourth.
    if image.format != "SGI" or _head(file)[3:4] != b"\2":
        return False
    return max(int(high) for _, high in image.convert("RGB").getextrema()) < 64  # type: ignore[misc]


_PLAIN_MAXIMUM = re.compile(rb"P2(?:(?:\s|#[^\n]*\n)+\d+){2}(?:\s|#[^\n]*\n)+(\d+)")


def _head(file: Stream) -> bytes:
    return _rewound(file).read(_HEAD_BYTES)


def _rewound(file: Stream) -> Stream:
    file.seek(0)
    return file


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
        return _upright(image, image.size, options, None).image
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


def _open(file: Stream, format_name: str, path: str) -> ImageFile.ImageFile:
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
    if format_name == "DDS" and not isinstance(file, io.BytesIO):
        file = _StopsAtEnd(io.FileIO(file.fileno(), closefd=False))
        file.seek(0)
    factory, _ = Image.OPEN[format_name]
    opened = factory(file, "")
    assert isinstance(opened, ImageFile.ImageFile)
    return opened


def _quicker(
    image: ImageFile.ImageFile, full_size: tuple[int, int], file: Stream, options: DecodeOptions
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


def _decode_raw(file: Stream, ref: ImageRef, options: DecodeOptions, target_px: int | None) -> Decoded:
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


def _upright(image: PILImage, full_size: tuple[int, int], options: DecodeOptions, bits: int | None) -> Decoded:
    contrast = options.rules > 1
    rgb, notes = to_rgb(image, options.background, depth=options.depth, contrast=contrast, bits=bits)
    turned = heif_orientation(image) if contrast and image.format == "HEIF" else orientation_of(image)
    return replace(upright(rgb, full_size, turned), notes=notes)


def upright(rgb: PILImage, full_size: tuple[int, int], orientation: int) -> Decoded:
    """Pixels turned as their file says.

    Args:
        rgb: Mode RGB.
        full_size: Width and height in the file, before turning.
        orientation: EXIF's, 1 to 8; any other number turns nothing.
    """
    turn = _UPRIGHT.get(orientation)
    # libjpeg's last row and column of a scaled image are of less than a whole square of pixels.
    scale = round(max(full_size) / max(rgb.size))
    width, height = (full / scale for full in full_size)
    x, y = (0.0, width), (0.0, height)
    if orientation in (2, 3, 7, 8):
        x = (rgb.width - width, float(rgb.width))
    if orientation in (3, 4, 6, 7):
        y = (rgb.height - height, float(rgb.height))
    if turn is None:
        return Decoded(rgb, full_size, box=(x[0], y[0], x[1], y[1]) if scale > 1 else None)
    if turn in (Transpose.TRANSPOSE, Transpose.ROTATE_270, Transpose.TRANSVERSE, Transpose.ROTATE_90):
        x, y, full_size = y, x, full_size[::-1]
    return Decoded(rgb.transpose(turn), full_size, box=(x[0], y[0], x[1], y[1]) if scale > 1 else None)


def orientation_of(image: PILImage) -> int:
    """EXIF's number for how a Pillow image lies; 1, upright, where there is none that can be read."""
    # Asked for after load(): PNG may carry it behind the pixels, and TIFF turns itself while loading. Damaged EXIF
    # beside good pixels is no reason to lose the image.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


_turn = threading.Condition()
_strict_users = 0
_is_tolerating = False
_strict_restore = False


@contextmanager
def _whole_images_only() -> Iterator[None]:
    """Make Pillow refuse truncated files even in a program that has set ``LOAD_TRUNCATED_IMAGES``.

    Pillow has no such setting per image. Where the program has set it, it is put back as soon as no decode is running;
    where it has not, nothing is touched.
    """
    global _strict_users, _strict_restore
    with _turn:
        _turn.wait_for(lambda: not _is_tolerating)
        if ImageFile.LOAD_TRUNCATED_IMAGES:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            _strict_restore = True
        _strict_users += 1
    try:
        yield
    finally:
        with _turn:
            _strict_users -= 1
            if _strict_users == 0 and _strict_restore:
                ImageFile.LOAD_TRUNCATED_IMAGES = True
                _strict_restore = False
            _turn.notify_all()


@contextmanager
def _half_images() -> Iterator[None]:
    """Let Pillow take truncated files, while no other thread decodes."""
    global _is_tolerating
    with _turn:
        _turn.wait_for(lambda: not _is_tolerating and _strict_users == 0)
        _is_tolerating = True
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        yield
    finally:
        with _turn:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
            _is_tolerating = False
            _turn.notify_all()


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


_TOO_DEEP = re.compile(r"cannot handle (\d+)-bit layers|\(\d+, (16|32)\)")  # Pillow's words for JPEG and PSD


def _reason(error: Exception, format_name: str) -> str:
    """One short phrase for what Pillow raised."""
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "too large: a small file that unpacks to an enormous image"
    if isinstance(error, OSError) and error.errno is not None:
        return explain_os_error(error)
    message = " ".join(str(error).split())
    if deep := _TOO_DEEP.fullmatch(message):
        return f"{format_name} of {deep[1] or deep[2]} bits per channel is not read here: save it as PNG or TIFF"
    if isinstance(error, EOFError) or any(word in message.lower() for word in _TRUNCATED):
        return "truncated"
    return f"damaged {format_name} ({message[:80]})" if message else f"damaged {format_name}"
