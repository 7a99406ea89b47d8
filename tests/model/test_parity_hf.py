"""Our ViT against transformers' with weights that transformers saved: every family that it builds, at three sizes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from vitembed._torchvision import import_torchvision
from vitembed.errors import ModelError
from vitembed.model.convert import convert
from vitembed.model.weights_file import read_weights

import_torchvision()
hf = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DINOV2 = {key: value for key, value in SMALL.items() if key != "intermediate_size"}
SIZES = [(32, 32), (48, 48), (24, 56)]
CASES = {
    "vit": ("ViTModel", "ViTConfig", SMALL, "hf-vit"),
    "vit without qkv bias": ("ViTModel", "ViTConfig", {**SMALL, "qkv_bias": False}, "hf-vit"),
    "vit with a class head": ("ViTForImageClassification", "ViTConfig", SMALL, "hf-vit"),
    "deit distilled": ("DeiTModel", "DeiTConfig", SMALL, "hf-deit"),
    "msn": ("ViTMSNModel", "ViTMSNConfig", SMALL, "hf-vit"),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {**SMALL, "mask_ratio": 0.0}, "hf-mae"),
    "mae with its decoder": ("ViTMAEForPreTraining", "ViTMAEConfig", {**SMALL, "mask_ratio": 0.0}, "hf-mae"),
    "i-jepa": ("IJepaModel", "IJepaConfig", SMALL, "hf-ijepa"),
    "dinov2": ("Dinov2Model", "Dinov2Config", DINOV2, "hf-dinov2"),
    "dinov2 giant": ("Dinov2Model", "Dinov2Config", {**DINOV2, "use_swiglu_ffn": True}, "hf-dinov2"),
    "dinov2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINOV2, "hf-dinov2-reg"),
    "dinov2 giant with registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**DINOV2, "use_swiglu_ffn": True},
        "hf-dinov2-reg",
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**SMALL, "num_register_tokens": 4}, "hf-dinov3"),
    "dinov3 with a key bias": ("DINOv3ViTModel", "DINOv3ViTConfig", {**SMALL, "key_bias": True}, "hf-dinov3"),
    "dinov3 plus": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {**SMALL, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        "hf-dinov3",
    ),
    "clip vision": ("CLIPVisionModel", "CLIPVisionConfig", SMALL, "hf-clip"),
    "clip vision with gelu": ("CLIPVisionModel", "CLIPVisionConfig", {**SMALL, "hidden_act": "gelu"}, "hf-clip"),
    "siglip vision": ("SiglipVisionModel", "SiglipVisionConfig", SMALL, "hf-siglip"),
}
LOOSE = {"deit distilled", "dinov2", "dinov2 giant", "dinov2 with registers", "dinov2 giant with registers"}
LOOSE |= {"dinov3", "dinov3 with a key bias", "dinov3 plus"}  # these take any size without being told


def randomised(model):
    """No weight may hide behind a zero or one: all are drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if ("norm" in name and name.endswith("weight")) or name.endswith("lambda1"):
            nn.init.uniform_(value, 0.5, 1.5, generator=generator)
        else:
            nn.init.normal_(value, std=0.2, generator=generator)
    return model.eval()


def saved(case, folder):
    model_name, config_name, settings, family = CASES[case]
    twin = randomised(getattr(hf, model_name)(getattr(hf, config_name)(**settings)))
    twin.save_pretrained(folder)
    return twin, json.loads((folder / "config.json").read_text()), family


def expected_tokens(twin, pixels, case):
    """The cls vector and all tokens behind the final norm, as transformers gives them."""
    resize = {} if case in LOOSE - {"deit distilled"} else {"interpolate_pos_encoding": True}
    if case == "mae" or case == "mae with its decoder":  # it shuffles the patches by this noise: keep their order
        num = (pixels.shape[-2] // 8) * (pixels.shape[-1] // 8)
        resize["noise"] = torch.arange(num).expand(len(pixels), -1) / num
    body = getattr(twin, "vit", twin)
    out = body(pixels, **resize)
    if case.startswith("clip"):  # its last norm is applied to cls alone: our patches have it too
        return out.pooler_output, body.post_layernorm(out.last_hidden_state)
    if case.startswith("siglip"):
        return out.pooler_output, out.last_hidden_state
    return out.last_hidden_state[:, 0], out.last_hidden_state


@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_transformers(case, tmp_path):
    twin, config, family = saved(case, tmp_path)
    result = convert(read_weights(tmp_path), config, where=str(tmp_path))
    assert result.family == family
    vit, has_token = result.vit, int(result.vit.config.class_token)
    assert result.pool == ("mean" if case == "i-jepa" else "cls")
    for height, width in SIZES:
        pixels = torch.randn(2, 3, height, width)
        with torch.no_grad():
            tokens = vit(pixels)
            cls, rest = expected_tokens(twin, pixels, case)
        if vit.config.has_cls:
            torch.testing.assert_close(tokens.cls, cls, atol=1e-4, rtol=0)
        first = has_token + vit.config.num_registers
        torch.testing.assert_close(tokens.registers, rest[:, has_token:first], atol=1e-4, rtol=0)
        torch.testing.assert_close(tokens.patches, rest[:, first:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_names_of_before_and_after_the_refactoring_are_the_same_model(case, tmp_path):
    # transformers 5 saves under the old names and holds others in memory
    twin, config, _ = saved(case, tmp_path)
    pixels = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        from_file = convert(read_weights(tmp_path), config, where="file").vit(pixels)
        from_memory = convert(twin.state_dict(), config, where="memory").vit(pixels)
    for one, other in zip(from_file, from_memory, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", ["vit", "dinov2 giant with registers", "dinov3 plus", "clip vision"])
def test_half_precision_stays_within_its_rounding(case, tmp_path):
    twin, config, _ = saved(case, tmp_path)
    vit = convert(read_weights(tmp_path), config, where="file").vit
    pixels = torch.randn(4, 3, 48, 48)
    with torch.no_grad():
        exact = vit(pixels).cls
        theirs = expected_tokens(twin.bfloat16(), pixels.bfloat16(), case)[0].float()
        ours = vit.bfloat16()(pixels.bfloat16()).cls
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).norm() < 1.3 * (theirs - exact).norm() + 1e-3


def test_weights_saved_in_half_precision_are_read_as_they_are(tmp_path):
    twin, config, _ = saved("dinov2", tmp_path)
    twin.half().save_pretrained(tmp_path)
    vit = convert(read_weights(tmp_path), config, where="file").vit
    assert vit.patch_embed.proj.weight.dtype == torch.float32
    assert torch.equal(vit.norm.weight, twin.layernorm.weight.float())


def test_shards_are_one_model(tmp_path):
    twin, config, _ = saved("vit", tmp_path)
    whole = convert(read_weights(tmp_path), config, where="whole").vit
    twin.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    parts = convert(read_weights(tmp_path / "shards"), config, where="shards").vit
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value)


def test_the_image_half_of_clip_is_taken_from_the_whole(tmp_path):
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = hf.CLIPConfig(vision_config=SMALL, text_config=text, projection_dim=8)
    twin = randomised(hf.CLIPModel(config))
    twin.save_pretrained(tmp_path)
    result = convert(read_weights(tmp_path), json.loads((tmp_path / "config.json").read_text()), where="clip")
    assert any("text_model" in note for note in result.notes)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = twin.vision_model(pixels).pooler_output
        torch.testing.assert_close(result.vit(pixels).cls, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, "config.json says embed_dim 64, the weights have 32"),
        ({"num_hidden_layers": 3}, "config.json says depth 3, the weights have 2"),
        ({"intermediate_size": 65}, "config.json says hidden_dim 65, the weights have 64"),
        ({"image_size": 64}, "config.json says images of 64 px, the weights have positions for 32 px"),
        ({"patch_size": 16}, "config.json says patch_size 16, the weights have 8"),
        ({"num_attention_heads": 5}, "5 heads, which do not divide width 32"),
        ({"num_attention_heads": "many"}, "says num_attention_heads 'many': expected a number"),
        ({"hidden_act": "relu"}, "says hidden_act 'relu': expected one of gelu"),
        ({"hidden_act": "silu"}, "says activation silu, which is not done with this MLP"),
        ({"model_type": "swin"}, "says model_type 'swin', which is no plain vision transformer known here"),
        ({"layer_norm_eps": -1}, "says layer_norm_eps -1: expected a number"),
    ],
)
def test_a_config_that_says_other_than_the_weights_is_refused(change, message, tmp_path):
    twin, config, _ = saved("vit", tmp_path)
    with pytest.raises(ModelError, match=message):
        convert(twin.state_dict(), {**config, **change}, where="model")
