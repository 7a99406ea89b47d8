"""Wilson's interval of a share: right also where the bootstrap is not, with few right or few wrong answers."""

from __future__ import annotations

import math

FEW = 10
"""With fewer right or fewer wrong answers than this the bootstrap is too narrow, and Wilson's interval is given."""
_Z95 = 1.959963984540054  # the standard normal's 97.5 % point


def wilson_interval(num_right: int | float, num: int) -> tuple[float, float]:
    """95 % interval of the share ``num_right / num``, with ``num`` > 0.

    Source: Wilson 1927, JASA 22:209-212.
    """
    share = num_right / num
    centre = (share + _Z95**2 / (2 * num)) / (1 + _Z95**2 / num)
    half = _Z95 / (1 + _Z95**2 / num) * math.sqrt(share * (1 - share) / num + _Z95**2 / (4 * num**2))
    # At 0 and at num the ends are 0 and 1 but for rounding.
    return (0.0 if num_right == 0 else centre - half), (1.0 if num_right == num else centre + half)
