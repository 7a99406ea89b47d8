"""Each term against a plain NumPy loop or the value that its formula must have."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch

from vitembed.pretrain.losses import (
    alignment_loss,
    centre_alignment,
    coding_rate,
    cosine_regression,
    info_nce,
    latent_patch_loss,
    normalise_patches,
    reconstruction_loss,
    visreg,
)
from vitembed.pretrain.masking import gather_patches, num_visible, random_mask


def cosine(a, b):
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_reconstruction_counts_removed_patches_only():
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    total, count = 0.0, 0
    for b in range(2):
        for n in range(3):
            if mask[b, n]:
                total += np.mean((pred[b, n] - target[b, n]) ** 2)
                count += 1
    loss = reconstruction_loss(*map(torch.from_numpy, (pred, target, mask)))
    assert loss.item() == pytest.approx(total / count, rel=1e-6)


def test_normalised_patches_have_mean_0_and_variance_1():
    patches = normalise_patches(torch.rand(2, 5, 48) * 7 + 3)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(-1), torch.ones(2, 5), atol=1e-4, rtol=0)
    assert torch.isfinite(normalise_patches(torch.full((1, 1, 48), 0.5))).all()


@pytest.mark.parametrize("views", [2, 3, 4])
def test_alignment_is_the_mean_over_all_pairs_of_views(views):
    z = np.random.default_rng(1).normal(size=(views, 5, 7)).astype(np.float32)
    pairs = [cosine(z[i, b], z[j, b]) for b in range(5) for i in range(views) for j in range(views) if i != j]
    assert alignment_loss(torch.from_numpy(z)).item() == pytest.approx(1 - np.mean(pairs), abs=1e-5)


@pytest.mark.parametrize(("views", "num_global"), [(2, 2), (5, 2), (3, 1)])
def test_alignment_with_a_teacher_pairs_each_view_with_the_other_global_views(views, num_global):
    rng = np.random.default_rng(4)
    z, target = rng.normal(size=(views, 4, 6)), rng.normal(size=(num_global, 4, 6))
    pairs = [cosine(z[i, b], target[j, b]) for b in range(4) for i in range(views) for j in range(num_global) if i != j]
    loss = alignment_loss(torch.from_numpy(z).float(), torch.from_numpy(target).float())
    assert loss.item() == pytest.approx(1 - np.mean(pairs), abs=1e-5)


def test_alignment_of_equal_views_is_0_and_of_opposite_ones_2():
    z = torch.randn(1, 4, 8)
    assert alignment_loss(z.repeat(2, 1, 1)).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(torch.cat([z, -z])).item() == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize(("b", "d"), [(32, 8), (8, 32)])
def test_coding_rate_follows_the_formula_on_both_sides_of_the_batch_size(b, d):
    z = np.random.default_rng(2).normal(size=(b, d))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    _, logdet = np.linalg.slogdet(np.eye(d) + d / (b * 0.05) * unit.T @ unit)
    expected = (b + d) / (2 * b * d) * logdet
    assert coding_rate(torch.from_numpy(z).float(), 0.05).item() == pytest.approx(expected, rel=1e-5)


def test_coding_rate_of_collapsed_vectors_is_small_and_of_orthogonal_ones_the_largest():
    d = 16
    orthogonal = torch.linalg.qr(torch.randn(d, d)).Q
    collapsed = torch.ones(d, d)
    largest = (2 * d) / (2 * d * d) * d * math.log(1 + 1 / 0.05)
    assert coding_rate(orthogonal).item() == pytest.approx(largest, rel=1e-4)
    assert coding_rate(collapsed) < 0.2 * coding_rate(torch.randn(d, d)) < coding_rate(orthogonal)


@pytest.mark.parametrize("views", [2, 3])
def test_info_nce_equals_a_loop(views):
    z = np.random.default_rng(3).normal(size=(views, 4, 6)).astype(np.float32)
    losses = []
    for v in range(views):
        for b in range(4):
            others = [math.exp(cosine(z[v, b], z[w, c]) / 0.2) for w in range(views) for c in range(4) if c != b]
            for w in range(views):
                if w != v:
                    positive = math.exp(cosine(z[v, b], z[w, b]) / 0.2)
                    losses.append(-math.log(positive / (positive + sum(others))))
    assert info_nce(torch.from_numpy(z), 0.2).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_info_nce_with_a_teacher_and_local_views_equals_a_loop():
    rng = np.random.default_rng(5)
    z, keys = rng.normal(size=(3, 4, 6)), rng.normal(size=(2, 4, 6))
    losses = []
    for v in range(3):
        for b in range(4):
            others = [math.exp(cosine(z[v, b], keys[w, c]) / 0.1) for w in range(2) for c in range(4) if c != b]
            for w in range(2):
                if w != v:
                    positive = math.exp(cosine(z[v, b], keys[w, b]) / 0.1)
                    losses.append(-math.log(positive / (positive + sum(others))))
    loss = info_nce(torch.from_numpy(z).float(), 0.1, torch.from_numpy(keys).float())
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_centre_alignment_is_the_squared_distance_from_the_mean_of_the_global_views():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(4, 3, 5)).astype(np.float32)
    centre = (z[0] + z[1]) / 2
    expected = np.mean([(z[v, b, d] - centre[b, d]) ** 2 for v in range(4) for b in range(3) for d in range(5)])
    assert centre_alignment(*map(torch.from_numpy, (z, z[:2]))).item() == pytest.approx(expected, rel=1e-5)


def test_visreg_equals_a_loop():
    rng = np.random.default_rng(7)
    z = rng.normal(2, 3, size=(6, 4))
    directions = rng.normal(size=(4, 5))
    directions /= np.linalg.norm(directions, axis=0)
    mean, std = z.mean(0), z.std(0)
    quantiles = [statistics.NormalDist().inv_cdf((i + 1) / 7) for i in range(6)]
    shape = []
    for s in range(5):
        on_line = sorted(float(np.dot((z[b] - mean) / std, directions[:, s])) for b in range(6))
        shape += [(value - quantile) ** 2 for value, quantile in zip(on_line, quantiles, strict=True)]
    moments = visreg(torch.from_numpy(z).float(), torch.from_numpy(directions).float(), eps=0.0)
    assert moments.center.item() == pytest.approx(np.mean(mean**2), rel=1e-5)
    assert moments.scale.item() == pytest.approx(np.mean((1 - std) ** 2), rel=1e-5)
    assert moments.shape.item() == pytest.approx(np.mean(shape), rel=1e-4)


def test_visreg_of_a_gaussian_is_small_and_of_collapsed_vectors_its_scale_is_1():
    directions = torch.nn.functional.normalize(torch.randn(8, 64), dim=0)
    gaussian = visreg(torch.randn(4000, 8), directions)
    assert max(gaussian) < 0.01
    collapsed = visreg(torch.full((100, 8), 0.5), directions)
    assert collapsed.scale.item() == pytest.approx(1.0)
    assert collapsed.center.item() == pytest.approx(0.25)


def test_visregs_shape_passes_no_gradient_through_the_standard_deviation():
    z = torch.randn(32, 4, requires_grad=True)
    visreg(z, torch.eye(4)).shape.backward()
    # Without the stop the shape would not depend on the scale of z at all: z . grad would be 0.
    assert abs((z.detach() * z.grad).sum().item()) > 1e-3


@pytest.mark.parametrize("num_local", [0, 2])
def test_visreg_terms_are_those_of_lightly(num_local):
    peer = pytest.importorskip("lightly.loss.visreg_loss", reason="lightly is an extra")
    z = torch.randn(2 + num_local, 16, 8) * 2 + 1
    parts = peer.VISRegLoss(num_slices=20_000).forward_components(local_proj=z[2:], global_proj=z[:2])
    directions = torch.nn.functional.normalize(torch.randn(8, 20_000), dim=0)
    moments = [visreg(view, directions) for view in z]
    for ours, theirs in (
        (centre_alignment(z, z[:2]), parts.pred),
        (torch.stack([moment.center for moment in moments]).mean(), parts.center),
        (torch.stack([moment.scale for moment in moments]).mean(), parts.scale),
    ):
        torch.testing.assert_close(ours, theirs)
    shape = torch.stack([moment.shape for moment in moments]).mean()
    torch.testing.assert_close(shape, parts.shape, rtol=0.05, atol=0)  # other random directions


def test_latent_patches_count_where_they_were_hidden_and_the_target_gets_no_gradient():
    rng = np.random.default_rng(8)
    pred, target = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    expected = np.mean([1 - cosine(pred[b, n], target[b, n]) for b in range(2) for n in range(3) if mask[b, n]])
    tensors = [torch.from_numpy(pred).requires_grad_(), torch.from_numpy(target).requires_grad_()]
    loss = latent_patch_loss(*tensors, torch.from_numpy(mask))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert tensors[0].grad is not None
    assert tensors[1].grad is None


def test_cosine_regression_of_known_vectors():
    pred = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    target = torch.tensor([[5.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    expected = torch.tensor([0.0, 2.0, 1 - math.sqrt(0.5)])
    torch.testing.assert_close(cosine_regression(pred, target), expected)


def test_two_view_info_nce_equals_cross_entropy_over_the_other_vectors():
    z = torch.randn(2, 8, 16)
    unit = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
    logits = (unit @ unit.T / 0.1).fill_diagonal_(float("-inf"))
    target = torch.arange(16).roll(8)
    torch.testing.assert_close(info_nce(z, 0.1), torch.nn.functional.cross_entropy(logits, target))


@pytest.mark.parametrize("loss", [alignment_loss, info_nce, lambda z: coding_rate(z[0])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_computed_in_fp32(loss, dtype):
    z = torch.randn(2, 16, 32).to(dtype)
    value = loss(z)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(z.float()))


def test_masks_hide_the_share_asked_for_and_restore_the_order():
    mask = random_mask(50, 64, 0.75, generator=torch.Generator().manual_seed(0), device="cpu")
    assert mask.ids_keep.shape == (50, 16)
    assert (mask.mask.sum(1) == 48).all()
    for row in range(50):
        visible = set(mask.ids_keep[row].tolist())
        assert len(visible) == 16
        assert {i for i in range(64) if mask.mask[row, i] == 0} == visible
    patches = torch.arange(64.0).reshape(1, 64, 1).expand(50, -1, -1)
    seen = gather_patches(patches, mask.ids_keep)
    both = torch.cat([seen, torch.full((50, 48, 1), -1.0)], dim=1)
    restored = gather_patches(both, mask.ids_restore)
    assert torch.equal(restored == -1, mask.mask.bool().unsqueeze(-1))
    assert torch.equal(restored[restored >= 0], patches[restored >= 0])
    assert len({tuple(sorted(row.tolist())) for row in mask.ids_keep}) == 50


def test_every_patch_is_hidden_equally_often():
    mask = random_mask(20_000, 16, 0.5, generator=torch.Generator().manual_seed(0), device="cpu").mask
    torch.testing.assert_close(mask.mean(0), torch.full((16,), 0.5), atol=0.02, rtol=0)


def test_something_stays_visible_and_something_is_hidden():
    assert num_visible(16, 0.99) == 1
    assert num_visible(16, 0.01) == 15
    assert num_visible(16, 0.0) == 16
