"""What every format is given: the plain ViT of an encoder, and the facts that travel along with its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitembed.config import to_dict
from vitembed.errors import ModelError
from vitembed.model.patches import resample_pos_embed
from vitembed.model.vit import VisionTransformer

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder


def plain_vit(encoder: Encoder, what: str, other: str) -> VisionTransformer:
    """The encoder's own ViT, in full precision and with every token.

    Args:
        encoder: What is to be exported.
        what: The format, as in ``timm's ViT``.
        other: What to do instead, where it cannot be exported.

    Raises:
        ModelError: If the encoder wraps another library's model, was opened with a ``speed`` that changes vectors, or
            takes images that cannot be cut into its patches.
    """
    if str(encoder.speed) != "exact":
        raise ModelError(
            f"an encoder opened with speed {encoder.speed} cannot be exported, as its vectors are not those of the "
            "exported weights: open it without speed"
        )
    vit: object = encoder.vit
    if not isinstance(vit, VisionTransformer):
        raise ModelError(f"{type(vit).__name__} is not vitembed's own ViT, and {what} cannot hold it: {other}")
    size, patch = encoder.preprocess.img_size, vit.config.patch_size
    if size % patch:
        raise ModelError(f"images of {size} px cannot be cut into {patch}-px patches: give another image size")
    return vit


def positions_at(vit: VisionTransformer, img_size: int) -> Tensor | None:
    """Positions for images of another size as this ViT itself would resize them, [1, m, d]; none with rotary ones.

    Exported, they are the native ones of that size: nobody else has to resize them, and each library does it otherwise.
    """
    if vit.pos_embed is None:
        return None
    side = img_size // vit.config.patch_size
    return resample_pos_embed(
        vit.pos_embed, vit.native_grid, (side, side), vit.num_positioned_prefix, how=vit.config.pos_interpolation
    )


def fixed_parts(vit: VisionTransformer, img_size: int) -> tuple[Tensor | None, Tensor | None]:
    """What goes into the first block whatever the image: prefix tokens with their positions, positions of the patches.

    Returns:
        cls and registers, [1, p, d], none where there are none; positions, [1, n, d], none with rotary ones.
    """
    tokens: list[Tensor] = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    prefix = torch.cat(tokens, dim=1) if tokens else None
    positions = positions_at(vit, img_size)
    num = vit.num_positioned_prefix
    if positions is None:
        return prefix, None
    return prefix if prefix is None or num == 0 else prefix + positions[:, :num], positions[:, num:]


def facts(encoder: Encoder) -> dict[str, Any]:
    """What travels with exported weights, as JSON: preprocessing, pooling, fingerprint, licence, provenance."""
    from vitembed import __version__

    return {
        "made_by": f"vitembed {__version__}",
        "name": encoder.name,
        "fingerprint": encoder.fingerprint,
        "pool": encoder.pool,
        "embed_dim": encoder.embed_dim,
        "architecture": to_dict(encoder.vit.config),
        "preprocess": encoder.preprocess.to_dict(),
        "licence": encoder.licence,
        "provenance": encoder.provenance,
    }
