"""An image that is ready for a model, with the size it had in its file."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Loaded(NamedTuple):
    """What loading an image gives."""

    pixels: np.ndarray
    """uint8 RGB ``[s, s, 3]``."""
    full_size: tuple[int, int]
    """Width and height of the upright original, in pixels; (0, 0) where not known."""
