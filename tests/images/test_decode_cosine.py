"""What scaled decoding does to vectors: an encoder gives the same ones (benchmarks/decode_cosine.py has more)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = ViTConfig(img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2)
    vit = VisionTransformer(config)
    with torch.no_grad():
        vit.pos_embed.zero_()  # so that vectors are of the pixels alone, which tells photos apart without training
        vit.cls_token.zero_()
    return Encoder(vit, Preprocess(img_size=64), pool="mean")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1200, 900), (640, 427)])  # decoded at 1/4, and at 1/2
def test_vectors_of_scaled_photos_are_those_of_whole_ones(encoder, tmp_path, progressive, size):
    rng = np.random.default_rng(0)
    refs = []
    for number, photo in enumerate(load_sample_images().images):
        large = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.normal(0, 5, large.shape).astype(np.int16)
        path = tmp_path / f"{number}.jpg"
        image = Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))
        image.save(path, quality=90, progressive=progressive)
        refs.append(ImageRef(str(path)))
    ways = (encoder.preprocess, dataclasses.replace(encoder.preprocess, draft=False))
    scaled, whole = (np.stack([way.load(ref) for ref in refs]) for way in ways)
    assert (scaled != whole).any()
    near, exact = (encoder.embed_arrays(arrays) for arrays in (scaled, whole))
    near, exact = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (near, exact))
    assert (near * exact).sum(axis=1).min() > 0.995
    assert near[0] @ near[1] < 0.98


def halftone(width, height):
    """Black and white alone, grey from afar: overshoots are clipped at full size, and not in a scaled decode."""
    rng = np.random.default_rng(1)
    slope = np.tile(np.linspace(0, 255, width), (height, 1))
    return Image.fromarray(((slope > rng.integers(0, 255, slope.shape)) * 255).astype(np.uint8))


@pytest.mark.parametrize(("size", "name"), [((500, 500), "halftone"), ((533, 531), "stripes"), ((800, 531), "stripes")])
def test_small_and_odd_sized_jpegs_keep_their_vectors(encoder, tmp_path, size, name):
    width, height = size
    stripes = 128 + 100 * np.sin(np.arange(width) / 9)[None] * np.cos(np.arange(height) / 23)[:, None]
    image = halftone(*size) if name == "halftone" else Image.fromarray(stripes.astype(np.uint8))
    image.save(tmp_path / "a.jpg", quality=75)
    ref = ImageRef(str(tmp_path / "a.jpg"))
    for side in (32, 64):
        scaled, whole = (Preprocess(img_size=side, draft=draft).load(ref) for draft in (True, False))
        assert np.abs(scaled.astype(int) - whole).mean() < (0.01 if name == "halftone" else 4)
    pair = [dataclasses.replace(encoder.preprocess, draft=draft).load(ref) for draft in (True, False)]
    near, exact = encoder.embed_arrays(np.stack(pair))
    assert near @ exact / np.linalg.norm(near) / np.linalg.norm(exact) > 0.99
