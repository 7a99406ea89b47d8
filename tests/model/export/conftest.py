"""Encoders whose weights are all random, so that none hides behind a zero or one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def make_encoder():
    """``make_encoder(img_size, pool=..., preprocess={...}, **fields of ViTConfig)``."""

    def make(img_size=32, *, pool="cls", speed="exact", preprocess=None, licence="MIT", **extra) -> Encoder:
        torch.manual_seed(0)
        vit = VisionTransformer(ViTConfig(**{**TINY, **extra}))
        for parameter in vit.parameters():
            nn.init.normal_(parameter, std=0.2)
        if extra.get("stem") == "conv":
            vit.train()(torch.randn(8, vit.config.in_chans, 32, 32) * 3 + 1)  # moves the running statistics
        how = {"mean": (0.4, 0.5, 0.6), "interpolation": "bilinear", **(preprocess or {})}
        facts = {"num_images": 3, "config": {"seed": 1}}
        return Encoder(
            vit,
            Preprocess(img_size=img_size, **how),
            pool=pool,
            speed=speed,
            name="tiny",
            licence=licence,
            provenance=facts,
        )

    return make


@pytest.fixture
def standardised():
    """``standardised(encoder, uint8 [b, s, s, c])``: what its ViT takes, by NumPy."""

    def pixels(encoder, images):
        mean, std = np.float32(encoder.preprocess.mean), np.float32(encoder.preprocess.std)
        return torch.from_numpy((images.astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2)

    return pixels


@pytest.fixture
def images():
    """``images(num, size)``: uint8 noise [num, size, size, 3]."""
    return lambda num, size=32: np.random.default_rng(num).integers(0, 256, (num, size, size, 3), dtype=np.uint8)
