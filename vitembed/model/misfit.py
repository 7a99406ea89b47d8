"""An architecture that code for plainer ViTs would treat wrongly: refused in one line, never guessed at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from vitembed.config import ViTConfig
from vitembed.errors import ModelError

_KNOWN = {
    "img_size", "patch_size", "embed_dim", "depth", "num_heads", "in_chans", "mlp_ratio", "qkv_bias", "num_registers",
    "stem", "pos_embed", "no_embed_class", "init_values", "class_token", "pre_norm", "norm_eps", "final_norm", "act",
    "mlp", "pos_interpolation", "attn_pool", "cls_proj", "rope_theta", "rope_periods",
    "drop_path_rate",  # in training alone
}  # fmt: skip
"""Fields of ``ViTConfig`` that exports and token merging know: they carry them, or say themselves that they cannot. Any
other must have its default, so that a new kind of ViT is refused until someone has taught all of them about it."""


def refuse_misfit(config: ViTConfig, what: str, misfits: Sequence[str], other: str) -> None:
    """Refuse an architecture that would come out as another one.

    Args:
        config: The architecture.
        what: What is to take it, as in ``timm's ViT``.
        misfits: Settings already found not to fit, in words.
        other: What to do instead.

    Raises:
        ModelError: If anything does not fit; the message names it all.
    """
    unknown = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in fields(config)
        if field.name not in _KNOWN and getattr(config, field.name) != field.default
    ]
    if found := [*misfits, *unknown]:
        raise ModelError(f"{what} has no {', '.join(found)}: {other}")
