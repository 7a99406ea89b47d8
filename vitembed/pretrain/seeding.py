"""Seeds the generators that a step draws from, without the price of ``torch.manual_seed``."""

from __future__ import annotations

import torch


def seed_step(seed: int, device: torch.device) -> torch.Generator:
    """Seed the global generators of the CPU and of the training device; a fresh generator on the device, seeded alike.

    ``torch.manual_seed`` seeds every kind of accelerator. Where one is compiled in but not in use, it puts the call off
    together with a formatted traceback: 2 ms per step, and a list that grows with each.

    Args:
        seed: 0 <= seed < 2**63.
        device: Where the step runs.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
    return torch.Generator(device=device).manual_seed(seed)
