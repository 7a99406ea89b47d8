"""How far a run is and what learning rate that means."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from vitembed.config import OptimConfig


def lr_factor(progress: float, *, warmup_share: float, min_ratio: float) -> float:
    """Learning rate over its peak: a linear rise, then half a cosine down to ``min_ratio``.

    Args:
        progress: Share of the run that is done, 0..1.
        warmup_share: Share of the run in which it rises.
        min_ratio: Value at the end.

    Source: Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts; warm-up of Goyal et al. 2017, 1706.02677.
    """
    if progress < warmup_share:
        return progress / warmup_share
    share = min(1.0, (progress - warmup_share) / (1 - warmup_share))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * share))


def scaled_lr(config: OptimConfig, effective_batch_size: int) -> float:
    """Peak learning rate of the run: ``base_lr`` is quoted for 256 images.

    Source: linear, Goyal et al. 2017, arXiv:1706.02677; square root, which suits Adam, Malladi et al. 2022, 2205.10287.
    """
    return config.base_lr * _lr_ratio(config, effective_batch_size)


def scaled_weight_decay(config: OptimConfig, effective_batch_size: int) -> float:
    """Weight decay of the run, such that weights shrink by the same share per image whatever the batch size.

    AdamW shrinks them by learning rate x weight decay a step, and a larger batch takes fewer steps; with the linear
    rule the two cancel out. Source: Wang & Aitchison 2024, arXiv:2405.13698, section 3.
    """
    return config.weight_decay * (effective_batch_size / 256) / _lr_ratio(config, effective_batch_size)


def _lr_ratio(config: OptimConfig, effective_batch_size: int) -> float:
    exponent = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[config.lr_scaling]
    return float((effective_batch_size / 256) ** exponent)


def total_steps(config: OptimConfig, steps_per_epoch: int) -> int:
    """Steps of the whole run."""
    return config.max_steps or max(1, round(config.max_epochs * steps_per_epoch))


@dataclass
class Clock:
    """Progress of a run by steps, or by time where a budget is set; time spent before an interruption counts."""

    max_steps: int | None
    """Steps of the whole run; none when only time limits it."""
    budget_seconds: float | None
    """Seconds for the whole run; none when only steps limit it."""
    spent_before: float = 0.0
    """Seconds that earlier parts of this run took."""
    started: float = 0.0
    """``time.monotonic`` at the start of this part."""
    ended: bool = False
    """Whether the run was ended before its time (``frozen.py``): it is as far as it will get."""

    def start(self) -> None:
        """Begin to count."""
        self.started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds that the run has trained for, earlier parts included."""
        return self.spent_before + (time.monotonic() - self.started if self.started else 0.0)

    def progress(self, step: int) -> float:
        """Share of the run that is done after ``step`` steps, 0..1; whichever limit is nearer counts."""
        if self.ended:
            return 1.0
        by_step = step / self.max_steps if self.max_steps else 0.0
        by_time = self.elapsed() / self.budget_seconds if self.budget_seconds else 0.0
        return min(1.0, max(by_step, by_time))
