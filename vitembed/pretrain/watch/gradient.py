"""How large the gradient was before it was clipped, and how often it was, without waiting for the device every step."""

from __future__ import annotations

import torch
from torch import Tensor


class GradientWatch:
    """Collects the norms of gradients over steps, and is read now and then."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []

    def note(self, norm: Tensor | None) -> None:
        """Note the norm at a step, []; it stays where it is."""
        if norm is not None:
            self.norms.append(norm.detach())

    def read(self, clip: float) -> dict[str, float]:
        """``grad_norm`` (median) and ``grad_clipped`` (share of steps above ``clip``) since the last call; starts anew.

        Norms that are not finite, as 16-bit training has now and then, do not count; with no other there is nothing.
        """
        if not self.norms:
            return {}
        norms = torch.stack(self.norms).float().cpu()
        self.norms = []
        norms = norms[norms.isfinite()]
        if len(norms) == 0:
            return {}
        return {"grad_norm": float(norms.median()), "grad_clipped": float((norms > clip).float().mean())}
