"""``torch.compile`` for the transformer blocks, where it pays, and a word where it does not or cannot.

Blocks are compiled, not the whole step: they are where the time goes, all blocks of a network share one compilation,
their shapes hardly change within a run, and weights keep their names. Pictures and scores run uncompiled
(``monitors.py``), as their sizes differ and each would be compiled for a handful of calls.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vitembed.config import PretrainConfig
from vitembed.model.vit import Block
from vitembed.pretrain.masking import num_visible

log = logging.getLogger("vitembed")

WORTH_SECONDS = 900.0
"""Shorter runs do not win back the minute or two that compiling takes."""
LEAST_GAIN = 1.03


def compile_blocks(
    module: nn.Module,
    config: PretrainConfig,
    *,
    device: torch.device,
    batch_size: int,
    dtype: torch.dtype | None,
    max_steps: int | None,
    backend: str | Callable[..., Any] = "inductor",
) -> bool:
    """Compile the blocks in place if ``trainer.compile`` says so, after a trial on one of them; whether they are.

    ``on`` compiles where the trial works. ``auto`` also wants a GPU, a run long enough to win the time back, and a
    block that came out faster. On CPUs it is off: measured at 1.00 to 1.03 of the eager speed (docs/benchmarks.md).

    Args:
        module: Holds the blocks: student, teacher, decoder.
        config: The run.
        device: Where it will run.
        batch_size: Images per step and process.
        dtype: Of autocast; none: full precision.
        max_steps: Length of the run, if steps limit it.
        backend: What compiles, as ``torch.compile`` takes it.
    """
    mode = config.trainer.compile
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    if mode == "off" or not blocks or (mode == "auto" and device.type != "cuda"):
        return False
    vit = config.model.vit()
    tokens = 1 + vit.num_registers + num_visible(vit.num_patches, config.objective.mask_ratio)
    shape = (config.objective.num_views * batch_size, tokens, vit.embed_dim)
    trial = copy.deepcopy(blocks[0]).to(device).train()
    step = _trial_step(trial, shape, device, dtype)
    try:
        eager = _seconds(step, device)
        expected = config.time_budget_seconds or (max_steps or 0) * eager * vit.depth
        if mode == "auto" and expected < WORTH_SECONDS:
            return False
        started = time.monotonic()
        # One compilation per shape, per drop-path rate, and with or without gradients, of the same code.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(blocks))
        torch._inductor.config.fallback_random = True  # stochastic depth draws the same numbers as uncompiled
        trial.compile(dynamic=False, backend=backend)
        compiled = _seconds(step, device)
    except Exception as error:  # compilers fail in every way: no C compiler, no Triton, an operator not supported
        log.info("torch.compile failed, training goes on without it: %s", _first_line(error))
        _forget(trial)
        return False
    gain, took = eager / compiled, time.monotonic() - started
    _forget(trial)
    if mode == "auto" and gain < LEAST_GAIN:
        log.info("torch.compile gains nothing here (a block runs at %.2f of its speed): training without it", gain)
        return False
    for block in blocks:
        block.compile(dynamic=False, backend=backend)
    log.info("torch.compile: blocks run at %.2f times their speed, after %.0f s of compiling", gain, took)
    return True


def uncompile(module: nn.Module) -> None:
    """Undo ``compile_blocks``."""
    for part in module.modules():
        if isinstance(part, Block):
            _forget(part)


def _forget(module: nn.Module) -> None:
    module._compiled_call_impl = None


def _trial_step(
    block: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype | None
) -> Callable[[], None]:
    x = torch.zeros(shape, device=device, requires_grad=True)

    def step() -> None:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            out = block(x)
        out.float().sum().backward()
        block.zero_grad()
        x.grad = None

    return step


def _seconds(step: Callable[[], None], device: torch.device, *, repeats: int = 5) -> float:
    """The shortest of some runs, after one that warms up."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:200]
