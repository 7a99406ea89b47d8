"""Alarms about the training: loss, gradient, data. Each rule gives a message or nothing."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from vitembed.pretrain.watch.history import Context, History

WAIT_SECONDS = 30.0
"""How long a run must wait for images before it is said."""


def loss_flat(history: History, context: Context) -> str | None:
    """Well into the run the loss is where it began."""
    losses = history.values("loss")
    if context.config.adapt.parent is not None:
        return None  # it goes on from a good model, and its weights are ramped up
    if len(losses) < 40 or history.progress < max(0.3, context.settled_from + 0.1):
        return None
    early, late = losses[:8], losses[-max(8, len(losses) // 5) :]
    # Of two values, one early and one late, the early one is larger by chance in a half of the cases (Mann & Whitney).
    if (early[:, None] > late[None, :]).mean() > 0.75:
        return None
    return (
        f"after {history.progress:.0%} of the run the loss has not fallen ({early.mean():.4g} at first, "
        f"{late.mean():.4g} now). What to do: raise optim.base_lr (now {context.config.optim.base_lr:g}) three times, "
        "or lower it three times if optim.grad_clip is at work; a larger optim.batch_size if below 64"
    )


def loss_rising(history: History, context: Context) -> str | None:
    """The loss has clearly risen above what it was, by more than it can by chance."""
    settled = history.values("loss", after=context.settled_from)
    width = max(10, len(settled) // 10)
    if len(settled) < 3 * width:
        return None
    if context.config.objective.teacher and context.compares_views:
        return None  # a better teacher sets harder targets: the loss may rise while the vectors get better
    earlier = settled[: len(settled) // width * width - width].reshape(-1, width)
    best, late = earlier[earlier.mean(axis=1).argmin()], settled[-width:]
    rise, fall = late.mean() - best.mean(), history.values("loss")[:5].mean() - best.mean()
    if rise < max(6 * _noise(best, late), 0.25 * fall, 0.02 * abs(best.mean())):
        return None
    return (
        f"the loss rises: {late.mean():.4g} now, {best.mean():.4g} before. What to do: lower optim.base_lr (now "
        f"{context.config.optim.base_lr:g}) two or three times, or a longer optim.warmup_share (now "
        f"{context.config.optim.warmup_share:g}), and start again with --fresh"
    )


def gradient_explodes(history: History, context: Context) -> str | None:
    """The gradient's norm is ten times what it used to be."""
    norms = history.values("grad_norm")
    if len(norms) < 25:
        return None
    before, now = float(np.median(norms[:-5])), float(np.median(norms[-5:]))
    if now < 10 * before or now < context.config.optim.grad_clip:
        return None
    return (
        f"the gradient explodes: its norm is {now:.3g}, it used to be {before:.3g}. What to do: lower optim.base_lr "
        f"(now {context.config.optim.base_lr:g}); with 16-mixed precision set trainer.precision=32-true"
    )


def always_clipped(history: History, context: Context) -> str | None:
    """Nearly every step is cut short by the clip, and by far."""
    if history.progress < context.config.optim.warmup_share + 0.1:
        return None
    clipped = history.values("grad_clipped", after=history.progress - 0.1)
    norms = history.values("grad_norm", after=history.progress - 0.1)
    if len(norms) < 20 or clipped.mean() < 0.95:
        return None
    norm, clip = float(np.median(norms)), context.config.optim.grad_clip
    if norm < 3 * clip:
        return None
    return (
        f"the gradient is clipped at nearly every step: its norm is {norm:.3g}, optim.grad_clip is {clip:g}, so one "
        f"large term decides every step. What to do: raise optim.grad_clip to {2 * norm:.2g}, or lower the weight of "
        "the largest term"
    )


def waits_for_images(history: History, context: Context) -> str | None:
    """The device waits for images, for half a minute and more."""
    times, waits = history.values("elapsed_seconds"), history.values("data_wait_share")
    if len(times) != len(waits) or len(times) == 0 or times[-1] - times[0] < WAIT_SECONDS:
        return None
    recent = waits[int(np.searchsorted(times, times[-1] - WAIT_SECONDS)) :]
    share = float(np.median(recent))
    if len(recent) < 5 or share <= 0.3:
        return None
    data = context.config.data
    remedy = {
        "ram": "other programs may take the processor; a smaller data.cache_size moves fewer bytes",
        "off": "keep decoded images (data.cache=disk or ram), as each epoch decodes them anew",
    }.get(
        data.cache,
        "data.cache=ram if the images fit in memory, else a workspace on a local SSD (--workspace), or a smaller "
        f"data.cache_size (now {context.config.cache_size} px)",
    )
    return f"the model waits for images {share:.0%} of the time. What to do: {remedy}"


def teacher_equals_student(history: History, context: Context) -> str | None:
    """A cosine between teacher and student, where the objective has one, is 1: nothing is left to predict."""
    if history.progress < context.settled_from:
        return None
    for name in history.columns:
        if not name.endswith("cosine") or name == "mean_cosine":
            continue
        recent = history.values(name)[-10:]
        if len(recent) == 10 and recent.min() > 0.999:
            return (
                f"teacher and student agree completely ({name} {recent[-1]:.4f}): the objective has a trivial answer. "
                f"What to do: raise objective.spread_weight (now {context.config.objective.spread_weight:g}) and "
                f"objective.teacher_momentum (now {context.config.objective.teacher_momentum:g})"
            )
    return None


def _noise(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
