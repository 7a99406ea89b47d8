"""The parts of the embedding benchmark: what is compared with what. No time is tested."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from embedding.rounds import in_rounds
from embedding.speeds import agreement, at_speed, forward_speeds, sample_images
from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer


def tiny() -> Encoder:
    torch.manual_seed(0)
    config = ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    return Encoder(VisionTransformer(config), Preprocess(img_size=32))


def test_every_way_has_its_turn_and_another_place_each_round():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "abc"}
    assert list(in_rounds(ways, seconds=0, min_rounds=3)) == ["a", "b", "c"]
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"


def test_peers_run_the_same_weights_and_agreement_is_a_share(tmp_path):
    encoder = tiny()
    images = sample_images(encoder, 14)
    shares = agreement(encoder, ["exact", "tome:0", "half", "tome:8"], images, k=3)
    assert list(shares) == ["half", "tome:8"]
    assert all(0 <= share <= 1 for share in shares.values())
    assert str(at_speed(encoder, "tome:8").speed) == "tome:8"
    names = forward_speeds(encoder, ["tome:2"], tmp_path, batch_size=2, seconds=0)
    assert list(names) == ["exact", "tome:2", "timm", "transformers", "onnxruntime"]
    assert np.unique(images.reshape(14, -1), axis=0).shape[0] == 14
