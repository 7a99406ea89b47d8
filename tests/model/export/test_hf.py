"""What is exported for transformers, loaded by its Auto classes alone: nothing missing, the same pixels and vectors."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vitembed._torchvision import import_torchvision

import_torchvision()
from transformers import AutoImageProcessor, AutoModel

from vitembed.errors import ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.encoder import load
from vitembed.model.export.formats import export

MODELS = [
    ("ViTModel", {}),
    ("ViTModel", {"no_embed_class": True, "qkv_bias": False, "pos_embed": "sincos2d", "mlp_ratio": 3.5}),
    ("ViTModel", {"act": "gelu_tanh", "norm_eps": 1e-12}),
    ("Dinov2Model", {"init_values": 0.5}),
    ("Dinov2Model", {"init_values": 0.5, "mlp": "swiglu", "mlp_ratio": 5.5}),
    ("Dinov2WithRegistersModel", {"num_registers": 3, "init_values": 0.5}),
    ("Dinov2WithRegistersModel", {"num_registers": 2, "no_embed_class": True}),
    ("DINOv3ViTModel", {"pos_embed": "rope", "num_registers": 2, "init_values": 0.5, "norm_eps": 1e-5}),
    ("DINOv3ViTModel", {"pos_embed": "rope", "mlp": "swiglu"}),
]


def opened(path):
    model, info = AutoModel.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info  # missing, unexpected, mismatched
    return model.eval()


@pytest.mark.parametrize(("name", "extra"), MODELS)
def test_automodel_gives_the_encoders_tokens(tmp_path, make_encoder, images, standardised, name, extra):
    encoder = make_encoder(48, **extra)
    export(encoder, "hf", tmp_path / "model")
    model = opened(tmp_path / "model")
    assert type(model).__name__ == name
    pixels = standardised(encoder, images(3, 48))
    with torch.inference_mode():
        out, ours = model(pixel_values=pixels), encoder.vit(pixels)
    expected = torch.cat([ours.cls.unsqueeze(1), ours.registers, ours.patches], dim=1)
    torch.testing.assert_close(out.last_hidden_state, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.pooler_output, ours.cls, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_the_code_of_the_card_gives_the_encoders_vector(tmp_path, make_encoder, pool, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    image.save("image.jpg", quality=95)
    encoder = make_encoder(pool=pool, num_registers=2, preprocess={"resize": "squash"})
    done = export(encoder, "hf", tmp_path / "model")
    assert done.code in (tmp_path / "model" / "README.md").read_text()
    names = {}
    exec(done.code, names)
    np.testing.assert_allclose(names["vector"].numpy(), encoder.embed("image.jpg").vectors, atol=1e-4)


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (64, 64), (40, 200)])
@pytest.mark.parametrize(
    "how",
    [
        {"resize": "crop", "crop_pct": 0.875, "crop_offset": "floor"},
        {"resize": "squash"},
        {"resize": "squash+crop", "crop_pct": 0.8, "crop_offset": "floor", "interpolation": "bicubic"},
    ],
)
def test_the_image_processor_gives_the_same_pixels(tmp_path, make_encoder, how, size):
    """Within 1 of 255 nearly everywhere: torchvision resizes tensors in fixed point, Pillow rounds between the axes."""
    encoder = make_encoder(32, preprocess=how)
    export(encoder, "hf", tmp_path / "model")
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "model")(smooth, return_tensors="np")["pixel_values"][0]
    preprocess = encoder.preprocess
    theirs = (theirs.transpose(1, 2, 0) * np.array(preprocess.std) + np.array(preprocess.mean)) * 255
    difference = np.abs(theirs - preprocess.apply(smooth))
    assert difference.mean() < 0.5
    assert difference.max() <= 2.01


@pytest.mark.parametrize(("name", "extra"), MODELS)
def test_ours_to_transformers_to_ours(tmp_path, make_encoder, images, name, extra):
    encoder = make_encoder(**extra)
    export(encoder, "hf", tmp_path / "model")
    back = load(tmp_path / "model", device="cpu")
    np.testing.assert_allclose(back.embed_arrays(images(2)), encoder.embed_arrays(images(2)), atol=1e-4)
    assert back.preprocess.mean == encoder.preprocess.mean


def test_facts_travel_along(tmp_path, make_encoder):
    encoder = make_encoder(licence="DINOv3 License")
    export(encoder, "hf", tmp_path / "model")
    told = json.loads((tmp_path / "model" / "vitembed.json").read_text())
    assert told["fingerprint"] == encoder.fingerprint
    assert Preprocess.from_dict(told["preprocess"]) == encoder.preprocess
    assert (told["licence"], told["provenance"]) == ("DINOv3 License", encoder.provenance)
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'license: other\nlicense_name: "DINOv3 License"' in card
    assert "no labels were used" in card


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"stem": "conv"}, "stem='conv'"),
        ({"class_token": False, "attn_pool": True}, "class_token=False, attn_pool=True"),
        ({"pre_norm": True}, "pre_norm=True"),
        ({"num_registers": 1, "mlp_ratio": 3.5}, "mlp_ratio=3.5 beside registers"),
        ({"pos_embed": "rope", "rope_periods": "bfloat16"}, "rope_periods='bfloat16'"),
    ],
)
def test_what_transformers_has_not_is_refused_in_one_line(tmp_path, make_encoder, extra, what):
    with pytest.raises(ModelError, match=f"transformers.* has no {what}.*: export it with --to onnx or --to timm"):
        export(make_encoder(**extra), "hf", tmp_path / "model")
    for how, message in (({"resize": "pad"}, "pads to a square"), ({"interpolation": "box"}, "resize by box")):
        with pytest.raises(ModelError, match=message):
            export(make_encoder(preprocess=how), "hf", tmp_path / "model")
    assert not list(tmp_path.iterdir())
