"""Several ways of doing the same, each once a round, so that what else the machine does falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Speed(NamedTuple):
    seconds: float
    """Median wall seconds of a call."""
    ratio: float
    """Median over the rounds of the reference's wall seconds over this one's: above 1, this one is the faster."""
    cpu_ratio: float
    """The same in processor time of all threads, which what else the machine does changes little."""


def in_rounds(ways: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 3) -> dict[str, Speed]:
    """Time every way; the first is the reference. The order turns by one place a round.

    Args:
        ways: What to call, by name.
        seconds: Wall time to spend on all of them, beyond a call of each to warm up.
        min_rounds: Rounds at least, whatever the time.
    """
    for work in ways.values():
        work()
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    names, number, end = list(ways), 0, time.perf_counter() + seconds
    while number < min_rounds or time.perf_counter() < end:
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start, cpu_start = time.perf_counter(), time.process_time()
            ways[name]()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
        number += 1
    first = names[0]
    return {
        name: Speed(
            statistics.median(wall[name]),
            statistics.median(a / b for a, b in zip(wall[first], wall[name], strict=True)),
            statistics.median(a / b for a, b in zip(cpu[first], cpu[name], strict=True)),
        )
        for name in names
    }
