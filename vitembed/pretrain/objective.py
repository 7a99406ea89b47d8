"""One pass over masked views that teaches the cls vector and the patches.

Each view loses a share of its patches and only the visible ones are encoded. The cls vectors of an image's views
agree and those of different images spread out; a light decoder predicts the hidden patches' pixels from the same pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitembed.config import ObjectiveConfig
from vitembed.model.patches import patchify
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.decoder import Decoder
from vitembed.pretrain.losses import (
    alignment_loss,
    coding_rate,
    info_nce,
    normalise_patches,
    reconstruction_loss,
)
from vitembed.pretrain.masking import random_mask


class ObjectiveOutput(NamedTuple):
    """The loss of a batch and what it is made of."""

    loss: Tensor
    """What is minimised, []."""
    terms: dict[str, Tensor]
    """Each term before its weight, detached, for the log."""


class ProjectionHead(nn.Sequential):
    """cls vector to the space in which views are compared: three linear layers, batch norm and ReLU between.

    Thrown away after training: the layer before it transfers better (Chen et al. 2020, arXiv:2002.05709, section 4.2).
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            nn.BatchNorm1d(hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, out_dim),
        )


class MaskedViews(nn.Module):
    """The objective around an encoder: masked views in, loss and terms out.

    Source: the one-pass combination is CAN (Mishra et al. 2022, arXiv:2210.16870); the agreement and coding-rate
    spread are SimDINO's (arXiv:2502.10385), here without a teacher; the patch term is MAE's (arXiv:2111.06377).
    """

    def __init__(self, vit: VisionTransformer, config: ObjectiveConfig) -> None:
        super().__init__()
        self.vit = vit
        self.config = config
        self.head: ProjectionHead | None = None
        self.decoder: Decoder | None = None
        if config.spread != "none":
            self.head = ProjectionHead(vit.config.embed_dim, config.head_hidden_dim, config.head_dim)
        if config.patch_weight > 0:
            self.decoder = Decoder(
                vit.config,
                img_size=vit.config.img_size,
                embed_dim=config.decoder_dim,
                depth=config.decoder_depth,
            )

    def forward(self, views: Float[Tensor, "v b c h w"], generator: torch.Generator) -> ObjectiveOutput:
        """Loss of one batch.

        Args:
            views: Normalised random views, the same images in the same order in each.
            generator: Source of the masks, on the device of ``views``.
        """
        v, b = views.shape[:2]
        pixels = views.flatten(0, 1)
        patch_size = self.vit.config.patch_size
        num_patches = (pixels.shape[-2] // patch_size) * (pixels.shape[-1] // patch_size)
        mask = random_mask(v * b, num_patches, self.config.mask_ratio, generator=generator, device=pixels.device)
        tokens = self.vit(pixels, mask.ids_keep if self.config.mask_ratio > 0 else None)

        loss = pixels.new_zeros(())
        terms: dict[str, Tensor] = {}
        if self.head is not None:
            z = self.head(tokens.cls).reshape(v, b, -1)
            with torch.autocast(z.device.type, enabled=False):
                cls_loss, cls_terms = self.compare(z.float())
            loss = loss + cls_loss
            terms.update(cls_terms)
        if self.decoder is not None:
            target = patchify(pixels, patch_size)
            if self.config.norm_pix_loss:
                target = normalise_patches(target)
            patch = reconstruction_loss(self.decoder(tokens, mask.ids_restore), target, mask.mask)
            loss = loss + self.config.patch_weight * patch
            terms["patch"] = patch
        return ObjectiveOutput(loss, {name: term.detach() for name, term in terms.items()})

    def compare(self, z: Float[Tensor, "v b d"]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The cls loss: agreement of an image's views, spread over the batch."""
        if self.config.spread == "info_nce":
            contrast = info_nce(z, self.config.temperature)
            return self.config.spread_weight * contrast, {"info_nce": contrast}
        align = alignment_loss(z)
        spread = torch.stack([coding_rate(view, self.config.coding_rate_eps) for view in z]).mean()
        loss = self.config.align_weight * align - self.config.spread_weight * spread
        return loss, {"align": align, "spread": spread}
