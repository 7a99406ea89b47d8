"""Our ViT against timm's with the same weights, our attention against torch's."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from vitembed.config import PRESETS, ViTConfig, preset
from vitembed.errors import ConfigError
from vitembed.model.patches import patchify, sincos_pos_embed, unpatchify
from vitembed.model.vit import Attention, DropPath, VisionTransformer
from vitembed.pretrain.masking import random_mask

timm_vit = pytest.importorskip("timm.models.vision_transformer")

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}


def timm_twin(config: ViTConfig):
    twin = timm_vit.VisionTransformer(
        img_size=config.img_size,
        patch_size=config.patch_size,
        in_chans=config.in_chans,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        num_classes=0,
        init_values=config.init_values,
        reg_tokens=config.num_registers,
        no_embed_class=config.no_embed_class,
        qkv_bias=config.qkv_bias,
        dynamic_img_size=True,
        global_pool="token",
    ).eval()
    torch.manual_seed(0)
    for parameter in twin.parameters():  # no parameter may hide behind a zero or one
        nn.init.normal_(parameter, std=0.1)
    return twin


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (48, 80)])
@pytest.mark.parametrize("patch_size", [8, 16])
def test_the_convolutional_stem_equals_timms_with_the_same_weights(patch_size, size):
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer_hybrid import ConvStem

    config = ViTConfig(**{**SMALL, "patch_size": patch_size}, stem="conv")
    num = {8: 3, 16: 4}[patch_size]
    backbone = ConvStem(depth=num, channels=64, stride=(2,) * num, kernel_size=3)
    twin = timm_vit.VisionTransformer(
        img_size=64,
        patch_size=1,  # of the backbone's feature map
        embed_dim=64,
        depth=3,
        num_heads=4,
        num_classes=0,
        dynamic_img_size=True,
        global_pool="token",
        embed_layer=partial(HybridEmbed, backbone=backbone, proj=False),
    )
    torch.manual_seed(0)
    for name, value in twin.state_dict().items():
        if value.is_floating_point():
            nn.init.normal_(value, std=0.1)
        if name.endswith("running_var"):
            value.abs_()
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(twin.state_dict(), strict=True)
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, tokens = twin.eval().forward_features(pixels), ours(pixels)
    torch.testing.assert_close(tokens.cls, expected[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.patches, expected[:, 1:], atol=1e-4, rtol=1e-4)


def test_a_convolutional_stem_asks_for_sizes_that_halve():
    with pytest.raises(ConfigError, match="patch_size must be a power of 2, got 14"):
        ViTConfig(img_size=28, patch_size=14, embed_dim=64, depth=1, num_heads=1, stem="conv")
    with pytest.raises(ConfigError, match="a multiple of 16, got 24"):
        ViTConfig(img_size=32, patch_size=16, embed_dim=24, depth=1, num_heads=1, stem="conv")


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (48, 80)])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"num_registers": 4},
        {"num_registers": 4, "no_embed_class": True},
        {"init_values": 0.1, "no_embed_class": True},
        {"qkv_bias": False, "in_chans": 1},
    ],
)
def test_tokens_equal_timm_with_the_same_weights(extra, size):
    config = ViTConfig(**SMALL, **extra)
    twin = timm_twin(config)
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(twin.state_dict(), strict=True)
    pixels = torch.randn(2, config.in_chans, *size)
    with torch.no_grad():
        expected = twin.forward_features(pixels)
        tokens = ours(pixels)
    ours_all = torch.cat([tokens.cls.unsqueeze(1), tokens.registers, tokens.patches], dim=1)
    assert (ours_all - expected).abs().max() < 1e-4


def test_last_blocks_equal_timm():
    config = ViTConfig(**SMALL)
    twin = timm_twin(config)
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(twin.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    expected = twin.get_intermediate_layers(pixels, n=2, return_prefix_tokens=True, norm=True)
    for tokens, (patches, prefix) in zip(ours.intermediate(pixels, 2), expected, strict=True):
        assert (tokens.patches - patches).abs().max() < 1e-4
        assert (tokens.cls - prefix[:, 0]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="num_blocks must lie between 1 and the depth 3, got 4"):
        ours.intermediate(pixels, 4)


def test_attention_equals_torch_multihead_attention():
    torch.manual_seed(0)
    ours, reference = Attention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    reference.in_proj_weight.data.copy_(ours.qkv.weight)
    reference.in_proj_bias.data.copy_(nn.init.normal_(ours.qkv.bias))
    reference.out_proj.weight.data.copy_(ours.proj.weight)
    reference.out_proj.bias.data.copy_(nn.init.normal_(ours.proj.bias))
    x = torch.randn(3, 7, 32)
    expected, _ = reference(x, x, x, need_weights=False)
    torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)


def test_kept_patches_are_all_the_encoder_sees():
    vit = VisionTransformer(ViTConfig(**SMALL)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    mask = random_mask(2, 64, 0.75, generator=torch.Generator().manual_seed(0), device="cpu")
    hidden = unpatchify(mask.mask.unsqueeze(-1).expand(-1, -1, 192), 8, (8, 8)).bool()
    with torch.no_grad():
        tokens = vit(pixels, mask.ids_keep)
        other = vit(torch.where(hidden, torch.randn_like(pixels), pixels), mask.ids_keep)
    assert tokens.patches.shape == (2, 16, 64)
    torch.testing.assert_close(tokens.cls, other.cls)
    torch.testing.assert_close(tokens.patches, other.patches)


def test_every_patch_kept_in_any_order_is_the_whole_image():
    vit = VisionTransformer(ViTConfig(**SMALL)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    with torch.no_grad():
        whole, shuffled = vit(pixels), vit(pixels, order)
    torch.testing.assert_close(whole.cls, shuffled.cls, atol=1e-5, rtol=1e-4)
    expected = whole.patches.gather(1, order.unsqueeze(-1).expand(-1, -1, 64))
    torch.testing.assert_close(shuffled.patches, expected, atol=1e-5, rtol=1e-4)


def test_patchify_cuts_row_by_row_and_unpatchify_undoes_it():
    pixels = torch.randn(2, 3, 16, 24)
    patches = patchify(pixels, 8)
    torch.testing.assert_close(patches[1, 4], pixels[1, :, 8:16, 8:16].permute(1, 2, 0).reshape(-1))
    torch.testing.assert_close(unpatchify(patches, 8, (2, 3)), pixels)


def test_sincos_positions_follow_the_formula():
    table = sincos_pos_embed(16, (2, 3))
    row, col, k = 1, 2, 1
    rate = 10_000 ** (-k / 4)
    expected = torch.tensor([col * rate, row * rate]).sin()
    torch.testing.assert_close(table[row * 3 + col, [k, 8 + k]], expected)
    torch.testing.assert_close(table[row * 3 + col, 4 + k], torch.tensor(col * rate).cos())
    assert len(torch.unique(table, dim=0)) == 6
    assert not VisionTransformer(ViTConfig(**SMALL, pos_embed="sincos2d")).pos_embed.requires_grad


def test_images_that_do_not_fit_the_patches_are_refused():
    vit = VisionTransformer(ViTConfig(**SMALL))
    with pytest.raises(ValueError, match="image of 60x64 px cannot be cut into 8-px patches"):
        vit(torch.randn(1, 3, 60, 64))


@pytest.mark.parametrize("size", PRESETS)
def test_presets_have_the_published_sizes(size):
    with torch.device("meta"):
        vit = VisionTransformer(preset(size, img_size=224, patch_size=14 if size == "huge" else 16))
    millions = sum(p.numel() for p in vit.parameters()) / 1e6
    # DeiT table 1 (5.7, 22, 86), ViT table 1 (86, 307, 632), less the class heads that they count.
    expected = {"nano": 0.9, "tiny": 5.5, "small": 21.7, "base": 85.8, "large": 303.3, "huge": 630.8}[size]
    assert millions == pytest.approx(expected, rel=0.02)


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 1, 1)
    dropped = drop(x)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"img_size": 60}, "img_size 60 must be a multiple of patch_size 8"),
        ({"num_heads": 5}, "embed_dim 64 must be a multiple of num_heads 5"),
        ({"depth": 0}, "depth must be a whole number in 1..4096, got 0"),
    ],
)
def test_impossible_architectures_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ViTConfig(**{**SMALL, **settings})


def test_compiles_to_one_graph_for_every_mask():
    # In a process of its own: the shape checks that run under pytest cannot be traced.
    code = """
import torch
from vitembed.config import preset
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.masking import random_mask
vit = VisionTransformer(preset("nano", img_size=32, patch_size=8, depth=1)).eval()
compiled = torch.compile(vit, backend="eager", fullgraph=True)
pixels = torch.randn(2, 3, 32, 32)
for seed in range(3):
    ids = random_mask(2, 16, 0.5, generator=torch.Generator().manual_seed(seed), device="cpu").ids_keep
    torch.testing.assert_close(compiled(pixels, ids).cls, vit(pixels, ids).cls)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1"], done.stderr
