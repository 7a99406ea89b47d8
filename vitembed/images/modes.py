"""Any Pillow mode to 8-bit RGB: deep grey scaled to 0..255, palettes looked up, transparency laid on a background.

Embedded colour profiles (ICC) are not applied, as the public ViTs were trained without them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Image as PILImage

_BITS_PER_SAMPLE = 258  # TIFF tag


def to_rgb(image: PILImage, background: tuple[int, int, int]) -> PILImage:
    """Convert to mode RGB, at the same size; the given image itself is left as it is.

    Deep modes are scaled as follows, so that one rule holds for a whole folder:

    * 16-bit grey (I;16 and kin, and 16-bit PGM): the full range 0..65535 to 0..255, divided by 257. 12-bit TIFF: by its
      own full range.
    * 32-bit integers (I): kept where all lie in 0..255, else stretched from the smallest to the largest value.
    * floats (F): 0..1 to 0..255 where all lie in 0..1; kept where all lie in 0..255; else stretched. NaN is black,
      infinities are the ends of the finite range.

    Args:
        image: A Pillow image of any mode.
        background: RGB, 0..255, that shows through transparent pixels.
    """
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;"):
        return _deep_to_rgb(image, background)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no direct way
    rgba = image if image.mode == "RGBA" else _key_to_8_bits(image).convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return canvas


def _key_to_8_bits(image: PILImage) -> PILImage:
    # Pillow reads 16-bit RGB as its high bytes but leaves the transparent colour of a PNG at 16 bits.
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _deep_to_rgb(image: PILImage, background: tuple[int, int, int]) -> PILImage:
    values = np.asarray(image)
    grey = _scale_deep(values, full_scale=_full_scale(image))
    key = image.info.get("transparency")
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    if isinstance(key, int):
        rgb[values == key] = background
    return Image.fromarray(rgb)


def _full_scale(image: PILImage) -> float | None:
    """Value that means white, or None where the file does not say."""
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
        return 4095.0 if bits == (12,) else 65535.0
    # Pillow rescales every deep PGM to 16 bits and calls it I.
    return 65535.0 if image.mode == "I" and image.format == "PPM" else None


def _scale_deep(values: npt.NDArray[np.generic], full_scale: float | None) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.float64] = values.astype(np.float64)
    if full_scale is None:
        finite = pixels[np.isfinite(pixels)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        pixels = np.nan_to_num(pixels, nan=low, posinf=high, neginf=low)
        if low < 0 or high > 255:
            # A constant image has no range to stretch: black.
            pixels = (pixels - low) * 255.0 / ((high - low) or 1.0)
        elif high <= 1 and values.dtype.kind == "f":
            pixels = pixels * 255.0
    else:
        pixels = pixels * 255.0 / full_scale
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
