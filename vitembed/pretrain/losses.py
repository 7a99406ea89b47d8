"""The terms of the objective, each a plain function on tensors, computed in fp32 whatever the precision of the run."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def reconstruction_loss(
    pred: Float[Tensor, "b n p"], target: Float[Tensor, "b n p"], mask: Float[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Mean squared pixel error over the removed patches only.

    Args:
        pred: Decoder output, one row of pixels per patch.
        target: Patches to match; standardised per patch when ``norm_pix_loss`` is on.
        mask: 1 where the patch was removed, 0 where the encoder saw it; at least one patch is removed.

    Source: He et al. 2021, arXiv:2111.06377, section 3, "Reconstruction target".
    """
    error = (pred.float() - target.float()).square().mean(dim=-1)
    return (error * mask).sum() / mask.sum()


def normalise_patches(patches: Float[Tensor, "b n p"], eps: float = 1e-6) -> Float[Tensor, "b n p"]:
    """Each patch with mean 0 and variance 1 (``norm_pix_loss``); variance is the unbiased one, as in MAE."""
    patches = patches.float()
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + eps).sqrt()


def alignment_loss(z: Float[Tensor, "v b d"], target: Float[Tensor, "g b d"] | None = None) -> Float[Tensor, ""]:
    """1 minus the mean cosine between an image's views and the global views of it, never a view with itself; in 0..2.

    Args:
        z: Vectors of all views, the ``g`` global ones first.
        target: Vectors of the global views to agree with, such as a teacher's; none: ``z``, all of whose views are
            global then.

    Source: the similarity term of SimDINO, arXiv:2502.10385, section 3; over all ordered pairs of different views.
    """
    unit = F.normalize(z.float(), dim=-1)
    goal = unit if target is None else F.normalize(target.float(), dim=-1)
    v, g = unit.shape[0], goal.shape[0]
    # The sums over views multiply out to every pair; a view with itself is taken off again.
    every = (unit.sum(0) * goal.sum(0)).sum(-1).mean()
    itself = (unit[:g] * goal).sum(-1).mean(-1).sum()
    return 1 - (every - itself) / (v * g - g)


def coding_rate(z: Float[Tensor, "b d"], eps: float = 0.05) -> Float[Tensor, ""]:
    """How many nats the unit vectors of a batch take to code to precision ``eps``: high when they spread out.

    ``(b + d) / (2 b d) * logdet(I + d / (b eps) * Z^T Z)``: 0 or nearly so for collapsed vectors.

    Source: Wu et al. 2025, "Simplifying DINO via coding rate regularization", arXiv:2502.10385, section 3, with the
    balance factor of their code. Here without a teacher and per view.
    """
    unit = F.normalize(z.float(), dim=-1)
    b, d = unit.shape
    gram = unit.T @ unit if d <= b else unit @ unit.T  # logdet(I + A A^T) = logdet(I + A^T A)
    identity = torch.eye(gram.shape[0], device=gram.device)
    # cholesky_ex neither waits for the GPU nor stops at input that is not finite: the loss is checked as a whole.
    factor: Tensor = torch.linalg.cholesky_ex(identity + d / (b * eps) * gram).L
    return (b + d) / (b * d) * factor.diagonal().log().sum()


def info_nce(
    z: Float[Tensor, "v b d"], temperature: float = 0.2, target: Float[Tensor, "g b d"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy of finding an image's other global view among the global views of all other images.

    Args:
        z: Vectors of all views, the ``g`` global ones first.
        temperature: What cosines are divided by.
        target: Vectors of the global views to be found, such as a teacher's; none: ``z``, all of whose views are
            global then.

    Source: Chen et al. 2020 (SimCLR), arXiv:2002.05709, equation 1, for two views; for more, the mean over the pairs.
    With a teacher's ``target`` the keys are another network's, as in MoCo v3 (arXiv:2104.02057, equation 1).
    """
    v, b, d = z.shape
    unit = F.normalize(z.float(), dim=-1)
    keys = unit if target is None else F.normalize(target.float(), dim=-1)
    g = keys.shape[0]
    logits = unit.reshape(v * b, d) @ keys.reshape(g * b, d).T / temperature
    image = torch.arange(b, device=z.device)
    same = image.repeat(v).unsqueeze(1) == image.repeat(g).unsqueeze(0)
    others = logits.masked_fill(same, float("-inf")).logsumexp(dim=1, keepdim=True)
    loss = torch.logaddexp(others.expand_as(logits), logits) - logits
    view, key_view = (torch.arange(n, device=z.device).repeat_interleave(b) for n in (v, g))
    positive = same & (view.unsqueeze(1) != key_view.unsqueeze(0))
    # A sum over all places, as picking the positive ones would wait for the GPU to tell how many there are.
    return torch.where(positive, loss, 0.0).sum() / (b * g * (v - 1))


def centre_alignment(z: Float[Tensor, "v b d"], target: Float[Tensor, "g b d"]) -> Float[Tensor, ""]:
    """Mean squared distance of each view's vector from the mean of the image's global views.

    Source: Wu et al. 2026 (VISReg), arXiv:2606.02572, equation 8; first in LeJEPA, arXiv:2511.08544.
    """
    return (z.float() - target.float().mean(0, keepdim=True)).square().mean()


class Moments(NamedTuple):
    """How far the vectors of a batch are from a standard Gaussian: VISReg's three terms, each 0 at best."""

    center: Tensor
    """Mean square of the batch mean: not centred at 0."""
    scale: Tensor
    """Mean square of 1 - standard deviation over the batch: too narrow (collapsed) or too wide."""
    shape: Tensor
    """Sliced Wasserstein distance of the standardised batch: dimensions that depend on each other, clumps."""


def visreg(z: Float[Tensor, "b d"], directions: Float[Tensor, "d s"], eps: float = 1e-4) -> Moments:
    """Center, scale and shape of a batch, to be made small.

    Args:
        z: Vectors of different images.
        directions: Random unit columns on which the batch is looked at; new ones at each step.
        eps: Added to the standard deviation that is divided by.

    The shape looks at the batch standardised by its mean and its standard deviation, of which the latter passes no
    gradient: else a collapsed dimension would be blown up by the shape instead of by the scale. Each direction's
    sorted projections are compared with the quantiles i / (b + 1) of the standard normal distribution.

    Source: Wu et al. 2026, arXiv:2606.02572, equations 6 (center), 1 (scale), 2 and 5 (shape).
    """
    z = z.float()
    mean, std = z.mean(0), z.std(0, correction=0)
    projected = ((z - mean) / (std.detach() + eps)) @ directions.float()
    ranks = torch.arange(1, z.shape[0] + 1, device=z.device, dtype=z.dtype) / (z.shape[0] + 1)
    quantiles = torch.special.ndtri(ranks).unsqueeze(1)
    return Moments(
        center=mean.square().mean(),
        scale=(1 - std).square().mean(),
        shape=(projected.sort(dim=0).values - quantiles).square().mean(),
    )


def cosine_regression(pred: Float[Tensor, "... d"], target: Float[Tensor, "... d"]) -> Float[Tensor, "..."]:
    """1 minus the cosine of each prediction with its target, which gets no gradient; in 0..2."""
    return 1 - F.cosine_similarity(pred.float(), target.detach().float(), dim=-1)


def latent_patch_loss(
    pred: Float[Tensor, "b n d"], target: Float[Tensor, "b n d"], mask: Float[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """1 minus the cosine between what is predicted of a removed patch and the teacher's vector of it; in 0..2.

    Args:
        pred: One vector per patch.
        target: The teacher's, which saw the whole view.
        mask: 1 where the patch was removed, 0 where the encoder saw it; at least one patch is removed.

    Source: SimDINOv2's patch term, arXiv:2502.10385, section 3 (iBOT's, arXiv:2111.07832, with cosines in place of
    prototypes).
    """
    return (cosine_regression(pred, target) * mask).sum() / mask.sum()
