"""What becomes of the encoder when training is over: its cls vector is whitened, in part, on the run's own images."""

from __future__ import annotations

import torch

from vitembed.config import PretrainConfig, ViTConfig
from vitembed.images.cache import ImageCache
from vitembed.images.on_demand import OnDemandImages
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel
from vitembed.model.cost import flops_of
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import whitened
from vitembed.pretrain.watch.pool import Encode, Pool

NUM_IMAGES = 2048
"""Images at most whose vectors the map is learned from; more change nothing (docs/experiments.md)."""
MIN_IMAGES = 256
"""Images at least, as far as there are so many; on CIFAR-10, Fashion-MNIST and emoji 200 were enough."""
_CPU_FLOPS = 10**12
"""What a CPU may spend on them: some ten seconds, as a run with a time budget is over by then."""


def whiten_share(config: PretrainConfig, parent: SavedModel | None) -> float:
    """How far the run whitens what it exports.

    A run that goes on from a model stays in that model's space: it whitens where the model's own vectors are whitened.
    """
    return config.model.whiten if parent is None or parent.vit.config.cls_proj else 0.0


def num_looked_at(config: ViTConfig, cache: ImageCache, device: torch.device) -> int:
    """How many images the map is learned from: fewer where each is dear, on a CPU or decoded anew (``--cache off``)."""
    if isinstance(cache.images, OnDemandImages):
        return MIN_IMAGES
    affordable = _CPU_FLOPS // flops_of(config) if device.type == "cpu" else NUM_IMAGES
    return max(MIN_IMAGES, min(NUM_IMAGES, affordable))


def finished(
    vit: VisionTransformer,
    cache: ImageCache,
    preprocess: Preprocess,
    *,
    share: float,
    device: torch.device = torch.device("cpu"),
    num_images: int | None = None,
) -> VisionTransformer:
    """The encoder to export, on the CPU.

    Args:
        vit: As trained, in evaluation mode.
        cache: The run's images.
        preprocess: How the encoder will see images.
        share: How far its cls vector is whitened.
        device: Where it runs meanwhile.
        num_images: Images at most that are looked at, drawn at random, always the same; none: ``num_looked_at``.
    """
    if share == 0:
        return vit
    num = num_looked_at(vit.config, cache, device) if num_images is None else num_images
    pool = Pool.held_out(cache, num, preprocess)
    mean, std = (torch.tensor(value, device=device).reshape(1, -1, 1, 1) for value in (preprocess.mean, preprocess.std))
    with torch.no_grad():
        vectors = pool.vectors(Encode(vit.to(device), mean, std))
    return whitened(vit.cpu(), vectors, share)


def same_weights(first: VisionTransformer, second: VisionTransformer) -> bool:
    """Whether two encoders of one architecture have the same weights, bit for bit."""
    others = second.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.state_dict().items())
