"""What a person can look at while the encoder learns: reconstruction and neighbour pictures, rank, view retrieval.

None of it needs labels, and none of it changes the run: the monitors draw from a generator of their own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vitembed.model.patches import patchify, unpatchify
from vitembed.pretrain.batches import BatchStream, ImageBatch
from vitembed.pretrain.files import PICTURES_DIR
from vitembed.pretrain.masking import random_mask
from vitembed.pretrain.module import PretrainModule


def rankme(vectors: Float[Tensor, "n d"]) -> float:
    """Effective number of dimensions that the vectors use: exp of the entropy of their singular values; 1..min(n, d).

    Near 1 means collapse. Source: Garrido et al. 2023, arXiv:2210.02885, equation 1.
    """
    values = torch.linalg.svdvals(vectors.float())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(share).sum().exp())


def view_retrieval(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> float:
    """Share of images whose other view is the nearest (cosine) among the other views of all images; 0..1."""
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T
    return float((similarity.argmax(dim=1) == torch.arange(len(similarity), device=similarity.device)).float().mean())


class Monitors(pl.Callback):
    """Pictures and label-free scores at a few points of the run, the end included.

    Args:
        stream: Where the images come from.
        directory: Run folder; pictures go to ``pictures/`` in it.
        num_times: How often.
        holdout: Images that are looked at.
    """

    def __init__(self, stream: BatchStream, directory: Path, *, num_times: int, holdout: int) -> None:
        self.directory = directory / PICTURES_DIR
        self.num_times = num_times
        self.due = 1
        self.latest: dict[str, float] = {}
        """The newest scores; written beside the losses."""
        total = len(stream.cache.refs)
        rows = np.random.default_rng(0).choice(total, size=min(holdout, total), replace=False)
        rows.sort()
        self.batch: ImageBatch = {
            "images": torch.from_numpy(np.ascontiguousarray(stream.cache.images[rows])),
            "aspect": torch.from_numpy(np.ascontiguousarray(stream.cache.aspect[rows])),
        }

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Skip what an earlier part of the run has shown already."""
        assert isinstance(module, PretrainModule)
        self.due = 1 + int(module.clock.progress(trainer.global_step) * self.num_times)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Look when the next point of the run is reached."""
        assert isinstance(module, PretrainModule)
        if self.num_times and module.clock.progress(trainer.global_step) * self.num_times >= self.due:
            self.due += 1
            if trainer.is_global_zero:
                self.look(module, trainer.global_step)

    def look(self, module: PretrainModule, step: int) -> None:
        """Write the pictures and compute the scores."""
        was_training = module.training
        module.eval()
        with torch.no_grad():
            batch: ImageBatch = {
                "images": self.batch["images"].to(module.device),
                "aspect": self.batch["aspect"].to(module.device),
            }
            generator = torch.Generator(device=module.device).manual_seed(0)
            first, second = (
                (module.vit(view).cls for view in module.views(batch, generator)[:2].unbind())
                if (module.config.objective.num_views > 1)
                else (None, None)
            )
            whole = self.whole(module, batch)
            vectors = module.vit(whole).cls
            self.latest = {"rankme": rankme(vectors - vectors.mean(dim=0))}
            if first is not None and second is not None:
                self.latest["view_retrieval"] = view_retrieval(first, second)
            self.directory.mkdir(parents=True, exist_ok=True)
            self.neighbour_sheet(vectors).save(self.directory / f"neighbours-{step:07d}.png")
            if module.objective.decoder is not None:
                sheet = reconstruction_sheet(module, whole[:: max(1, len(whole) // 8)][:8], generator)
                sheet.save(self.directory / f"reconstruction-{step:07d}.png")
        module.train(was_training)

    def whole(self, module: PretrainModule, batch: ImageBatch) -> Tensor:
        """The images uncropped at the size of a view, normalised."""
        pixels = batch["images"].permute(0, 3, 1, 2).float() / 255
        side = module.config.model.img_size
        pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return (pixels - module.mean) / module.std

    def neighbour_sheet(self, vectors: Tensor, *, num_rows: int = 8, num_neighbours: int = 8) -> Image.Image:
        """One image per row, a gap, then its nearest neighbours in the held-out pool, nearest first."""
        similarity = F.normalize(vectors.float(), dim=1) @ F.normalize(vectors.float(), dim=1).T
        similarity.fill_diagonal_(-2)
        count = min(num_neighbours, len(vectors) - 1)
        nearest = similarity.topk(count, dim=1).indices.cpu().numpy()
        images = self.batch["images"].numpy()
        queries = np.linspace(0, len(images) - 1, min(num_rows, len(images))).astype(int)
        return grid([[images[q], None, *images[nearest[q]]] for q in queries])


def reconstruction_sheet(
    module: PretrainModule, pixels: Float[Tensor, "b c h w"], generator: torch.Generator
) -> Image.Image:
    """Per image a row: what it is, what the encoder saw, what the decoder made of it.

    With ``norm_pix_loss`` the decoder predicts standardised patches; they are shown with the true patch's own mean and
    contrast, as in MAE's figures.
    """
    config = module.config
    patch_size = config.model.patch_size
    side = pixels.shape[-1] // patch_size
    ratio = config.objective.mask_ratio
    mask = random_mask(len(pixels), side * side, ratio, generator=generator, device=pixels.device)
    decoder = module.objective.decoder
    assert decoder is not None
    pred = decoder(module.vit(pixels, mask.ids_keep), mask.ids_restore).float()
    target = patchify(pixels, patch_size)
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
    return grid([[image[i] for image in images] for i in range(len(pixels))])


def grid(rows: list[list[npt.NDArray[np.uint8] | None]], *, cell_px: int = 96, gap_px: int = 4) -> Image.Image:
    """Pictures in rows and columns, each blown up to a cell; None leaves a narrow gap."""
    widths = [gap_px * 3 if image is None else cell_px for image in rows[0]]
    canvas = Image.new("RGB", (sum(widths) + gap_px * len(widths), (cell_px + gap_px) * len(rows)), "white")
    for y, row in enumerate(rows):
        x = 0
        for width, image in zip(widths, row, strict=True):
            if image is not None:
                shown = Image.fromarray(image).resize((cell_px, cell_px), Image.Resampling.LANCZOS)
                canvas.paste(shown, (x, y * (cell_px + gap_px)))
            x += width + gap_px
    return canvas
