"""One pass over masked views that teaches the cls vector and the patches.

Each view loses a share of its patches and only the visible ones are encoded. The cls vectors of an image's views
agree and those of different images spread out; what was hidden is predicted from the same pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitembed.config import ObjectiveConfig
from vitembed.model.patches import patchify
from vitembed.model.vit import Tokens, VisionTransformer
from vitembed.pretrain.decoder import Decoder
from vitembed.pretrain.losses import (
    alignment_loss,
    centre_alignment,
    coding_rate,
    cosine_regression,
    info_nce,
    latent_patch_loss,
    normalise_patches,
    reconstruction_loss,
    visreg,
)
from vitembed.pretrain.many.gather import SyncedBatchNorm1d, gather_batch, sync_batch_norms
from vitembed.pretrain.masking import Mask, random_mask
from vitembed.pretrain.teacher import Ema


class ObjectiveOutput(NamedTuple):
    """The loss of a batch and what it is made of."""

    loss: Tensor
    """What is minimised, []."""
    terms: dict[str, Tensor]
    """Each term before its weight, detached, for the log."""
    cls: Tensor | None = None
    """cls vectors of the global views with their gradient, [v * b, d], for terms from outside (``adapt.py``)."""


class ProjectionHead(nn.Sequential):
    """cls vector to the space in which views are compared: three linear layers, batch norm and ReLU between.

    No layer works in place: FSDP wraps batch norms on their own, and would lose sight of what they gave.

    Thrown away after training: the layer before it transfers better (Chen et al. 2020, arXiv:2002.05709, section 4.2).
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__(
            nn.Linear(in_dim, hidden_dim, bias=False),
            SyncedBatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim, bias=False),
            SyncedBatchNorm1d(hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, out_dim),
        )


class MaskedViews(nn.Module):
    """The objective around an encoder: masked views in, loss and terms out.

    Source: the one-pass combination is CAN (Mishra et al. 2022, arXiv:2210.16870). The cls terms are those of SimDINO
    (coding rate, arXiv:2502.10385), VISReg (arXiv:2606.02572) or SimCLR (arXiv:2002.05709), with or without a teacher;
    the patch term is MAE's (arXiv:2111.06377) or, with a teacher, close to SimDINOv2's: the teacher's patch vectors
    are predicted by the decoder, without a projection head; the cls regression is data2vec 2.0's (arXiv:2212.07525,
    section 3.2) with a cosine.
    """

    patch_scale: Tensor

    def __init__(self, vit: VisionTransformer, config: ObjectiveConfig) -> None:
        super().__init__()
        sync_batch_norms(vit)
        self.vit = vit
        self.config = config
        dim = vit.config.embed_dim
        self.head = ProjectionHead(dim, config.head_hidden_dim, config.head_dim) if config.spread != "none" else None
        self.decoder: Decoder | None = None
        if config.patch_weight > 0:
            latent = config.patch_target == "latent"
            self.decoder = Decoder(
                vit.config,
                embed_dim=config.decoder_dim,
                depth=config.decoder_depth,
                out_dim=dim if latent else vit.config.patch_size**2 * vit.config.in_chans,
            )
        # A continued run lets the patch loss rise from 0; a buffer, so that a compiled graph stays valid.
        self.register_buffer("patch_scale", torch.ones(()), persistent=False)
        self.cls_predictor = nn.Linear(dim, dim) if config.cls_regression_weight > 0 else None
        self.teacher_vit = Ema(vit) if config.teacher else None
        self.teacher_head = Ema(self.head) if config.teacher and self.head is not None else None

    def forward(
        self,
        views: Float[Tensor, "v b c h w"],
        generator: torch.Generator,
        local_views: Float[Tensor, "l b c hl wl"] | None = None,
    ) -> ObjectiveOutput:
        """Loss of one batch.

        Args:
            views: Normalised random views, the same images in the same order in each.
            generator: Source of the masks, on the device of ``views``.
            local_views: The small views of multi-crop; they take part in the cls loss only.
        """
        v, b = views.shape[:2]
        pixels = views.flatten(0, 1)
        tokens, mask = self.encode(pixels, self.config.mask_ratio, generator)
        teacher = self.teach(pixels)
        terms: dict[str, Tensor] = {}
        weighted: list[Tensor] = []

        if self.head is not None:
            cls = tokens.cls
            if local_views is not None:
                small, _ = self.encode(local_views.flatten(0, 1), self.config.local_mask_ratio, generator)
                cls = torch.cat([cls, small.cls])
            z = self.head(cls).reshape(-1, b, self.config.head_dim)
            target = None
            if self.teacher_head is not None and teacher is not None:
                with torch.no_grad():
                    target = self.teacher_head.module(teacher.cls).reshape(v, b, -1)
            with torch.autocast(z.device.type, enabled=False):
                joint = gather_batch(z.float())
                joint_target = None if target is None else gather_batch(target.float())
                cls_loss, cls_terms = self.compare(joint, joint_target, num_global=v, generator=generator)
            weighted.append(cls_loss)
            terms.update(cls_terms)
        if self.decoder is not None and mask is not None:
            patch = self.patch_loss(tokens, pixels, mask, teacher, count=b * min(self.config.num_patch_views or v, v))
            weighted.append(self.config.patch_weight * self.patch_scale * patch)
            terms["patch"] = patch
        if self.cls_predictor is not None and teacher is not None:
            mean_patch = teacher.patches.float().mean(dim=1)
            regression = cosine_regression(
                self.cls_predictor(tokens.cls), F.layer_norm(mean_patch, mean_patch.shape[-1:])
            ).mean()
            weighted.append(self.config.cls_regression_weight * regression)
            terms["cls_regression"] = regression
        detached = {name: term.detach() for name, term in terms.items()}
        return ObjectiveOutput(torch.stack(weighted).sum(), detached, tokens.cls)

    def encode(
        self, pixels: Float[Tensor, "b c h w"], mask_ratio: float, generator: torch.Generator
    ) -> tuple[Tokens, Mask | None]:
        """Tokens of the patches that stay visible, and which these are; no mask if none is hidden."""
        rows, cols = self.grid(pixels)
        if mask_ratio == 0:
            return self.vit(pixels), None
        mask = random_mask(len(pixels), rows * cols, mask_ratio, generator=generator, device=pixels.device)
        return self.vit(pixels, mask.ids_keep), mask

    def grid(self, pixels: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        patch_size = self.vit.config.patch_size
        return pixels.shape[-2] // patch_size, pixels.shape[-1] // patch_size

    def teach(self, pixels: Float[Tensor, "b c h w"]) -> Tokens | None:
        """What the teacher makes of the whole views; none without a teacher."""
        if self.teacher_vit is None:
            return None
        self.teacher_vit.eval()  # no stochastic depth; the teacher's head does use the statistics of the batch
        with torch.no_grad():
            tokens: Tokens = self.teacher_vit.module(pixels)
        return tokens

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Let the teacher follow, after an optimiser step."""
        if self.teacher_vit is not None:
            self.teacher_vit.update(self.vit, momentum)
        if self.teacher_head is not None and self.head is not None:
            self.teacher_head.update(self.head, momentum)

    def compare(
        self,
        z: Float[Tensor, "v b d"],
        target: Float[Tensor, "g b d"] | None = None,
        *,
        num_global: int,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The cls loss: agreement of an image's views, spread of the global views over the batch.

        Args:
            z: Vectors of all views, the global ones first.
            target: The teacher's vectors of the global views; none: agree with ``z`` itself.
            num_global: Global views, ``g``.
            generator: Source of visreg's directions.
        """
        config = self.config
        goal = z[:num_global] if target is None else target
        terms: dict[str, Tensor] = {}
        if config.spread == "info_nce" or config.contrast_weight > 0:
            terms["info_nce"] = info_nce(z, config.temperature, goal)
        if config.spread == "info_nce":
            return config.spread_weight * terms["info_nce"], terms
        if config.spread == "visreg":
            align = centre_alignment(z, goal)
            directions = torch.randn(z.shape[-1], config.visreg_slices, generator=generator, device=z.device)
            directions = F.normalize(directions, dim=0)
            moments = [visreg(view, directions) for view in z]  # the local views too, as in the paper
            apart = {
                name: torch.stack([getattr(moment, name) for moment in moments]).mean()
                for name in ("center", "scale", "shape")
            }
            terms |= {"align": align, **apart}
            loss = config.align_weight * align + config.spread_weight * torch.stack([*apart.values()]).sum()
        else:
            align = alignment_loss(z, goal)
            spread = torch.stack([coding_rate(view, config.coding_rate_eps) for view in z[:num_global]]).mean()
            terms |= {"align": align, "spread": spread}
            loss = config.align_weight * align - config.spread_weight * spread
        if config.contrast_weight > 0:
            loss = loss + config.contrast_weight * terms["info_nce"]
        return loss, terms

    def patch_loss(
        self, tokens: Tokens, pixels: Float[Tensor, "b c h w"], mask: Mask, teacher: Tokens | None, *, count: int
    ) -> Float[Tensor, ""]:
        """How well the hidden patches of the first ``count`` of the views are predicted."""
        assert self.decoder is not None
        seen, pixels = Tokens(*(part[:count] for part in tokens)), pixels[:count]
        mask = Mask(*(part[:count] for part in mask))
        pred = self.decoder(seen, mask.ids_restore, grid=self.grid(pixels))
        if self.config.patch_target == "latent":
            assert teacher is not None
            target = F.layer_norm(teacher.patches[:count].float(), teacher.patches.shape[-1:])
            return latent_patch_loss(pred, target, mask.mask)
        target = patchify(pixels, self.vit.config.patch_size)
        if self.config.norm_pix_loss:
            target = normalise_patches(target)
        return reconstruction_loss(pred, target, mask.mask)
