"""Formats that Pillow does not decode itself: HEIC by pillow-heif, camera RAW by LibRaw, each an extra to install."""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from vitembed.errors import BadImage

if TYPE_CHECKING:  # a look at what is installed loads no Pillow
    from PIL.Image import Image as PILImage
    from PIL.ImageFile import ImageFile

EXTRAS = {"HEIF": ("heic", "pillow_heif"), "RAW": ("raw", "rawpy")}
"""Format: the extra that decodes it, and the module that comes with it."""

_MISSING = re.compile(r"(HEIF|RAW): needs the extra ")


def require_extra(format_name: str, path: str) -> None:
    """Make sure that the format can be decoded here.

    Raises:
        BadImage: If its extra is not installed; the reason says how to install it.
    """
    extra, module = EXTRAS[format_name]
    if importlib.util.find_spec(module) is None:
        raise BadImage(path, f"{format_name}: needs the extra {extra} (pip install 'vitembed[{extra}]')")


def is_installed_now(reason: str) -> bool:
    """Whether an image was bad for want of an extra that has been installed since."""
    found = _MISSING.match(reason)
    return found is not None and importlib.util.find_spec(EXTRAS[found[1]][1]) is not None


_EXIF_TURN = "vitembed_exif_turn"


def open_heif(file: BinaryIO | io.BytesIO) -> ImageFile:
    """The first picture of a HEIC file, turned as the file says; Pillow's own list of formats is left alone."""
    module: Any = importlib.import_module("pillow_heif")  # untyped
    turned = _turns_itself(file)
    file.seek(0)
    opened: ImageFile = module.HeifImageFile(file, "")
    if not turned:
        opened.info[_EXIF_TURN] = opened.info.get("original_orientation") or 1
    return opened


def heif_orientation(image: PILImage) -> int:
    """EXIF's number for how a picture that ``open_heif`` gave still lies."""
    value = image.info.get(_EXIF_TURN, 1)
    return value if isinstance(value, int) else 1


def _turns_itself(file: BinaryIO | io.BytesIO) -> bool:
    """Whether the main picture has a rotation or a mirror of its own (irot, imir), which then holds, not its EXIF.

    Source: ISO/IEC 23008-12, 6.5.10 and 6.5.12 (irot, imir), 9.3 (iprp, ipco, ipma).
    """
    file.seek(0)
    meta = _box(file.read(_META_BYTES), b"meta")[4:]
    main = _box(meta, b"pitm")
    item = int.from_bytes(main[4:6] if main[:1] == b"\0" else main[4:8], "big")
    properties = _box(meta, b"iprp")
    turns = {
        number
        for number, (name, _) in enumerate(_boxes(_box(properties, b"ipco")), start=1)
        if name in (b"irot", b"imir")
    }
    return bool(turns & _properties_of(item, _box(properties, b"ipma")))


_META_BYTES = 1 << 24


def _properties_of(item: int, ipma: bytes) -> set[int]:
    wide_id, wide_number = ipma[:1] != b"\0", bool(ipma[3:4] and ipma[3] & 1)
    place, found = 8, set[int]()
    for _ in range(int.from_bytes(ipma[4:8], "big")):
        end = place + (4 if wide_id else 2)
        if end >= len(ipma):
            break
        step, count = (2 if wide_number else 1), ipma[end]
        if int.from_bytes(ipma[place:end], "big") == item:
            mask = 0x7FFF if wide_number else 0x7F
            starts = range(end + 1, end + 1 + count * step, step)
            found |= {int.from_bytes(ipma[at : at + step], "big") & mask for at in starts}
        place = end + 1 + count * step
    return found


def _box(data: bytes, wanted: bytes) -> bytes:
    return next((body for name, body in _boxes(data) if name == wanted), b"")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(data):
        size, head = int.from_bytes(data[place : place + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        size = size or len(data) - place
        if size < head:
            return
        yield data[place + 4 : place + 8], data[place + head : place + size]
        place += size


def raw_size(raw: Any) -> tuple[int, int]:
    """Width and height of the upright picture in a RAW file."""
    sizes = raw.sizes
    on_its_side = sizes.flip in (5, 6)
    return (sizes.height, sizes.width) if on_its_side else (sizes.width, sizes.height)


def open_raw(file: BinaryIO | io.BytesIO) -> Any:
    """An open RAW file (``rawpy.RawPy``, a context manager); its pixels are not read yet."""
    return importlib.import_module("rawpy").imread(file)


def develop(raw: Any, *, half: bool) -> PILImage:
    """RGB picture, upright, with the camera's white balance.

    Args:
        raw: As ``open_raw`` gives it.
        half: Take each 2 x 2 cell of the sensor as one pixel, which is four times as fast.
    """
    from PIL import Image

    return Image.fromarray(raw.postprocess(use_camera_wb=True, half_size=half, output_bps=8))
