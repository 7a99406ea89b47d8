"""Token merging (ToMe): every block merges its most alike patch tokens, so that later blocks have fewer to look at.

No training is needed and no weight changes. The cls vector and the registers are never merged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitembed.model.blocks import Block
from vitembed.model.misfit import refuse_misfit
from vitembed.model.vit import Tokens, VisionTransformer


class Match(NamedTuple):
    """Which tokens of a sequence become one: tokens at even places (A) join ones at odd places (B), or stay."""

    joining: Tensor
    """Places in A of the tokens that join, the most alike first, [b, r]."""
    partners: Tensor
    """For each of them its place in B, [b, r]."""
    staying: Tensor
    """Places in A of the others, rising, [b, a - r]."""


def match_tokens(keys: Float[Tensor, "b n c"], num_merged: int) -> Match:
    """Bipartite soft matching: each A token looks for its nearest B token; the nearest ``r`` pairs are taken.

    Args:
        keys: What tokens are compared by (cosine).
        num_merged: ``r``, at most half of the tokens.

    Source: Bolya et al. 2022, arXiv:2210.09461, section 3, "Bipartite soft matching", steps 1-3.
    """
    unit = F.normalize(keys.float(), dim=-1)
    likeness, partners = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
    order = likeness.argsort(dim=-1, descending=True, stable=True)
    joining = order[:, :num_merged]
    return Match(joining, partners.gather(1, joining), order[:, num_merged:].sort(dim=-1).values)


def merge_tokens(
    x: Float[Tensor, "b n d"], size: Float[Tensor, "b n"], match: Match
) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m"]]:
    """Tokens that stay, then all B tokens, each the mean of what joined it, weighted by how many patches each holds.

    Args:
        x: Tokens.
        size: How many patches each token stands for.
        match: Which join.

    Returns:
        The ``m = n - r`` tokens and their sizes.

    Source: Bolya et al. 2022, section 3, steps 4-5, and "Tracking token size".
    """
    weighted = torch.cat([x * size.unsqueeze(-1).to(x.dtype), size.unsqueeze(-1).to(x.dtype)], dim=-1)
    a, b = weighted[:, ::2], weighted[:, 1::2]
    wide = (-1, -1, weighted.shape[-1])
    b = b.scatter_add(
        1, match.partners.unsqueeze(-1).expand(wide), a.gather(1, match.joining.unsqueeze(-1).expand(wide))
    )
    merged = torch.cat([a.gather(1, match.staying.unsqueeze(-1).expand(wide)), b], dim=1)
    return merged[..., :-1] / merged[..., -1:], merged[..., -1].to(size.dtype)


def new_places(match: Match, num_tokens: int) -> Int[Tensor, "b n"]:
    """For each token of the sequence before merging its place in the one that ``merge_tokens`` gives."""
    staying, joining = match.staying, match.joining
    b, num_stay = staying.shape
    places = torch.empty(b, num_tokens, dtype=torch.long, device=staying.device)
    places[:, 1::2] = torch.arange(num_tokens // 2, device=staying.device) + num_stay
    in_order = torch.arange(num_stay, device=staying.device).expand(b, -1)
    places.scatter_(1, staying * 2, in_order)
    places.scatter_(1, joining * 2, match.partners + num_stay)
    return places


class MergingViT:
    """A ViT that merges tokens while it encodes, on the weights of the given one.

    Patch tokens come back in full number, each patch with the vector of the token that it became part of (unmerged), so
    that every way of pooling goes on working; their mean is the mean of the merged tokens weighted by size.

    Args:
        vit: The ViT whose blocks are run.
        num_merged: Patch tokens that each block merges (the paper's ``r``); fewer where fewer than twice as many are
            left. With 0 the result is that of ``vit``, bit for bit.
        precision: Gives what is entered around the blocks, such as ``torch.autocast``; patch embedding and last norm
            stay outside, and with them the sums over the blocks.

    Raises:
        ModelError: If the architecture has parts that know where each token lies, which merged tokens have not.

    Source: Bolya et al. 2022, "Token merging: your ViT but faster", arXiv:2210.09461, section 3: keys as the measure,
    merging between attention and MLP, proportional attention (equation 1). Differs: the two sets are places in the
    sequence of patches alone, which is how cls and registers stay out of it.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        num_merged: int,
        *,
        precision: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        if num_merged:
            misfits = (
                ["pos_embed='rope' (a merged token lies at no one place)"] if vit.config.pos_embed == "rope" else []
            )
            refuse_misfit(vit.config, "token merging (speed tome)", misfits, "use speed exact or half")
        self.vit = vit
        self.num_merged = num_merged
        self.precision = precision

    def __call__(self, pixels: Float[Tensor, "b c h w"]) -> Tokens:
        """Encode a batch of normalised images."""
        vit, prefix = self.vit, self.vit.num_prefix
        x, rope = vit.embed_tokens(pixels, None), vit.rope(pixels, None)
        size: Tensor | None = None
        places = torch.arange(x.shape[1] - prefix, device=x.device).expand(len(x), -1)
        with self.precision():
            for block in vit.blocks:
                r = min(self.num_merged, (x.shape[1] - prefix) // 2)
                if r == 0 and size is None:
                    x = block(x) if rope is None else block(x, rope)
                    continue
                x, size, moved = _merging_block(cast(Block, block), x, size, prefix, r)
                places = moved.gather(1, places)
        x = vit.norm(x)
        if size is not None:
            patches = x[:, prefix:].gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
            x = torch.cat([x[:, :prefix], patches], dim=1)
        return vit.projected(vit.split(x))


def _merging_block(block: Block, x: Tensor, size: Tensor | None, prefix: int, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """One block that merges ``r`` tokens between attention and MLP: tokens, their sizes, new places of the patches."""
    attn = block.attn
    b, t, d = x.shape
    qkv = attn.qkv(block.norm1(x)).reshape(b, t, 3, attn.num_heads, d // attn.num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    # A token that stands for s patches is looked at like s tokens: softmax(q k / sqrt(d) + log s).
    bias = None if size is None else size.log().to(q.dtype)[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    x = x + block.ls1(attn.proj(mixed.transpose(1, 2).reshape(b, t, d)))

    if size is None:
        size = x.new_ones(b, t)
    match = match_tokens(k[:, :, prefix:].mean(dim=1), r)
    moved = new_places(match, t - prefix)
    patches, patch_size = merge_tokens(x[:, prefix:], size[:, prefix:], match)
    x = torch.cat([x[:, :prefix], patches], dim=1)
    size = torch.cat([size[:, :prefix], patch_size], dim=1)
    return x + block.ls2(block.mlp(block.norm2(x))), size, moved
