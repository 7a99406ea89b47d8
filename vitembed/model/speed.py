"""Faster embedding as a choice: ``half`` precision, merged tokens (``tome:R``), or both; ``exact`` is the default.

A choice that changes vectors is part of the encoder's fingerprint: a collection of exact vectors refuses a query that
was embedded faster, and the other way round.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitembed.errors import ConfigError, ModelError
from vitembed.model.merging import MergingViT
from vitembed.model.vit import Tokens, VisionTransformer

_RULES = 1
"""Raised whenever the same choice begins to give other vectors."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What may be given up for speed."""

    half: bool = False
    """Products and convolutions of the blocks in 16 bits; sums, norms and the vector itself stay in 32."""
    merged: int = 0
    """Patch tokens that each block merges into their likes (ToMe's ``r``); 0: none."""

    @classmethod
    def parse(cls, text: str | Speed) -> Speed:
        """Read ``exact``, ``half``, ``tome:R`` or ``half+tome:R``; ``tome:0`` is exact.

        Raises:
            ConfigError: If it is something else.
        """
        if isinstance(text, Speed):
            return text
        words = text.split("+")
        merged = [int(found[1]) for word in words if (found := re.fullmatch(r"tome:(\d{1,4})", word))]
        rest = [word for word in words if not word.startswith("tome:")]
        if len(merged) + len(rest) != len(words) or len(merged) > 1 or rest not in ([], ["half"], ["exact"]):
            raise ConfigError(f"unknown speed {text!r}: expected exact, half, tome:R or half+tome:R, such as tome:8")
        if "exact" in rest and merged:
            raise ConfigError(f"speed {text!r} is exact and merges tokens at once: leave one out")
        return cls(half="half" in rest, merged=merged[0] if merged else 0)

    def __str__(self) -> str:
        """Give the text that ``parse`` reads."""
        words = [*(["half"] if self.half else []), *([f"tome:{self.merged}"] if self.merged else [])]
        return "+".join(words) or "exact"

    def mark(self, fingerprint: str) -> str:
        """The fingerprint of an encoder that embeds at this speed; ``exact`` leaves it as it is."""
        if self == Speed():
            return fingerprint
        return hashlib.sha256(f"{fingerprint}:speed:{self}:rules:{_RULES}".encode()).hexdigest()

    def applied(self, vit: nn.Module, device: torch.device) -> Callable[[Tensor], Tokens]:
        """Normalised pixels [b, c, h, w] to tokens at this speed; the weights are shared with ``vit``, not copied.

        Args:
            vit: Our ViT, or another library's model that gives ``Tokens`` (only in half precision).
            device: Where it runs.

        Raises:
            ModelError: If tokens of this architecture cannot be merged.
        """
        if self == Speed():
            return vit
        autocast = partial(torch.autocast, device.type, dtype=half_dtype(device), enabled=self.half)
        if isinstance(vit, VisionTransformer):
            return MergingViT(vit, self.merged, precision=autocast if self.half else contextlib.nullcontext)
        if self.merged:
            raise ModelError(f"speed {self}: {type(vit).__name__} has no tokens to merge; use exact or half")

        def in_half(pixels: Tensor) -> Tokens:
            with autocast():
                tokens = vit(pixels)
            return Tokens(*(part.float() for part in tokens))

        return in_half


def half_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, whose range is that of float32, where the device computes with it; float16 elsewhere."""
    if device.type == "mps" or (device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)):
        return torch.float16
    return torch.bfloat16
