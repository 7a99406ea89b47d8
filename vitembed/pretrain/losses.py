"""The terms of the objective, each a plain function on tensors, computed in fp32 whatever the precision of the run."""

from __future__ import annotations

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


def alignment_loss(z: Float[Tensor, "v b d"]) -> Float[Tensor, ""]:
    """1 minus the mean cosine between the vectors of two views of the same image, over all pairs of views; in 0..2."""
    unit = F.normalize(z.float(), dim=-1)
    v = unit.shape[0]
    # The squared norm of the sum over views counts every ordered pair once and each view with itself once.
    pairs = unit.sum(0).square().sum(-1).mean() - v
    return 1 - pairs / (v * (v - 1))


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


def info_nce(z: Float[Tensor, "v b d"], temperature: float = 0.2) -> Float[Tensor, ""]:
    """Cross-entropy of finding an image's other view among all views of all other images.

    Source: Chen et al. 2020 (SimCLR), arXiv:2002.05709, equation 1, for two views; for more, the mean over the pairs.
    """
    v, b, d = z.shape
    unit = F.normalize(z.float(), dim=-1).reshape(v * b, d)
    logits = unit @ unit.T / temperature
    image = torch.arange(b, device=z.device).repeat(v)
    same = image.unsqueeze(0) == image.unsqueeze(1)
    others = logits.masked_fill(same, float("-inf")).logsumexp(dim=1, keepdim=True)
    loss = torch.logaddexp(others.expand_as(logits), logits) - logits
    positive = same & ~torch.eye(v * b, dtype=torch.bool, device=z.device)
    return loss[positive].mean()
