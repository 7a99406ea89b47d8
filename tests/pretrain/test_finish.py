"""What is exported at the end of a run: the cls vector whitened on the run's own images."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import vitembed
from vitembed.config import PretrainConfig, ViTConfig
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import find_images
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import whitened
from vitembed.pretrain.finish import MIN_IMAGES, NUM_IMAGES, finished, num_looked_at, same_weights, whiten_share
from vitembed.pretrain.onward.adapt import started_from
from vitembed.recipes import load_config
from vitembed.workspace import find_workspace

PREPROCESS = Preprocess(img_size=16)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(48):
        colour, dots = rng.integers(0, 255, 3), rng.integers(0, 60, (24, 24, 3))
        Image.fromarray((colour + dots).clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i:02d}.png")
    return tmp_path


@pytest.fixture
def vit():
    torch.manual_seed(0)
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    return VisionTransformer(config).eval()


def spread(vectors):
    values = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False) ** 2
    return values[0] / values.sum()


def test_the_exported_vectors_are_centred_and_more_even_than_the_trained_ones(folder, vit):
    refs = find_images([folder]).refs
    cache = ImageCache.in_memory(refs, size=24)
    done = finished(vit, cache, PREPROCESS, share=0.5)
    before, after = (Encoder(each, PREPROCESS).embed([folder]).vectors for each in (vit, done))
    assert spread(after) < 0.9 * spread(before)
    # The cache holds what the encoder will see but for rounding, so its mean is the images' own.
    assert np.abs(after.mean(axis=0)).max() < 0.1 * np.abs(after).max()
    assert finished(vit, cache, PREPROCESS, share=0.0) is vit


def test_a_run_that_goes_on_whitens_where_its_parent_was_whitened(vit, tmp_path):
    config = load_config(PretrainConfig, "nano")
    plain = read_model(save_model(tmp_path / "plain", vit, PREPROCESS))
    vectors = torch.randn(64, 16)
    white = read_model(save_model(tmp_path / "white", whitened(vit, vectors, 0.5), PREPROCESS))
    assert config.model.whiten == 0.5
    assert whiten_share(config, None) == 0.5
    assert whiten_share(config, plain) == 0.0
    assert whiten_share(config, white) == 0.5
    begun = started_from(white.vit, img_size=16, drop_path_rate=0.0)  # training goes on with the vector as it was
    assert same_weights(begun, vit)
    assert begun.config == dataclasses.replace(vit.config, cls_proj=False)


def test_the_model_of_a_run_is_whitened_and_so_is_its_best(folder, tmp_path_factory):
    settings = ["optim.max_steps=4", "optim.batch_size=16", "trainer.num_pictures=2", "trainer.accelerator=cpu"]
    model = ["model.img_size=16", "model.patch_size=8", "model.embed_dim=16", "model.depth=1", "model.num_heads=2"]
    workspace = find_workspace(tmp_path_factory.mktemp("work"), create=True)
    head = ["objective.head_hidden_dim=16", "objective.head_dim=8", "objective.decoder_dim=32"]
    result = vitembed.pretrain(
        folder, config="smoke", overrides=[*settings, *model, *head], workspace=workspace, progress=False
    )
    encoder = vitembed.load(result.model_dir)
    assert encoder.vit.config.cls_proj
    vectors = encoder.embed([folder]).vectors
    assert np.abs(vectors.mean(axis=0)).max() < 0.2 * np.abs(vectors).max()
    assert read_model(result.run_dir / "best").vit.config.cls_proj
    off = vitembed.pretrain(
        folder, config="smoke", overrides=[*settings, *model, *head, "model.whiten=0"], name="off",
        workspace=workspace, progress=False,
    )  # fmt: skip
    assert not vitembed.load(off.model_dir).vit.config.cls_proj


def test_fewer_images_are_looked_at_where_each_is_dear(folder, tmp_path_factory):
    refs = find_images([folder]).refs
    cache, cpu, gpu = ImageCache.in_memory(refs, size=24), torch.device("cpu"), torch.device("cuda")
    nano, base = (load_config(PretrainConfig, name).model.vit() for name in ("nano", "base"))
    assert num_looked_at(nano, cache, cpu) == NUM_IMAGES
    assert num_looked_at(base, cache, cpu) == MIN_IMAGES
    assert num_looked_at(base, cache, gpu) == NUM_IMAGES
    assert num_looked_at(nano, ImageCache.on_demand(refs, tmp_path_factory.mktemp("cache"), size=24), gpu) == MIN_IMAGES
