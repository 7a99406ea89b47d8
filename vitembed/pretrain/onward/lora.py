"""Low-rank changes to the weights of a trained encoder, and their merging back into plain weights."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitembed.model.vit import VisionTransformer


class LoraLinear(nn.Linear):
    """A linear layer whose weight stays and gets ``alpha / rank * lora_b @ lora_a`` added to it.

    It keeps the names ``weight`` and ``bias``, so that the weights of the plain layer load into it. At the start the
    change is zero: ``lora_b`` is.

    Args:
        linear: The layer to change; its weight is shared, and frozen.
        rank: Rank of the change, ``r``.
        alpha: The change is scaled by this over the rank.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1 (equation 3 and the scaling below it).
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The layer with its change."""
        change = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * change

    @torch.no_grad()
    def merged_weight(self) -> Float[Tensor, "o i"]:
        """The weight of the plain layer that does the same; the product is taken in fp64, as it is taken once."""
        change = self.scale * self.lora_b.double() @ self.lora_a.double()
        return (self.weight.double() + change).to(self.weight.dtype)


def add_lora(vit: VisionTransformer, *, num_blocks: int, rank: int, alpha: float) -> None:
    """Change ``vit`` in place: low-rank changes in all blocks but the last ``num_blocks``, which are trained whole.

    Norms are trained everywhere; everything else is frozen.

    Source: Khanna et al. 2024 (ExPLoRA), arXiv:2406.10973: a block or two whole, low-rank changes in the others. Here
    they are in every linear layer of a block.
    """
    vit.requires_grad_(False)
    first_whole = len(vit.blocks) - num_blocks
    for i, block in enumerate(vit.blocks):
        block.requires_grad_(i >= first_whole)
        if i >= first_whole:
            continue
        for parent in (block.attn, block.mlp):
            assert isinstance(parent, nn.Module)
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(parent, name, LoraLinear(layer, rank=rank, alpha=alpha))
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)


def merge_lora(vit: VisionTransformer) -> VisionTransformer:
    """The encoder with its low-rank changes in plain weights: a new one where there are any, else ``vit`` itself."""
    if not any(isinstance(module, LoraLinear) for module in vit.modules()):
        return vit
    merged = copy.deepcopy(vit)
    for module in list(merged.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, LoraLinear):
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
                plain.weight = nn.Parameter(layer.merged_weight())
                plain.bias = layer.bias
                setattr(module, name, plain)
    return merged
