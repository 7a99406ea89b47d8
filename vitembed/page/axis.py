"""Round numbers for an axis."""

from __future__ import annotations

import math


def axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """Ends that hold both values with a little room, and three to six round numbers between them."""
    if high - low < 1e-12 * max(1.0, abs(low)):
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks
