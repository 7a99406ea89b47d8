"""Every field of the configurations of transformers: with another value the vector is transformers' own, or refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from vitembed._torchvision import import_torchvision
from vitembed.errors import ModelError
from vitembed.model.convert import convert
from vitembed.model.opening import open_model, open_trainable
from vitembed.model.weights_file import read_weights

import_torchvision()
hf = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WITH_MLP = {**SMALL, "intermediate_size": 64}
KINDS = {
    "vit": ("ViTModel", "ViTConfig", WITH_MLP),
    "deit": ("DeiTModel", "DeiTConfig", WITH_MLP),
    "msn": ("ViTMSNModel", "ViTMSNConfig", WITH_MLP),
    "mae": ("ViTMAEModel", "ViTMAEConfig", {**WITH_MLP, "mask_ratio": 0.0}),
    "ijepa": ("IJepaModel", "IJepaConfig", WITH_MLP),
    "dinov2": ("Dinov2Model", "Dinov2Config", SMALL),
    "dinov2 giant": ("Dinov2Model", "Dinov2Config", {**SMALL, "use_swiglu_ffn": True}),
    "dinov2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", SMALL),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**WITH_MLP, "num_register_tokens": 2}),
    "dinov3 gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**WITH_MLP, "use_gated_mlp": True, "hidden_act": "silu"}),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", WITH_MLP),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", WITH_MLP),
}
# What only training or other uses of the model look at: the number of patches that MAE hides is not for embedding.
NOT_ASKED = {"mask_ratio", "num_hidden_layers"}


def fields(kind):
    """Each field that the configuration class has for itself, and other values for it."""
    _, config_name, settings = KINDS[kind]
    common = set(hf.PretrainedConfig().to_dict()) - {"chunk_size_feed_forward"}
    for name, value in getattr(hf, config_name)(**settings).to_dict().items():
        if name in common or name in NOT_ASKED or name.startswith("decoder_"):
            continue
        if name == "hidden_act":
            yield from ((name, act) for act in ("silu", "gelu_new", "relu", "gelu_fast", "quick_gelu", "gelu"))
        elif name == "image_size":
            yield from ((name, side) for side in (48, 36, [32, 48]))
        elif name == "patch_size":
            yield from ((name, side) for side in (16, [8, 4]))
        elif name == "layer_norm_eps":
            yield name, 1e-2
        elif isinstance(value, bool):
            yield name, not value
        elif isinstance(value, int) and name not in ("hidden_size", "num_channels"):
            yield from ((name, other) for other in {value * 2, 1 if name == "num_attention_heads" else value * 2})
        elif isinstance(value, float):
            yield name, value * 10 + 0.1
        elif value is None:
            yield name, 0.5


def built(kind, changes):
    model_name, config_name, settings = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    twin = getattr(hf, model_name)(getattr(hf, config_name)(**{**settings, **changes}))
    for name, value in twin.named_parameters():
        if ("norm" in name and name.endswith("weight")) or name.endswith("lambda1"):
            nn.init.uniform_(value, 0.5, 1.5, generator=generator)
        else:
            nn.init.normal_(value, std=0.2, generator=generator)
    return twin.eval()


def vector_of(twin, pixels, kind):
    extra = {}
    if kind == "mae":  # it shuffles the patches by this noise: keep their order
        num = pixels.shape[-1] * pixels.shape[-2] // twin.config.patch_size**2
        extra["noise"] = torch.arange(num).expand(len(pixels), -1) / num
    with torch.no_grad():
        out = twin(pixels, **extra)
    if kind in ("clip", "siglip") and out.pooler_output is not None:
        return out.pooler_output
    # I-JEPA has no cls, SigLIP none without its head.
    return out.last_hidden_state.mean(dim=1) if kind in ("ijepa", "siglip") else out.last_hidden_state[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_is_read_or_refused(kind):
    num_same = 0
    for name, value in fields(kind):
        try:
            twin = built(kind, {name: value})
            side = twin.config.image_size
            pixels = torch.randn(2, 3, *((side, side) if isinstance(side, int) else side))
            expected = vector_of(twin, pixels, kind)
        except Exception:  # no legal value of this configuration
            continue
        config = json.loads(twin.config.to_json_string(use_diff=False))
        try:
            result = convert(twin.state_dict(), config, where="model")
        except ModelError:
            continue
        with torch.no_grad():
            tokens = result.vit(pixels)
        ours = result.vit.mean_pool(tokens) if result.pool == "mean" else tokens.cls
        assert ours.shape == expected.shape, (name, value)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name, v=value: f"{n}={v}: {m}")
        num_same += 1
    assert num_same > 3


def test_dinov2_with_silu_in_a_plain_mlp_is_refused():
    twin = built("dinov2", {"hidden_act": "silu"})
    with pytest.raises(ModelError, match="activation silu, which is not done with this MLP"):
        convert(twin.state_dict(), twin.config.to_dict(), where="model")


@pytest.mark.parametrize("chans", [1, 4])
def test_other_channels_are_refused_when_opened(chans, tmp_path):
    built("vit", {"num_channels": chans}).save_pretrained(tmp_path)
    assert read_weights(tmp_path)
    for opens in (open_model, open_trainable):
        with pytest.raises(ModelError, match=rf"takes images of {chans} channels?: images are RGB here"):
            opens(tmp_path)
