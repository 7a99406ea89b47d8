"""Whether an image has colour."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

_LEVELS = 8
"""Channels that differ by less (of 255, for 99 % of the pixels) are grey: JPEG rounds chroma."""


def is_grey(pixels: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether the three channels are the same but for rounding."""
    spread = pixels.max(axis=-1).astype(np.int16) - pixels.min(axis=-1)
    return bool(np.quantile(spread, 0.99) < _LEVELS)
