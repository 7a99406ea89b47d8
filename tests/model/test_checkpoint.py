"""The model folder: round trip, damage, replacement."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitembed.config import ViTConfig, to_dict
from vitembed.errors import ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import fingerprint, read_model, save_model
from vitembed.model.vit import VisionTransformer

CONFIG = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)


@pytest.fixture
def model_dir(tmp_path):
    torch.manual_seed(0)
    return save_model(
        tmp_path / "model", VisionTransformer(CONFIG), Preprocess(img_size=16), provenance={"num_images": 3}
    )


def test_what_is_read_is_what_was_saved(tmp_path):
    vit = VisionTransformer(CONFIG)
    directory = save_model(tmp_path / "m", vit, Preprocess(img_size=16, background=(0, 0, 0)), pool="mean")
    saved = read_model(directory)
    assert saved.vit.config == CONFIG
    assert saved.pool == "mean"
    assert saved.preprocess.background == (0, 0, 0)
    for name, tensor in vit.state_dict().items():
        assert torch.equal(saved.vit.state_dict()[name], tensor)
    assert saved.fingerprint == fingerprint(vit.state_dict(), CONFIG, saved.preprocess, "mean")
    assert sorted(path.name for path in directory.iterdir()) == ["config.json", "encoder.safetensors"]


def test_an_encoder_with_a_convolutional_stem_comes_back_with_its_batch_statistics(tmp_path):
    config = dataclasses.replace(CONFIG, stem="conv")
    vit = VisionTransformer(config).train()
    for _ in range(3):
        vit(torch.rand(4, 3, 16, 16) * 5 + 1)  # moves the running statistics and their counter
    pixels = torch.randn(2, 3, 16, 16)
    saved = read_model(save_model(tmp_path / "m", vit, Preprocess(img_size=16)))
    for name, tensor in vit.state_dict().items():
        assert torch.equal(saved.vit.state_dict()[name], tensor)
    with torch.no_grad():
        torch.testing.assert_close(saved.vit(pixels).cls, vit.eval()(pixels).cls)
    assert saved.fingerprint == fingerprint(vit.state_dict(), config, saved.preprocess, "cls")


def test_a_plain_patch_embedding_has_the_fingerprint_from_before_there_were_stems():
    vit = VisionTransformer(CONFIG)
    first = "depth embed_dim img_size in_chans init_values mlp_ratio no_embed_class num_heads num_registers patch_size"
    architecture = {k: v for k, v in to_dict(CONFIG).items() if k in [*first.split(), "pos_embed", "qkv_bias"]}
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    digest.update(Preprocess(img_size=16).canonical().encode())
    digest.update(b"cls")
    for name, tensor in sorted(vit.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    assert fingerprint(vit.state_dict(), CONFIG, Preprocess(img_size=16), "cls") == digest.hexdigest()


def test_the_fingerprint_changes_with_everything_that_changes_a_vector():
    vit = VisionTransformer(CONFIG)
    base = fingerprint(vit.state_dict(), CONFIG, Preprocess(img_size=16), "cls")
    assert base != fingerprint(vit.state_dict(), CONFIG, Preprocess(img_size=16), "mean")
    assert base != fingerprint(vit.state_dict(), CONFIG, Preprocess(img_size=16, interpolation="bilinear"), "cls")
    weights = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    assert base == fingerprint(weights, CONFIG, Preprocess(img_size=16), "cls")
    weights["norm.bias"][0] += 1e-7
    assert base != fingerprint(weights, CONFIG, Preprocess(img_size=16), "cls")


def test_a_new_model_takes_the_place_of_the_old_one(model_dir):
    before = read_model(model_dir).fingerprint
    save_model(model_dir, VisionTransformer(CONFIG), Preprocess(img_size=16))
    assert read_model(model_dir).fingerprint != before
    assert [path.name for path in model_dir.parent.iterdir()] == ["model"]


def test_changed_weights_are_found_out(model_dir):
    weights = load_file(model_dir / "encoder.safetensors")
    weights["norm.bias"][0] += 1
    save_file(weights, model_dir / "encoder.safetensors")
    with pytest.raises(ModelError, match="was changed after it was written"):
        read_model(model_dir)


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_truncated_weights_are_one_clear_line(model_dir, cut):
    path = model_dir / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match="cannot read .*encoder.safetensors"):
        read_model(model_dir)


def test_a_header_that_claims_gigabytes_is_refused(model_dir):
    path = model_dir / "encoder.safetensors"
    path.write_bytes((10 << 30).to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ModelError, match="cannot read .*encoder.safetensors"):
        read_model(model_dir)


def test_weights_of_another_architecture_are_named(model_dir):
    config = json.loads((model_dir / "config.json").read_text())
    config["architecture"]["depth"] = 2
    (model_dir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"do not fit the config: missing blocks.1.norm1.weight.* and 9 more"):
        read_model(model_dir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "has format version 99, this vitembed reads up to 1: update vitembed"),
        ({"format": "other"}, "does not describe a vitembed encoder"),
        ({"preprocess": {}}, "missing key"),
        ({"architecture": {"img_size": 16}}, "is damaged"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_clear_line(model_dir, change, message):
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=message):
        read_model(model_dir)


def test_no_model_says_what_is_expected(tmp_path, model_dir):
    with pytest.raises(ModelError, match="expected a folder with encoder.safetensors and config.json"):
        read_model(tmp_path / "nothing")
    (model_dir / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json is damaged .it is no JSON."):
        read_model(model_dir)
    shutil.rmtree(model_dir)
