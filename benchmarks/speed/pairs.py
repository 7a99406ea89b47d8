"""Two ways of doing the same, timed in turn, so that what else the machine does falls on both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Pair(NamedTuple):
    first: float
    """Median seconds of the first."""
    second: float
    ratio: float
    """Median over the pairs of second over first: above 1, the first is the faster."""


Clock = Callable[[], float]
"""``time.perf_counter``, or ``time.process_time``: of all threads, and the same however busy the machine is."""


def timed(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start


def in_turn(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    pairs: int = 5,
    clock: Clock = time.perf_counter,
) -> Pair:
    first(), second()  # to warm up
    times = []
    for number in range(pairs):
        if number % 2:
            b, a = timed(second, clock), timed(first, clock)
        else:
            a, b = timed(first, clock), timed(second, clock)
        times.append((a, b))
    return summary(times)


def summary(times: list[tuple[float, float]]) -> Pair:
    firsts, seconds = zip(*times, strict=True)
    return Pair(statistics.median(firsts), statistics.median(seconds), statistics.median(b / a for a, b in times))
