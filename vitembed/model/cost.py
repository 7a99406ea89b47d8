"""What a vision transformer costs: arithmetic, memory and attention, from its architecture and the size of the image.

FLOPs count a multiply-add as two, of the matrix products and convolutions alone, as ``torch.utils.flop_counter`` does.
Memory is that of fp32 on one device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vitembed.config import ViTConfig
from vitembed.errors import ConfigError
from vitembed.model.vit import VisionTransformer

TRAINED_BYTES = 16
"""Bytes per trained number in fp32: itself, its gradient and AdamW's two moments."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One architecture at one size of image."""

    img_size: int
    """Side of the image in pixels."""
    patch_size: int
    """Side of a patch in pixels."""
    num_tokens: int
    """Patches, cls and registers."""
    num_params: int
    """Weights, positions included."""
    flops: int
    """Of one image on its way to vectors."""
    attention_pairs: int
    """Pairs of tokens that each head of each block compares."""
    raw_pixel_pairs: int
    """Pairs that it would compare if every colour value of the image were a token."""
    batch_size: int
    """Images that the memory is for."""
    embed_bytes: int
    """Peak of embedding a batch, weights included."""
    train_bytes: int
    """Peak of a training step on a batch of whole images; two views with half of the patches hidden take as much."""


def cost_of(config: ViTConfig, *, img_size: int | None = None, patch_size: int | None = None, batch_size: int) -> Cost:
    """The cost of an architecture, or of the same one at another size of images or patches.

    Args:
        config: The architecture.
        img_size: Side of the images in pixels; none: the native one.
        patch_size: Side of the patches in pixels; none: its own.
        batch_size: Images at a time.

    Raises:
        ConfigError: If the images cannot be cut into such patches.
    """
    config = dataclasses.replace(
        config, img_size=img_size or config.img_size, patch_size=patch_size or config.patch_size
    )
    tokens = num_tokens(config)
    with torch.device("meta"):
        vit = VisionTransformer(config)
    num_params = sum(weight.numel() for weight in vit.parameters())
    return Cost(
        img_size=config.img_size,
        patch_size=config.patch_size,
        num_tokens=tokens,
        num_params=num_params,
        flops=flops_of(config),
        attention_pairs=tokens**2,
        raw_pixel_pairs=raw_pixel_pairs(config.img_size, config.in_chans),
        batch_size=batch_size,
        embed_bytes=4 * num_params + embedding_bytes(config, batch_size),
        train_bytes=training_bytes(vit, batch_size),
    )


def fits(img_size: int, patch_size: int) -> bool:
    """Whether images of this size can be cut into such patches."""
    return img_size >= patch_size > 0 and img_size % patch_size == 0


def num_tokens(config: ViTConfig) -> int:
    """Length of the sequence that the blocks see."""
    return config.num_patches + config.num_registers + int(config.class_token)


def flops_of(config: ViTConfig) -> int:
    """Arithmetic of one image of the native size, from the architecture alone."""
    d, n, t = config.embed_dim, config.num_patches, num_tokens(config)
    hidden = int(d * config.mlp_ratio)
    mlp = d * hidden + (hidden // 2 if config.mlp == "swiglu" else hidden) * d
    block = 2 * t * (4 * d * d + mlp) + 4 * t * t * d
    total = _stem_flops(config) + config.depth * block
    if config.cls_proj:
        total += 2 * d * d
    if config.attn_pool:  # one query looks at every patch
        total += 2 * (2 * d * d + 2 * d * hidden) + 2 * n * 2 * d * d + 4 * n * d
    return total


def raw_pixel_pairs(img_size: int, in_chans: int = 3) -> int:
    """Pairs that attention over raw colour values would compare: 22.7 billion for 224 px."""
    return (in_chans * img_size**2) ** 2


def embedding_bytes(config: ViTConfig, batch_size: int) -> int:
    """What passes through at the peak of embedding a batch, beside the weights: pixels, and the widest step of a block.

    In the MLP these are the residual stream, its norm, the hidden layer and its activation; in attention the queries,
    keys and values beside both and the result, with two turned copies of queries and keys under rotary positions.
    """
    d = config.embed_dim
    hidden = int(d * config.mlp_ratio)
    in_attention = d * (10 if config.pos_embed == "rope" else 6)
    in_mlp = 2 * d + 2 * hidden
    pixels = config.in_chans * config.img_size**2
    return batch_size * (4 * num_tokens(config) * max(in_attention, in_mlp) + (1 + 4 + 4) * pixels)


def training_bytes(vit: VisionTransformer, batch_size: int) -> int:
    """Peak of a training step of the encoder alone: weights, gradients, AdamW's moments, what the forward pass keeps.

    Nothing is computed: the forward pass runs on tensors without content.

    Args:
        vit: The encoder; may lie on the meta device.
        batch_size: Images, seen whole.
    """
    config = vit.config
    with torch.device("meta"):
        empty = VisionTransformer(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        empty.to_empty(device="cpu").train()
        pixels = torch.empty(batch_size, config.in_chans, config.img_size, config.img_size)
        kept = kept_for_backward(empty, lambda: empty(pixels))
    num_params = sum(weight.numel() for weight in vit.parameters())
    # The backward pass holds the gradients of a layer's input and output beside each other.
    return TRAINED_BYTES * num_params + sum(kept) + 2 * max(kept, default=0)


def kept_for_backward(module: nn.Module, forward: Callable[[], object]) -> list[int]:
    """Bytes of each tensor that a forward pass keeps for the backward pass, weights and buffers left out.

    Args:
        module: Whose weights are not counted.
        forward: Runs the pass; under ``FakeTensorMode`` it costs nothing.
    """
    weights = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = forward()
    del output
    return list(kept.values())


def cost_table(config: ViTConfig, img_sizes: list[int], patch_sizes: list[int], *, batch_size: int) -> list[Cost]:
    """The costs of every pair of sizes that fits; those that do not are absent.

    Raises:
        ConfigError: If no pair fits.
    """
    pairs = [(img_size, patch_size) for img_size in img_sizes for patch_size in patch_sizes]
    possible = [pair for pair in pairs if fits(*pair)]
    if not possible:
        raise ConfigError(
            f"no image size of {', '.join(map(str, img_sizes))} px is a multiple of a patch size of "
            f"{', '.join(map(str, patch_sizes))} px"
        )
    return [
        cost_of(config, img_size=img_size, patch_size=patch_size, batch_size=batch_size)
        for img_size, patch_size in possible
    ]


def _stem_flops(config: ViTConfig) -> int:
    """Of the way from pixels to patches."""
    if config.stem == "patch":
        return 2 * config.num_patches * config.patch_size**2 * config.in_chans * config.embed_dim
    num = config.patch_size.bit_length() - 1
    widths = [config.in_chans, *(config.embed_dim >> (num - 1 - i) for i in range(num))]
    return sum(2 * 9 * widths[i] * widths[i + 1] * (config.img_size >> (i + 1)) ** 2 for i in range(num))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
