"""Encoders whose cls vector is whitened: exported, run by the other library, and read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vitembed._torchvision import import_torchvision

import_torchvision()
from transformers import AutoModel

from vitembed.errors import ModelError
from vitembed.model.encoder import load
from vitembed.model.export.formats import export
from vitembed.model.onnx_encoder import OnnxEncoder

WHITENED = {"cls_proj": True}
KINDS = [
    {},
    {"init_values": 0.5, "num_registers": 2},
    {"pos_embed": "rope", "init_values": 0.5, "norm_eps": 1e-5},
]


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("extra", [{}, {"stem": "conv"}, {"num_registers": 2, "init_values": 0.5}])
def test_timms_head_is_the_map(tmp_path, make_encoder, images, standardised, extra, pool):
    encoder = make_encoder(pool=pool, **WHITENED, **extra)
    done = export(encoder, "timm", tmp_path / "model.safetensors")
    names = {"pixels": standardised(encoder, images(3))}
    with torch.inference_mode():
        exec(done.code, names)
    np.testing.assert_allclose(names["vector"].numpy(), encoder.embed_arrays(images(3)), atol=1e-4)
    back = load(tmp_path / "model.safetensors", device="cpu")
    np.testing.assert_allclose(back.embed_arrays(images(3)), encoder.embed_arrays(images(3)), atol=1e-4)
    assert (back.pool, back.licence, back.preprocess) == (pool, "MIT", encoder.preprocess)
    assert back.provenance["provenance"] == encoder.provenance
    assert back.provenance["exported_from"] == encoder.fingerprint


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("extra", KINDS)
def test_the_card_of_transformers_gives_the_vector_and_it_comes_back(
    tmp_path, make_encoder, images, monkeypatch, extra, pool
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(images(1)[0]).save("image.jpg", quality=95)
    encoder = make_encoder(pool=pool, preprocess={"resize": "squash"}, **WHITENED, **extra)
    done = export(encoder, "hf", tmp_path / "model")
    names = {}
    exec(done.code, names)
    np.testing.assert_allclose(names["vector"].numpy(), encoder.embed("image.jpg").vectors, atol=1e-4)
    back = load(tmp_path / "model", device="cpu")
    np.testing.assert_allclose(back.embed_arrays(images(3)), encoder.embed_arrays(images(3)), atol=1e-4)
    assert (back.pool, back.licence, back.preprocess) == (pool, "MIT", encoder.preprocess)


def test_vitmodels_pooler_is_the_map(tmp_path, make_encoder, images, standardised):
    encoder = make_encoder(**WHITENED)
    export(encoder, "hf", tmp_path / "model")
    model, info = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    with torch.inference_mode():
        pooled = model.eval()(pixel_values=standardised(encoder, images(3))).pooler_output
    np.testing.assert_allclose(pooled.numpy(), encoder.embed_arrays(images(3)), atol=1e-4)


@pytest.mark.parametrize("pool", ["cls", "cls+mean", "mean"])
def test_onnx_has_the_map_inside(tmp_path, make_encoder, images, pool):
    encoder = make_encoder(pool=pool, **WHITENED)
    export(encoder, "onnx", tmp_path / "model.onnx")
    vectors = OnnxEncoder.open(tmp_path / "model.onnx").embed_arrays(images(3))
    np.testing.assert_allclose(vectors, encoder.embed_arrays(images(3)), atol=1e-4)


def test_merged_tokens_leave_the_map_alone(make_encoder, images):
    exact, merged = make_encoder(**WHITENED), make_encoder(speed="tome:1", **WHITENED)
    plain = make_encoder(speed="tome:1", **WHITENED)
    plain.vit.cls_proj.weight.data = torch.eye(32)
    plain.vit.cls_proj.bias.data.zero_()
    proj = exact.vit.cls_proj
    expected = plain.embed_arrays(images(2)) @ proj.weight.detach().numpy().T + proj.bias.detach().numpy()
    np.testing.assert_allclose(merged.embed_arrays(images(2)), expected, atol=1e-4)


def test_an_export_that_lost_its_map_is_refused(tmp_path, make_encoder):
    export(make_encoder(init_values=0.5, **WHITENED), "hf", tmp_path / "hf")
    (tmp_path / "hf" / "cls_proj.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cls_proj\.safetensors"):
        load(tmp_path / "hf", device="cpu")
    path = tmp_path / "model.safetensors"
    export(make_encoder(**WHITENED), "timm", path)
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("head.")}
    architecture = {"num_heads": 2, "norm_eps": 1e-6, "act": "gelu"}
    facts = {
        "architecture": architecture,
        "preprocess": make_encoder().preprocess.to_dict(),
        "pool": "cls",
        "licence": None,
        "provenance": {},
    }
    save_file(weights, path, {"vitembed": json.dumps({**facts, "fingerprint": "f", "cls_proj": "head"})})
    with pytest.raises(ModelError, match="export the model anew"):
        load(path, device="cpu")
    save_file(weights, path, {"vitembed": "{"})
    with pytest.raises(ModelError, match="damaged"):
        load(path, device="cpu")
