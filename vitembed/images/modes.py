"""Any Pillow mode to 8-bit RGB: deep samples scaled to 0..255, palettes looked up, transparency laid on a ground.

Embedded colour profiles (ICC) are not applied, as the public ViTs were trained without them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.Image import Image as PILImage

from vitembed.images.deep import Deep, grey_values, to_8_bits

HIDDEN = "transparent all over, its hidden colours are used"
"""Note of an image whose every pixel is transparent."""
_SEEN = 16
"""Alpha, of 255, from which a pixel is visible."""
_CONTRAST = 32
"""Levels, of 255, by which a pixel has to differ from the ground to be told from it."""
_SHARE = 0.01
"""Of the visible pixels that have to differ; with fewer the composite is blank."""


def to_rgb(
    image: PILImage,
    background: tuple[int, int, int],
    *,
    depth: str = "full",
    contrast: bool = False,
    bits: int | None = None,
) -> tuple[PILImage, tuple[str, ...]]:
    """Convert to mode RGB, at the same size; the given image itself is left as it is. With notes on what is odd.

    Deep modes are scaled as follows, so that one rule holds for a whole folder:

    * 16-bit grey (I;16 and kin, and PGM): by ``depth``.
    * 32-bit integers (I): kept where all lie in 0..255, else stretched from the smallest to the largest value.
    * floats (F): 0..1 to 0..255 where all lie in 0..1; kept where all lie in 0..255; else stretched. NaN is black,
      infinities are the ends of the finite range.

    Args:
        image: A Pillow image of any mode.
        background: RGB, 0..255, that shows through transparent pixels.
        depth: As in ``DecodeOptions``.
        contrast: Lay what would vanish in the background on black or white instead.
        bits: Depth that the file of a deep image states, where Pillow does not tell.
    """
    if image.mode == "I" or image.mode == "F" or image.mode.startswith("I;"):
        return deep_to_rgb(_deep_grey(image, depth, bits), background, depth=depth, contrast=contrast)
    if not image.has_transparency_data:
        return (image if image.mode == "RGB" else image.convert("RGB")), ()
    if image.mode == "La":
        image = image.convert("LA")  # Pillow knows no direct way
    rgba = image if image.mode == "RGBA" else _key_to_8_bits(image).convert("RGBA")
    return _composite(rgba.convert("RGB"), rgba.getchannel("A"), background, contrast)


def deep_to_rgb(
    deep: Deep, background: tuple[int, int, int], *, depth: str, contrast: bool
) -> tuple[PILImage, tuple[str, ...]]:
    """As ``to_rgb``, of samples."""
    grey, notes = to_8_bits(deep, depth)
    rgb = Image.fromarray(np.ascontiguousarray(grey if grey.ndim == 3 else np.repeat(grey[:, :, None], 3, axis=2)))
    if deep.alpha is None:
        return rgb, notes
    laid, more = _composite(rgb, Image.fromarray(deep.alpha), background, contrast)
    return laid, (*notes, *more)


def _composite(
    rgb: PILImage, alpha: PILImage, background: tuple[int, int, int], contrast: bool
) -> tuple[PILImage, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if contrast:
        least, most = alpha.getextrema()
        assert isinstance(most, (int, float))
        if most < _SEEN:
            if any(low != high for low, high in rgb.getextrema()):  # type: ignore[misc]
                return rgb, (HIDDEN,)
        elif least < 255 - _SEEN:  # type: ignore[operator]
            background = _ground(rgb, alpha, background)
    canvas = Image.new("RGB", rgb.size, background)
    canvas.paste(rgb, mask=alpha)
    return canvas, notes


def _ground(rgb: PILImage, alpha: PILImage, background: tuple[int, int, int]) -> tuple[int, int, int]:
    """The background; black or white where next to nothing would be seen on it."""
    share = np.asarray(alpha)
    colours = np.asarray(rgb)[share >= _SEEN].astype(np.int16)
    weight = share[share >= _SEEN].astype(np.float32) / 255
    apart = np.abs(colours - np.array(background, np.int16)).max(axis=1) * weight
    if (apart > _CONTRAST).sum() > _SHARE * len(colours):
        return background
    bright = float((colours.mean(axis=1) * weight).sum() / weight.sum())
    return (0, 0, 0) if bright >= 128 else (255, 255, 255)


def _key_to_8_bits(image: PILImage) -> PILImage:
    # Pillow reads 16-bit RGB as its high bytes but leaves the transparent colour of a PNG at 16 bits.
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _deep_grey(image: PILImage, depth: str, bits: int | None) -> Deep:
    deep = grey_values(image, only_packed=depth == "full")
    deep = deep._replace(bits=bits or deep.bits)
    if image.mode == "I" and image.format == "PPM":  # Pillow rescales every deep PGM to 16 bits and calls it I
        deep = deep._replace(values=deep.values.astype(np.uint16))
    key = image.info.get("transparency")
    if isinstance(key, int):
        deep = deep._replace(alpha=np.where(deep.values == key, 0, 255).astype(np.uint8))
    return deep
