"""What becomes of the encoder when training is over: its cls vector is whitened, in part, on the run's own images."""

from __future__ import annotations

import torch

from vitembed.config import PretrainConfig
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import whitened
from vitembed.pretrain.watch.pool import Encode, Pool

NUM_IMAGES = 2048
"""Images at most whose vectors the map is learned from; more change nothing (docs/experiments.md)."""


def whiten_share(config: PretrainConfig, parent: SavedModel | None) -> float:
    """How far the run whitens what it exports.

    A run that goes on from a model stays in that model's space: it whitens where the model's own vectors are whitened.
    """
    return config.model.whiten if parent is None or parent.vit.config.cls_proj else 0.0


def finished(
    vit: VisionTransformer,
    cache: ImageCache,
    preprocess: Preprocess,
    *,
    share: float,
    device: torch.device = torch.device("cpu"),
    num_images: int = NUM_IMAGES,
) -> VisionTransformer:
    """The encoder to export, on the CPU.

    Args:
        vit: As trained, in evaluation mode.
        cache: The run's images.
        preprocess: How the encoder will see images.
        share: How far its cls vector is whitened.
        device: Where it runs meanwhile.
        num_images: Images at most that are looked at, drawn at random, always the same ones.
    """
    if share == 0:
        return vit
    pool = Pool.held_out(cache, num_images, preprocess)
    mean, std = (torch.tensor(value, device=device).reshape(1, -1, 1, 1) for value in (preprocess.mean, preprocess.std))
    with torch.no_grad():
        vectors = pool.vectors(Encode(vit.to(device), mean, std))
    return whitened(vit.cpu(), vectors, share)


def same_weights(first: VisionTransformer, second: VisionTransformer) -> bool:
    """Whether two encoders of one architecture have the same weights, bit for bit."""
    others = second.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())
