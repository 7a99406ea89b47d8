"""Whitening, in part, of the cls vector: no direction drowns the others in a cosine.

Training leaves a few directions of the cls vector with most of its variance, and a cosine hardly sees the rest. A
linear map learned from unlabelled images evens them out; it becomes a part of the encoder (``cls_proj``).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitembed.model.vit import VisionTransformer

MIN_VECTORS = 32
"""From fewer, a covariance says more of these images than of others."""


def whitening(vectors: Float[Tensor, "n d"], share: float) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d"]]:
    """Weight and bias of the linear map that brings vectors ``share`` of the way to equal variance in all directions.

    ``W = C^(-share / 2)``, symmetric, ``b = -W mean``; scaled such that the total variance stays what it was. The
    covariance ``C`` is shrunk, so that directions which these images happen not to use are not blown up.

    Args:
        vectors: Of images that stand for all.
        share: 0 centres alone, 1 whitens fully (ZCA).

    Raises:
        ValueError: If there are fewer than two vectors, or ``share`` is outside 0..1.

    Source: Kessy et al. 2018, arXiv:1512.00809 (ZCA); Ledoit & Wolf 2004 for the covariance. In part rather than fully:
    docs/experiments.md.
    """
    if len(vectors) < 2 or not 0 <= share <= 1:
        raise ValueError(f"need two vectors and a share in 0..1, got {len(vectors)} and {share}")
    x = vectors.double().cpu().numpy()
    from sklearn.covariance import ledoit_wolf  # loaded in seconds, and needed at the end of a training alone

    covariance, _ = ledoit_wolf(x)
    variances, directions = np.linalg.eigh(covariance)
    if variances[-1] <= 0:  # all vectors are the same: there is nothing to even out
        return torch.eye(x.shape[1]), torch.zeros(x.shape[1])
    variances = np.maximum(variances, variances[-1] * 1e-9)
    scale = variances ** (-share / 2)
    scale *= np.sqrt(variances.sum() / (variances * scale**2).sum())
    weight = (directions * scale) @ directions.T
    return torch.from_numpy(weight).float(), torch.from_numpy(-weight @ x.mean(axis=0)).float()


def whitened_vectors(
    vectors: Float[Tensor, "n d"], share: float, *, learned_from: Float[Tensor, "m d"] | None = None
) -> Float[Tensor, "n d"]:
    """Vectors as ``whitened`` would have an encoder give them; themselves for a share of 0 or too few to learn from.

    Args:
        vectors: Of an encoder that is not whitened.
        share: How far, 0..1.
        learned_from: Vectors that the map is learned from; none: ``vectors``.
    """
    source = vectors if learned_from is None else learned_from
    if share == 0 or len(source) < MIN_VECTORS:
        return vectors
    weight, bias = whitening(source, share)
    return vectors @ weight.T + bias


def whitened(vit: VisionTransformer, vectors: Float[Tensor, "n d"], share: float) -> VisionTransformer:
    """The encoder with a cls vector that is whitened in part; itself for a share of 0 or too few vectors.

    Args:
        vit: An encoder without ``cls_proj``; not changed, its weights are shared.
        vectors: Its cls vectors of images that stand for all.
        share: How far, 0..1.
    """
    if share == 0 or len(vectors) < MIN_VECTORS:
        return vit
    return with_cls_proj(vit, *whitening(vectors, share))


def with_cls_proj(vit: VisionTransformer, weight: Float[Tensor, "d d"], bias: Float[Tensor, "d"]) -> VisionTransformer:
    """The encoder with a linear map behind its cls vector; its other weights are shared.

    Raises:
        RuntimeError: If the map is not of the encoder's width.
    """
    return _assembled(vit, {**vit.state_dict(), "cls_proj.weight": weight, "cls_proj.bias": bias}, cls_proj=True)


def without_whitening(vit: VisionTransformer) -> VisionTransformer:
    """The encoder as it was trained, without ``cls_proj``; its weights are shared."""
    if not vit.config.cls_proj:
        return vit
    weights = {name: tensor for name, tensor in vit.state_dict().items() if not name.startswith("cls_proj.")}
    return _assembled(vit, weights, cls_proj=False)


def _assembled(vit: VisionTransformer, weights: dict[str, Tensor], *, cls_proj: bool) -> VisionTransformer:
    with torch.device("meta"):  # no random start
        other = VisionTransformer(dataclasses.replace(vit.config, cls_proj=cls_proj))
    other.load_state_dict(weights, strict=True, assign=True)
    if other.pos_embed is not None:
        other.pos_embed.requires_grad_(vit.config.pos_embed == "learned")
    return other.train(vit.training)
