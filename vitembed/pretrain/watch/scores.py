"""Scores of vectors that need no labels: whether they use the space, and whether they know an image again."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def rankme(vectors: Float[Tensor, "n d"]) -> float:
    """Effective number of dimensions that the vectors use: exp of the entropy of their singular values; 1..min(n, d).

    Near 1 means collapse. Source: Garrido et al. 2023, arXiv:2210.02885, equation 1.
    """
    values = torch.linalg.svdvals(vectors.float())
    share = values / values.sum().clamp(min=1e-12)
    return float(torch.special.entr(share).sum().exp())


def view_retrieval(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> float:
    """Share of images whose other view is the nearest (cosine) among the other views of all images; 0..1.

    Chance is 1/n. Where several are equally near (as when all vectors are the same), the image gets its share of one.
    """
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T
    tied = similarity >= similarity.max(dim=1, keepdim=True).values
    return float((tied.diagonal().float() / tied.sum(dim=1)).mean())


def mean_cosine(vectors: Float[Tensor, "n d"]) -> float:
    """Mean cosine between the vectors of different images; 1 when all point the same way. -1..1.

    Raises:
        ValueError: If there are fewer than two vectors.
    """
    n = len(vectors)
    if n < 2:
        raise ValueError(f"a mean over pairs needs at least 2 vectors, got {n}")
    unit = F.normalize(vectors.double(), dim=1)
    # The squared norm of the sum counts every ordered pair once, and each vector with itself once.
    return float((unit.sum(dim=0).square().sum() - unit.square().sum()) / (n * (n - 1)))


def standard_error(share: float, num: int) -> float:
    """Standard error of a share that was counted on ``num`` images; not 0 where none or all were right."""
    return math.sqrt(max(share * (1 - share), 1 / num) / num)
