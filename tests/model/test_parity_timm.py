"""Our ViT against timm's with weights that timm saved: every family that timm builds, at three image sizes."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitembed._torchvision import import_torchvision
from vitembed.model.convert import convert
from vitembed.model.weights_file import read_weights

import_torchvision()
timm = pytest.importorskip("timm")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
SIZES = [(32, 32), (48, 48), (24, 56)]
HEADS = {"num_attention_heads": 4}


def randomised(model):
    """No weight may hide behind a zero or one: all are drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("norm.weight") or (".norm" in name and name.endswith("weight")) or name.endswith("gamma"):
            nn.init.uniform_(value, 0.5, 1.5, generator=generator)
        elif not name.endswith(("periods", "k_bias", "_cached")):
            nn.init.normal_(value, std=0.2, generator=generator)
    return model.eval()


def assert_same(ours, expected, config, atol=1e-4):
    """Compare cls, registers and patches with timm's tokens."""
    cls, registers = int(config.class_token), config.num_registers
    if cls:
        torch.testing.assert_close(ours.cls, expected[:, 0], atol=atol, rtol=0)
    torch.testing.assert_close(ours.registers, expected[:, cls : cls + registers], atol=atol, rtol=0)
    torch.testing.assert_close(ours.patches, expected[:, cls + registers :], atol=atol, rtol=0)


CASES = {
    # name of an architecture, what is made smaller or otherwise, family
    "vit": ("vit_base_patch16_224", {}, "timm-vit"),
    "augreg without qkv bias": ("vit_base_patch16_224", {"qkv_bias": False}, "timm-vit"),
    "deit3": ("deit3_base_patch16_224", {}, "timm-vit"),
    "deit distilled": ("deit_base_distilled_patch16_224", {}, "timm-vit"),
    "clip": ("vit_base_patch16_clip_224", {}, "timm-clip"),
    "dino": ("vit_base_patch16_224.dino", {}, "timm-vit"),
    "mae": ("vit_base_patch16_224.mae", {}, "timm-vit"),
    "dinov2": ("vit_base_patch14_dinov2", {}, "timm-vit"),
    "dinov2 with registers": ("vit_base_patch14_reg4_dinov2", {}, "timm-vit"),
    "dinov2 giant": ("vit_giant_patch14_dinov2", {}, "timm-vit"),
    "dinov2 giant with registers": ("vit_giant_patch14_reg4_dinov2", {}, "timm-vit"),
    "positions of registers": ("vit_base_patch16_224", {"reg_tokens": 4}, "timm-vit"),
    "no cls, positions of registers": ("vit_so150m_patch16_reg4_gap_256", {}, "timm-vit"),
    "no cls, no positions of registers": ("vit_medium_patch16_reg4_gap_256", {}, "timm-vit"),
    "no cls": ("vit_base_patch16_gap_224", {}, "timm-vit"),
    "no final norm": ("vit_intern300m_patch14_448", {}, "timm-vit"),
    "norm behind the mean": ("vit_base_patch16_224", {"global_pool": "avg"}, "timm-vit"),
    "siglip": ("vit_base_patch16_siglip_224", {}, "timm-siglip"),
    "dinov3": ("vit_small_patch16_dinov3", {}, "timm-dinov3"),
    "dinov3 with biases": ("vit_small_patch16_dinov3_qkvb", {}, "timm-dinov3"),
    "dinov3 plus": ("vit_small_plus_patch16_dinov3", {}, "timm-dinov3"),
}


def built(case):
    name, changes, family = CASES[case]
    settings = {**SMALL, **changes}
    model = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, **settings)
    return randomised(model), family


@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_timms(case, tmp_path):
    twin, family = built(case)
    if case == "mae":
        assert twin.pos_embed.shape[1] == 17
    save_file(twin.state_dict(), tmp_path / "model.safetensors")
    result = convert(read_weights(tmp_path), HEADS, where="model.safetensors")
    assert result.family == family
    vit = result.vit
    for height, width in SIZES:
        pixels = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected, tokens = twin.forward_features(pixels), vit(pixels)
            assert_same(tokens, expected, vit.config)
            pooled = twin.forward_head(expected, pre_logits=True)
            if result.pool == "mean":
                torch.testing.assert_close(vit.mean_pool(tokens), pooled, atol=1e-4, rtol=0)
            elif case not in ("deit distilled", "dinov3", "dinov3 with biases", "dinov3 plus"):  # they pool otherwise
                torch.testing.assert_close(tokens.cls, pooled, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["vit", "clip", "dinov2 giant with registers", "dinov3 plus", "siglip"])
def test_half_precision_stays_within_its_rounding(case):
    twin, _ = built(case)
    vit = convert(twin.state_dict(), HEADS, where="model").vit
    pixels = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        exact = twin.forward_features(pixels)
        theirs = twin.bfloat16().forward_features(pixels.bfloat16()).float()
        ours = vit.bfloat16()(pixels.bfloat16())
    first = vit.num_prefix
    off, off_theirs = (ours.patches.float() - exact[:, first:]).norm(), (theirs - exact)[:, first:].norm()
    assert ours.patches.dtype == torch.bfloat16
    assert off < 1.3 * off_theirs + 1e-3


def test_what_a_timm_config_says_goes_before_the_family(tmp_path):
    twin = randomised(timm.create_model("vit_base_patch16_clip_quickgelu_224", num_classes=0, **SMALL))
    config = {"architecture": "vit_base_patch16_clip_quickgelu_224", "model_args": {"num_heads": 4}}
    vit = convert(twin.state_dict(), config, where="model").vit
    plain = convert(twin.state_dict(), HEADS, where="model")
    assert any("quick_gelu" in note for note in plain.notes)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = twin.forward_features(pixels)
        assert_same(vit(pixels), expected, vit.config)
        assert (plain.vit(pixels).patches - expected[:, 1:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_rpn_224",
        "vit_small_patch16_18x2_224",
        "vit_base_patch16_xp_224",
        "eva02_tiny_patch14_224",
        "beit_base_patch16_224",
        "vit_small_patch16_rope_224",
        "beit3_base_patch16_224",
        "vit_relpos_base_patch16_224",
        "swin_tiny_patch4_window7_224",
        "deit_tiny_patch16_224_xyz",
    ],
)
def test_what_only_looks_like_our_vit_is_refused(name):
    from vitembed.errors import ModelError

    if name.endswith("xyz"):  # the same with one foreign tensor
        twin = timm.create_model("vit_base_patch16_224", num_classes=0, **SMALL)
        twin.blocks[1].attn.register_parameter("temperature", nn.Parameter(torch.ones(4)))
        name = "vit_base_patch16_224"
    else:
        small = {"depths": (1, 1, 1, 1)} if name.startswith("swin") else {"depth": 1}
        twin = timm.create_model(name, num_classes=0, **small)
    with pytest.raises(ModelError) as caught:
        convert(twin.state_dict(), {"architecture": name}, where="model.pth")
    assert "\n" not in str(caught.value)
    assert re.search("unknown keys|no vision transformer known|has .*, which this ViT has not", str(caught.value))


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"])
def test_published_widths_need_no_config(arch, tmp_path):
    twin = randomised(timm.create_model(arch, num_classes=0, depth=1, img_size=32 if "16" in arch else 28))
    torch.save({"state_dict": {f"module.{key}": value for key, value in twin.state_dict().items()}}, tmp_path / "w.pth")
    result = convert(read_weights(tmp_path / "w.pth"), where="w.pth")
    pixels = torch.randn(1, 3, *twin.patch_embed.img_size) if twin.patch_embed.img_size else torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_same(result.vit(pixels), twin.forward_features(pixels), result.vit.config)


def test_a_timm_hub_folder_loads(tmp_path):
    twin = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=7, depth=1))
    save_file(twin.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 7, "global_pool": "token"})
    )
    config = json.loads((tmp_path / "config.json").read_text())
    result = convert(read_weights(tmp_path), config, where=str(tmp_path))
    assert any("class head" in note for note in result.notes)
    assert result.pool == "cls"
