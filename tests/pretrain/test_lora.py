"""Low-rank changes: nothing at the start, what the formula says later, plain weights in the end."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from vitembed.config import ViTConfig
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.onward.lora import LoraLinear, add_lora, merge_lora


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return VisionTransformer(ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, init_values=0.5))


def changed(vit, rank=4, alpha=8.0):
    """A copy with low-rank changes that are not zero."""
    lora = copy.deepcopy(vit)
    add_lora(lora, num_blocks=1, rank=rank, alpha=alpha)
    for name, parameter in lora.named_parameters():
        if name.endswith("lora_b"):
            nn.init.normal_(parameter, std=0.1)
    return lora


def test_a_changed_layer_gives_what_the_formula_says():
    torch.manual_seed(1)
    linear = nn.Linear(6, 5)
    layer = LoraLinear(copy.deepcopy(linear), rank=2, alpha=3.0)
    x = torch.randn(4, 7, 6)
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=0)
    nn.init.normal_(layer.lora_b)
    weight, bias, a, b = (t.detach().double().numpy() for t in (linear.weight, linear.bias, layer.lora_a, layer.lora_b))
    expected = x.double().numpy() @ (weight + 3.0 / 2 * b @ a).T + bias
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-5)


def test_merged_and_unmerged_agree_and_the_keys_are_those_of_the_plain_encoder(vit):
    lora = changed(vit).double().eval()
    merged = merge_lora(lora).eval()
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    before, after = lora(pixels), merged(pixels)
    assert (before.cls - vit.double().eval()(pixels).cls).abs().max() > 0.01, "nothing was changed"
    assert (before.cls - after.cls).abs().max() < 1e-6
    assert (before.patches - after.patches).abs().max() < 1e-6
    assert list(merged.state_dict()) == list(vit.state_dict())
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())
    assert any(isinstance(module, LoraLinear) for module in lora.modules()), "merging must leave the trained one alone"


def test_an_encoder_without_changes_is_merged_to_itself(vit):
    assert merge_lora(vit) is vit
    fresh = copy.deepcopy(vit)
    add_lora(fresh, num_blocks=1, rank=4, alpha=8.0)
    merged = merge_lora(fresh)
    assert all(torch.equal(merged.state_dict()[name], tensor) for name, tensor in vit.state_dict().items())


def test_what_is_trained(vit):
    lora = changed(vit)
    trained = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    linears = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    expected = {f"blocks.{i}.{layer}.{part}" for i in (0, 1) for layer in linears for part in ("lora_a", "lora_b")}
    expected |= {
        f"blocks.{i}.{norm}.{part}" for i in (0, 1) for norm in ("norm1", "norm2") for part in ("weight", "bias")
    }
    expected |= {f"blocks.2.{name}" for name in dict(vit.blocks[2].named_parameters())}
    assert trained == expected | {"norm.weight", "norm.bias"}
