"""Mixup and CutMix against plain loops; the loss against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitembed.config.finetuning import LabelsConfig
from vitembed.pretrain.supervised.mixing import draw_mix, mix_images, mix_targets
from vitembed.pretrain.supervised.module import soft_cross_entropy

SIDE = 12


def mixed_in_loops(pixels, mix):
    """The papers' words, one pixel at a time."""
    out = pixels.copy()
    for i in range(len(pixels)):
        other = pixels[int(mix.partner[i])]
        if mix.pasted[i]:
            left, top, right, bottom = (int(edge) for edge in mix.box[i])
            for y in range(top, bottom):
                for x in range(left, right):
                    out[i, :, y, x] = other[:, y, x]
        else:
            share = float(mix.share[i])
            out[i] = share * pixels[i] + (1 - share) * other
    return out


@pytest.mark.parametrize(
    "config",
    [
        LabelsConfig(mix_prob=1.0),
        LabelsConfig(mix_prob=1.0, mixup_alpha=0.0),
        LabelsConfig(mix_prob=1.0, cutmix_alpha=0.0),
        LabelsConfig(mix_prob=0.5),
    ],
)
def test_images_and_targets_are_those_of_a_plain_loop(config):
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((40, 3, SIDE, SIDE)).astype(np.float32)
    classes = rng.integers(0, 5, 40)
    mix = draw_mix(40, SIDE, config, rng)
    found = mix_images(torch.from_numpy(pixels), mix).numpy()
    np.testing.assert_allclose(found, mixed_in_loops(pixels, mix), atol=1e-6)
    targets = mix_targets(torch.from_numpy(classes), 5, mix).numpy()
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    for i, row in enumerate(targets):
        expected = np.zeros(5)
        expected[classes[i]] += float(mix.share[i])
        expected[classes[int(mix.partner[i])]] += 1 - float(mix.share[i])
        np.testing.assert_allclose(row, expected, atol=1e-6)
    assert (mix.partner.numpy() != np.arange(40)).all()


def test_the_share_of_cutmix_is_that_of_the_pixels_left():
    mix = draw_mix(400, SIDE, LabelsConfig(mix_prob=1.0, mixup_alpha=0.0), np.random.default_rng(1))
    own, other = torch.zeros(400, 1, SIDE, SIDE), torch.ones(400, 1, SIDE, SIDE)
    # Each image sees ones in its partner: what is 0 afterwards is its own.
    pixels = torch.where((torch.arange(400) % 2 == 0).reshape(-1, 1, 1, 1), own, other)
    found = mix_images(pixels, mix)
    left = (found == pixels).float().mean(dim=(1, 2, 3))
    differ = pixels[:, 0, 0, 0] != pixels[mix.partner, 0, 0, 0]
    assert differ.any()
    torch.testing.assert_close(left[differ], mix.share[differ])
    assert 0.3 < float(mix.share.mean()) < 0.75  # Beta(1, 1), with boxes cut off at the edges
    assert bool((mix.box[:, :2] >= 0).all() and (mix.box[:, 2:] <= SIDE).all())


def test_how_often_images_are_mixed_and_that_others_stay_as_they_are():
    mix = draw_mix(4000, SIDE, LabelsConfig(mix_prob=0.25), np.random.default_rng(2))
    pixels = torch.randn(4000, 1, SIDE, SIDE)
    same = (mix_images(pixels, mix) == pixels).all(dim=(1, 2, 3))
    assert 0.70 < float(same.float().mean()) < 0.82
    assert torch.equal(same | (mix.share < 1), torch.ones(4000, dtype=torch.bool))
    alone = draw_mix(1, SIDE, LabelsConfig(mix_prob=1.0), np.random.default_rng(3))
    assert torch.equal(mix_images(pixels[:1], alone), pixels[:1])
    never = draw_mix(64, SIDE, LabelsConfig(mix_prob=1.0, mixup_alpha=0.0, cutmix_alpha=0.0), np.random.default_rng(4))
    assert torch.equal(mix_images(pixels[:64], never), pixels[:64])
    assert (never.share == 1).all()


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_textbook_s(weights, smoothing):
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((7, 3)) * 5, rng.dirichlet(np.ones(3), 7)
    smooth = targets * (1 - smoothing) + smoothing / 3
    log_prob = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -(smooth * log_prob * np.array(weights or [1, 1, 1])).sum(axis=1).mean()
    found = soft_cross_entropy(
        torch.from_numpy(logits).float(),
        torch.from_numpy(targets).float(),
        smoothing=smoothing,
        class_weights=None if weights is None else torch.tensor(weights),
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_in_fp32_in_a_run_in_16_bits():
    logits = torch.full((2, 3), 300.0, dtype=torch.bfloat16) * torch.tensor([[1.0, 0, -1]], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = soft_cross_entropy(logits, torch.eye(3)[:2], smoothing=0.1, class_weights=None)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
