"""Whether two images that an encoder finds alike are copies as wholes: most encoders see the middle square alone.

Small pictures of both are compared tile by tile. Brightness and contrast are matched on the middle. The parts beside it
may differ by little, or by not much more than the middle does: a copy that was made smaller, compressed, sharpened,
made darker or grey differs everywhere alike; another image around the same middle does not.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from PIL import Image

from vitembed.errors import BadImage
from vitembed.images.decode import decode
from vitembed.images.source import ImageRef

MIN_ASPECT = 1.15
"""Of longer to shorter side, from which on so much is cut off that the whole is looked at."""
_SIDE = 48  # the shorter one, in pixels
_MAX_LONG = 32 * _SIDE
_TILE = 8
_ASPECT_TOLERANCE = 1.06
_PERCENTILE = 85  # of tiles: some may differ, as by a date or logo
# Measured on photographs and screenshots, edited and with another surrounding of the same middle.
_MAX_ERROR = 1.0
_MAX_RATIO = 2.5


def is_long(width: int | None, height: int | None) -> bool:
    """Whether a centre crop may miss much of such an image; True where the size is not known."""
    return width is None or height is None or max(width, height) >= MIN_ASPECT * min(width, height)


def whole_image(path: str) -> Float[np.ndarray, "h w 3"] | None:
    """The image, its shorter side 48 pixels; None where it cannot be read."""
    try:
        pixels = Image.fromarray(decode(ImageRef(path), target_px=2 * _SIDE))
    except BadImage:
        return None
    scale = _SIDE / min(pixels.size)
    width, height = (min(_MAX_LONG, max(_SIDE, round(side * scale))) for side in pixels.size)
    return np.asarray(pixels.resize((width, height), Image.Resampling.BOX), np.float32)


def are_alike(first: Float[np.ndarray, "h w 3"], second: Float[np.ndarray, "k v 3"]) -> bool:
    """Whether two small pictures, alike in their middle, are alike beside it too."""
    height, width, _ = first.shape
    aspects = width / height, second.shape[1] / second.shape[0]
    if max(aspects) > _ASPECT_TOLERANCE * min(aspects):
        return False
    if second.shape != first.shape:
        resized = Image.fromarray(second.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)
        second = np.asarray(resized, np.float32)
    left, right = _blurred(first), _blurred(second)
    top, start = (height - _SIDE) // 2, (width - _SIDE) // 2
    middle = slice(top, top + _SIDE), slice(start, start + _SIDE)
    difference = left - _matched(right, left[middle], right[middle])
    inner, outer = list[float](), list[float]()
    for rows in np.array_split(np.arange(height), max(1, round(height / _TILE))):
        for columns in np.array_split(np.arange(width), max(1, round(width / _TILE))):
            tile = np.ix_(rows, columns)
            spread = max(left[tile].std(axis=(0, 1)).mean(), right[tile].std(axis=(0, 1)).mean())
            error = float(np.sqrt(np.square(difference[tile]).mean()) / (6 + spread / 2))
            is_inner = max(abs(rows.mean() - (height - 1) / 2), abs(columns.mean() - (width - 1) / 2)) < _SIDE / 2
            (inner if is_inner else outer).append(error)
    if not outer:
        return True
    allowed = max(_MAX_ERROR, _MAX_RATIO * float(np.percentile(inner, _PERCENTILE))) if inner else _MAX_ERROR
    return float(np.percentile(outer, _PERCENTILE)) <= allowed


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """The mean of 3 x 3 pixels, so that a shift by part of one counts for little."""
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    total = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    blurred: np.ndarray = np.asarray(total) / 9
    return blurred


def _matched(pixels: np.ndarray, wanted: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The pixels with brightness and contrast of each channel such that ``there`` comes nearest to ``wanted``."""
    spread = there.var(axis=(0, 1))
    means, target = there.mean(axis=(0, 1)), wanted.mean(axis=(0, 1))
    together = ((there - means) * (wanted - target)).mean(axis=(0, 1))
    gain = np.where(spread > 4, np.clip(together / np.maximum(spread, 1e-6), 0.5, 2), 1)
    matched: np.ndarray = np.clip((pixels - means) * gain + target, 0, 255)
    return matched
