"""What is exported for timm, loaded by timm alone: the same vectors, strictly, and back again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vitembed.errors import ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.encoder import load
from vitembed.model.export.formats import export
from vitembed.model.export.timm import timm_call

PLAIN = [
    {},
    {"num_registers": 3, "init_values": 0.5},
    {"no_embed_class": True, "num_registers": 2, "qkv_bias": False, "pos_embed": "sincos2d"},
    {"pre_norm": True, "act": "quick_gelu", "norm_eps": 1e-5},
    {"mlp": "swiglu", "init_values": 0.3, "mlp_ratio": 3.0},
]
BY_CODE = [
    {"stem": "conv"},
    {"stem": "conv", "norm_eps": 1e-3},
    {"mlp": "swiglu", "norm_eps": 1e-5},
    {"norm_eps": 1e-12},
]


def run(code, pixels):
    """The code of the card, as a user would run it."""
    names = {"pixels": pixels}
    with torch.inference_mode():
        exec(code, names)
    return names["vector"].numpy(), names["model"]


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("extra", [*PLAIN, *BY_CODE])
def test_the_printed_call_gives_the_encoders_vectors(tmp_path, make_encoder, images, standardised, extra, pool):
    encoder = make_encoder(48, pool=pool, **extra)  # not the native size: positions are resized on the way
    done = export(encoder, "timm", tmp_path / "model.safetensors")
    vectors, _ = run(done.code, standardised(encoder, images(3, 48)))
    np.testing.assert_allclose(vectors, encoder.embed_arrays(images(3, 48)), atol=1e-4)
    assert done.code in (tmp_path / "model.md").read_text()


def test_poolings_of_other_architectures(tmp_path, make_encoder, images, standardised):
    for number, (pool, extra) in enumerate(
        [
            ("mean", {"final_norm": "pooled"}),
            ("mean", {"class_token": False}),
            ("mean", {"final_norm": "none"}),
            ("cls", {"class_token": False, "attn_pool": True}),
        ]
    ):
        encoder = make_encoder(pool=pool, **extra)
        done = export(encoder, "timm", tmp_path / f"{number}.safetensors")
        vectors, _ = run(done.code, standardised(encoder, images(2)))
        np.testing.assert_allclose(vectors, encoder.embed_arrays(images(2)), atol=1e-4)


@pytest.mark.parametrize("extra", PLAIN)
def test_a_folder_is_one_of_timms_hub_models(tmp_path, make_encoder, images, standardised, extra):
    encoder = make_encoder(preprocess={"resize": "squash+crop", "crop_pct": 0.8}, **extra)
    done = export(encoder, "timm", tmp_path / "model")
    model = timm.create_model(f"local-dir:{done.path}", pretrained=True).eval()
    with torch.inference_mode():
        vectors = model(standardised(encoder, images(2))).numpy()
    np.testing.assert_allclose(vectors, encoder.embed_arrays(images(2)), atol=1e-4)
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["crop_mode"], data["crop_pct"]) == ((3, 32, 32), "squash", 0.8)
    assert (tuple(data["mean"]), data["interpolation"]) == ((0.4, 0.5, 0.6), "bilinear")
    np.testing.assert_allclose(run(done.code, standardised(encoder, images(2)))[0], vectors, atol=1e-6)


def test_what_json_cannot_say_has_no_config_that_would_mislead(tmp_path, make_encoder):
    done = export(make_encoder(stem="conv"), "timm", tmp_path / "model")
    assert sorted(file.name for file in done.path.iterdir()) == ["README.md", "model.safetensors", "vitembed.json"]
    assert "HybridEmbed" in (done.path / "README.md").read_text()


def test_facts_travel_along(tmp_path, make_encoder):
    encoder = make_encoder(licence="Apache-2.0")
    export(encoder, "timm", tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()["vitembed"])
    assert told["fingerprint"] == encoder.fingerprint
    assert Preprocess.from_dict(told["preprocess"]) == encoder.preprocess
    assert (told["licence"], told["provenance"]) == ("Apache-2.0", encoder.provenance)
    card = (tmp_path / "model.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "license: apache-2.0" in card
    assert "- images: 3" in card
    assert encoder.fingerprint in card


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_ours_to_timm_to_ours(tmp_path, make_encoder, images, name):
    encoder = make_encoder(num_heads=1)  # heads 32 wide: no table of widths knows that
    saved = save_model(tmp_path / "ours", encoder.vit, encoder.preprocess)
    export(load(saved, device="cpu"), "timm", tmp_path / name)
    weights = load_file(tmp_path / name if "." in name else tmp_path / name / "model.safetensors")
    assert {key: tuple(value.shape) for key, value in weights.items()} == {
        key: tuple(value.shape) for key, value in encoder.vit.state_dict().items()
    }
    for key, value in encoder.vit.state_dict().items():
        assert torch.equal(weights[key], value)
    if name == "model":  # config.json says how many heads
        back = load(tmp_path / name, device="cpu")
        np.testing.assert_allclose(back.embed_arrays(images(2)), encoder.embed_arrays(images(2)), atol=1e-6)
        assert back.preprocess.mean == encoder.preprocess.mean


@pytest.mark.parametrize(
    ("pool", "extra", "what"),
    [
        ("cls", {"pos_embed": "rope"}, "pos_embed='rope'"),
        ("cls", {"final_norm": "pooled"}, "pool 'cls' without a norm"),
        ("mean", {"class_token": False, "attn_pool": True}, "pool 'mean' beside attn_pool"),
    ],
)
def test_what_timm_has_not_is_refused_in_one_line(tmp_path, make_encoder, pool, extra, what):
    with pytest.raises(ModelError, match=f"timm's ViT has no {what}.*: export it with --to onnx"):
        export(make_encoder(pool=pool, **extra), "timm", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_public_sizes_keep_their_arguments(make_encoder):
    call = timm_call(make_encoder().vit.config, "cls", 32)
    assert call.architecture == "vit_base_patch16_224"
    assert not call.code_args
    assert call.args["embed_dim"] == 32
