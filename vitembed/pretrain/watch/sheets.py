"""Pictures of what the encoder knows: nearest neighbours, and hidden patches painted by the decoder."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from vitembed.model.patches import patchify, unpatchify
from vitembed.pretrain.masking import random_mask
from vitembed.pretrain.module import PretrainModule


def neighbour_sheet(
    images: UInt8[np.ndarray, "n s s 3"],
    vectors: Float[Tensor, "n d"],
    *,
    num_rows: int = 8,
    num_neighbours: int = 8,
) -> Image.Image:
    """One image per row, a gap, then its nearest neighbours (cosine) in the pool, nearest first."""
    unit = F.normalize(vectors.float(), dim=1)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-2)
    count = min(num_neighbours, len(vectors) - 1)
    nearest = similarity.topk(count, dim=1).indices.cpu().numpy()
    queries = np.linspace(0, len(images) - 1, min(num_rows, len(images))).astype(int)
    return grid([[images[q], None, *images[nearest[q]]] for q in queries])


def reconstruction_sheet(
    module: PretrainModule, pixels: Float[Tensor, "b c h w"], generator: torch.Generator
) -> Image.Image:
    """Per image three pictures: what it is, what the encoder saw, what the decoder made of it; two images in a row.

    With ``norm_pix_loss`` the decoder predicts standardised patches; they are shown with the true patch's own mean and
    contrast, as in MAE's figures.

    Args:
        module: Whose encoder and decoder of pixels are asked, in evaluation mode.
        pixels: Normalised images on its device.
        generator: Source of the masks, on that device.
    """
    config = module.config
    patch_size = config.model.patch_size
    side = pixels.shape[-1] // patch_size
    ratio = config.objective.mask_ratio
    mask = random_mask(len(pixels), side * side, ratio, generator=generator, device=pixels.device)
    decoder = module.objective.decoder
    assert decoder is not None
    pred = decoder(module.vit(pixels, mask.ids_keep), mask.ids_restore, grid=(side, side)).float()
    target = patchify(pixels, patch_size).float()
    if config.objective.norm_pix_loss:
        pred = pred * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
    hidden = mask.mask.unsqueeze(-1)
    rows = [target, target * (1 - hidden), target * (1 - hidden) + pred * hidden]
    images = [
        ((unpatchify(row, patch_size, (side, side)) * module.std + module.mean).clamp(0, 1) * 255)
        .byte()
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
        for row in rows
    ]
    triples: list[list[npt.NDArray[np.uint8] | None]] = [[image[i] for image in images] for i in range(len(pixels))]
    if len(triples) % 2:
        return grid(triples)
    return grid([[*left, None, *right] for left, right in zip(triples[::2], triples[1::2], strict=True)])


def grid(rows: list[list[npt.NDArray[np.uint8] | None]], *, cell_px: int = 96, gap_px: int = 4) -> Image.Image:
    """Pictures in rows and columns, each blown up to a cell; None leaves a gap. What is between them is transparent."""
    widths = [gap_px * 3 if image is None else cell_px for image in rows[0]]
    size = (sum(widths) + gap_px * (len(widths) - 1), (cell_px + gap_px) * len(rows) - gap_px)
    canvas = Image.new("RGBA", size, (255, 255, 255, 0))
    for y, row in enumerate(rows):
        x = 0
        for width, image in zip(widths, row, strict=True):
            if image is not None:
                shown = Image.fromarray(image).resize((cell_px, cell_px), Image.Resampling.LANCZOS)
                canvas.paste(shown, (x, y * (cell_px + gap_px)))
            x += width + gap_px
    return canvas
