"""Formats that Pillow does not decode itself: HEIC by pillow-heif, camera RAW by LibRaw, each an extra to install."""

from __future__ import annotations

import importlib
import importlib.util
import re
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


def open_heif(file: BinaryIO) -> ImageFile:
    """The first picture of a HEIC file, turned as the file says; Pillow's own list of formats is left alone."""
    module: Any = importlib.import_module("pillow_heif")  # untyped
    opened: ImageFile = module.HeifImageFile(file, "")
    return opened


def raw_size(raw: Any) -> tuple[int, int]:
    """Width and height of the upright picture in a RAW file."""
    sizes = raw.sizes
    on_its_side = sizes.flip in (5, 6)
    return (sizes.height, sizes.width) if on_its_side else (sizes.width, sizes.height)


def open_raw(file: BinaryIO) -> Any:
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
