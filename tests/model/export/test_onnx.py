"""ONNX files through onnxruntime against the encoder in torch, and the reader that loads no torch."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from torch import nn

from vitembed.config import ViTConfig
from vitembed.errors import ConfigError, DataError, ModelError
from vitembed.model.export.onnx import export_onnx
from vitembed.model.onnx_encoder import OnnxEncoder

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"num_registers": 3, "init_values": 0.5},
        {"no_embed_class": True, "num_registers": 2, "qkv_bias": False, "pos_embed": "sincos2d"},
        {"stem": "conv", "mlp_ratio": 3.0},
        {"pre_norm": True, "act": "quick_gelu", "norm_eps": 1e-5, "pos_interpolation": "bicubic_offset"},
        {"pos_embed": "rope", "num_registers": 2, "mlp": "swiglu", "init_values": 0.3},
        {"class_token": False, "attn_pool": True, "act": "gelu_tanh", "pos_interpolation": "bicubic"},
        {"final_norm": "pooled"},
        {"class_token": False, "final_norm": "none"},
    ],
)
def test_the_graph_gives_the_encoders_vectors_at_any_batch_size(tmp_path, extra, pool, make_encoder, images):
    if "cls" in pool and not ViTConfig(**TINY, **extra).has_cls:
        pool = "mean"
    encoder = make_encoder(img_size=48, pool=pool, **extra)  # not the native size: positions are interpolated
    path = export_onnx(encoder, tmp_path / "model.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    opened = OnnxEncoder.open(path)
    assert opened.embed_dim == encoder.embed_dim
    for num in (0, 1, 3, 17):
        expected, found = encoder.embed_arrays(images(num, 48)), opened.embed_arrays(images(num, 48))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_everything_that_belongs_to_the_weights_travels_along(tmp_path, make_encoder):
    encoder = make_encoder()
    path = export_onnx(encoder, tmp_path / "model.onnx")
    opened = OnnxEncoder.open(path)
    assert opened.fingerprint == encoder.fingerprint
    assert opened.preprocess == encoder.preprocess
    assert (opened.pool, opened.name, opened.licence, opened.provenance) == ("cls", "tiny", "MIT", encoder.provenance)
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(told["preprocess"])["mean"] == [0.4, 0.5, 0.6]
    assert "uint8 [batch, 32, 32, 3], RGB" in told["input"]


def test_another_pool_is_another_fingerprint(tmp_path, make_encoder, images):
    mean = make_encoder(pool="mean")
    opened = OnnxEncoder.open(export_onnx(make_encoder(), tmp_path / "mean.onnx", pool="mean"))
    assert (opened.pool, opened.fingerprint) == ("mean", mean.fingerprint)
    np.testing.assert_allclose(opened.embed_arrays(images(2)), mean.embed_arrays(images(2)), atol=1e-5)
    with pytest.raises(ConfigError, match="unknown pool 'max'"):
        export_onnx(make_encoder(), tmp_path / "max.onnx", pool="max")


def test_reading_loads_no_torch(tmp_path, make_encoder, images):
    encoder = make_encoder()
    path = export_onnx(encoder, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", images(2))
    code = f"""
import sys, numpy as np
from vitembed.model.onnx_encoder import OnnxEncoder
vectors = OnnxEncoder.open({str(path)!r}).embed_arrays(np.load({str(tmp_path / "images.npy")!r}))
assert not {{"torch", "onnx", "faiss", "pytorch_lightning"}} & set(sys.modules), sorted(sys.modules)
np.save({str(tmp_path / "vectors.npy")!r}, vectors)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), encoder.embed_arrays(images(2)), atol=1e-5)


def test_weights_beyond_a_limit_lie_beside_the_graph(tmp_path, make_encoder, images):
    encoder = make_encoder()
    path = export_onnx(encoder, tmp_path / "model.onnx", one_file_bytes=1000)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"model-{encoder.fingerprint[:12]}.data", "model.onnx"]
    assert path.stat().st_size < 20_000
    np.testing.assert_allclose(
        OnnxEncoder.open(path).embed_arrays(images(2)), encoder.embed_arrays(images(2)), atol=1e-5
    )
    next(tmp_path.glob("*.data")).unlink()
    with pytest.raises(ModelError, match=r"cannot read .*model.onnx"):
        OnnxEncoder.open(path)


def test_files_that_are_no_export_are_one_clear_line(tmp_path, make_encoder):
    path = export_onnx(make_encoder(), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="no ONNX file at .*none.onnx: write one with `vitembed export --to onnx"):
        OnnxEncoder.open(tmp_path / "none.onnx")
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"cannot read .*half.onnx: .*; export it anew"):
        OnnxEncoder.open(tmp_path / "half.onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"format": "vitembed-onnx", "format_version": "2"})
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(ModelError, match="has format version 2, this vitembed reads up to 1: update vitembed"):
        OnnxEncoder.open(tmp_path / "newer.onnx")
    onnx.helper.set_model_props(model, {"author": "someone"})
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="was not written by `vitembed export --to onnx`"):
        OnnxEncoder.open(tmp_path / "other.onnx")
    onnx.helper.set_model_props(model, {"format": "vitembed-onnx", "format_version": "1", "fingerprint": "x"})
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ModelError, match="is damaged: 'preprocess'"):
        OnnxEncoder.open(tmp_path / "bare.onnx")


@pytest.mark.parametrize(
    "change",
    [lambda a: a[:, :24], lambda a: a.astype(np.float32), lambda a: a[0], lambda a: a[..., :1]],
    ids=["size", "type", "single", "channels"],
)
def test_arrays_that_were_not_preprocessed_are_refused(tmp_path, change, make_encoder, images):
    opened = OnnxEncoder.open(export_onnx(make_encoder(), tmp_path / "model.onnx"))
    with pytest.raises(DataError, match=r"expected uint8 images \[b, 32, 32, 3\], got"):
        opened.embed_arrays(change(images(1)))


def test_a_faster_encoder_and_another_librarys_model_are_refused(tmp_path, make_encoder):
    with pytest.raises(ModelError, match="speed tome:2 cannot be exported.*open it without speed"):
        export_onnx(make_encoder(speed="tome:2"), tmp_path / "model.onnx")
    wrapped = make_encoder()
    wrapped.vit = nn.Identity()
    with pytest.raises(ModelError, match="Identity is not vitembed's own ViT, and the ONNX export cannot hold it"):
        export_onnx(wrapped, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
