"""What all processes of a run decide alike: when to save, when to stop, and how far the run is by the clock.

They agree about once a second, not at every step: asking costs a round trip, and each process has to wait for the
slowest. At which step they ask next is part of what they agree on. The messages go over the processors (gloo), so no
GPU is waited for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vitembed.pretrain.many.gather import is_distributed
from vitembed.pretrain.schedule import Clock

_ASK_SECONDS = 1.0
_MOST_STEPS = 100


@dataclass
class SharedClock(Clock):
    """A clock that shows the same on every process: the time of the first one, extrapolated between agreements."""

    agreed_step: int = 0
    """Step of the last agreement."""
    agreed_seconds: float = 0.0
    """Time that the run had taken then."""
    step_seconds: float = 0.0
    """Time per step since."""

    def progress(self, step: int) -> float:
        """Share of the run that is done after ``step`` steps, 0..1."""
        if self.ended:
            return 1.0
        seconds = self.agreed_seconds + max(0, step - self.agreed_step) * self.step_seconds
        by_step = step / self.max_steps if self.max_steps else 0.0
        by_time = seconds / self.budget_seconds if self.budget_seconds else 0.0
        return min(1.0, max(by_step, by_time))


@dataclass
class Wishes:
    """What any process may ask for, and so all do."""

    stop: bool = False
    """End the run after this step: a signal came."""
    save: bool = False
    """Save the state now."""
    bad_step: int = -1
    """The step whose loss was no number, -1 if none was (``nonfinite.py``)."""
    failed: bool = False
    """A state could not be written: all end."""


class Agreement:
    """Keeps the processes of a run together; with one process everything is what it asks for itself.

    Args:
        clock: The run's; set from the first process at each agreement.
        every_seconds: Time between agreements.
    """

    def __init__(self, clock: Clock, *, every_seconds: float = _ASK_SECONDS) -> None:
        self.clock = clock
        self.every_seconds = min(every_seconds, _ASK_SECONDS)
        self.group: dist.ProcessGroup | None = None
        self.next_step = 0
        """The step at which all ask."""
        self._asked_at = 0.0
        self._asked_step = 0

    def start(self, step: int) -> None:
        """Begin at a step, the same on every process."""
        if is_distributed() and self.group is None:
            self.group = dist.new_group(backend="gloo")
        self.next_step = step + 1
        self._asked_at, self._asked_step = time.monotonic(), step
        self.agree(Wishes(), step)

    def due(self, step: int) -> bool:
        """Whether all ask after this step."""
        return self.group is None or step >= self.next_step

    def agree(self, mine: Wishes, step: int) -> Wishes:
        """What all processes wish together; every process has to call it at the same step."""
        if self.group is None:
            return mine
        now = time.monotonic()
        step_seconds = (now - self._asked_at) / max(1, step - self._asked_step)
        ahead = min(_MOST_STEPS, max(1, int(self.every_seconds / max(step_seconds, 1e-6))))
        # The first process's clock counts: the others stand back in a maximum.
        first = dist.get_rank() == 0
        budget = self.clock.budget_seconds or -1.0
        times = [self.clock.elapsed(), step_seconds, float(ahead), budget] if first else [-1.0] * 4
        numbers = [*times, float(mine.stop), float(mine.save), float(mine.bad_step), float(mine.failed)]
        message = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(message, dist.ReduceOp.MAX, group=self.group)
        seconds, step_seconds, ahead_, budget, stop, save, bad_step, failed = message.tolist()
        self.next_step = step + int(ahead_)
        self._asked_at, self._asked_step = now, step
        if isinstance(self.clock, SharedClock):
            self.clock.budget_seconds = budget if budget > 0 else None
            # What the clock showed is never taken back: a rate that falls does not rise again.
            shown = self.clock.progress(step) * (self.clock.budget_seconds or 0.0)
            self.clock.agreed_step, self.clock.agreed_seconds = step, max(seconds, shown)
            self.clock.step_seconds = step_seconds
        return Wishes(bool(stop), bool(save), int(bad_step), bool(failed))
