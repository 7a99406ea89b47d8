"""Small pictures, upright, and as text that stands inside a page."""

from __future__ import annotations

import base64
import io
import os

import numpy as np
from PIL import Image

from vitembed.images.decode import decode, decode_pil
from vitembed.images.source import ImageRef


def thumbnail(image: str | os.PathLike[str] | np.ndarray | Image.Image, thumb_px: int) -> Image.Image:
    """The image as upright RGB, its longer side ``thumb_px`` at most.

    Raises:
        BadImage: If it is a file that cannot be read.
    """
    if isinstance(image, (str, os.PathLike)):
        pixels = decode(ImageRef(os.path.abspath(os.fsdecode(image))), target_px=thumb_px)  # noqa: PTH100  # keeps links
    elif isinstance(image, Image.Image):
        pixels = decode_pil(image)
    else:
        pixels = image
    small = Image.fromarray(pixels)
    small.thumbnail((thumb_px, thumb_px), Image.Resampling.LANCZOS)
    return small


def jpeg_uri(picture: Image.Image) -> str:
    """The picture as a ``data:`` address."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
