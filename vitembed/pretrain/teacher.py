"""Slow copies of a network: the teacher of the objective, and the average of weights that is exported."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """An exponential moving average of a module, without gradients; its weights travel in the state dict.

    Args:
        source: The module to follow; the copy starts equal to it.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def update(self, source: nn.Module, momentum: float) -> None:
        """Move towards ``source``: ``momentum`` of the old weights, the rest of the new; buffers are copied.

        Source: Grill et al. 2020, arXiv:2006.07733, equation 1.
        """
        old, new = _trained(self.module), _trained(source)
        torch._foreach_lerp_(old, new, 1.0 - momentum)
        for mine, theirs in zip(self.module.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)


def _trained(module: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in cast("Iterable[Tensor]", module.parameters())]


def teacher_momentum(start: float, progress: float, *, effective_batch_size: int) -> float:
    """Momentum of the teacher: from ``start`` to 1 along half a cosine, scaled with the batch size.

    Args:
        start: Momentum at the beginning, per step of 256 images.
        progress: Share of the run that is done, 0..1.
        effective_batch_size: Images per step over all processes.

    Source: the cosine is that of BYOL (arXiv:2006.07733, section 3.3); the exponent is the scaling rule of Busbridge
    et al. 2023, arXiv:2307.13813, definition 1.2: ``momentum ** (batch / 256)``.
    """
    momentum = 1.0 - (1.0 - start) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return scaled_momentum(momentum, effective_batch_size)


def scaled_momentum(momentum: float, effective_batch_size: int) -> float:
    """A momentum that is quoted per step of 256 images, for steps of another size (arXiv:2307.13813)."""
    return float(momentum ** (effective_batch_size / 256))


def average_momentum(momentum: float, step: int, *, effective_batch_size: int) -> float:
    """Momentum of the average that is exported: smaller in the first steps, so that the random start is forgotten.

    Args:
        momentum: The final momentum, per step of 256 images.
        step: Steps done.
        effective_batch_size: Images per step over all processes.
    """
    return min(scaled_momentum(momentum, effective_batch_size), (1 + step) / (10 + step))
