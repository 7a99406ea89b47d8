"""Whitening in part, against scikit-learn's own and plain linear algebra."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import whitened, whitened_vectors, whitening, without_whitening


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    mix = torch.linspace(1, 0.3, 8).diag() @ torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    return torch.randn(4000, 8, generator=generator) @ mix + 3.0


@pytest.fixture
def vit():
    torch.manual_seed(0)
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_registers=1)
    return VisionTransformer(config).eval()


def test_full_whitening_keeps_the_distances_of_whitening_by_principal_axes(vectors):
    ours = whitened_vectors(vectors, 1.0).double().numpy()
    theirs = PCA(whiten=True).fit_transform(vectors.double().numpy())
    near = lambda x: np.linalg.norm(x[:50, None] - x[None, :50], axis=-1)  # noqa: E731
    scale = np.sqrt((ours.var(axis=0).sum()) / (theirs.var(axis=0).sum()))
    assert np.allclose(near(ours), near(theirs) * scale, rtol=0.05)  # what is left is the covariance's shrinkage


def test_variances_are_what_the_share_says(vectors):
    variances = np.linalg.eigvalsh(np.cov(vectors.double().numpy(), rowvar=False))
    for share in (0.0, 0.5, 1.0):
        out = whitening(vectors, share)
        y = (vectors @ out[0].T + out[1]).double().numpy()
        got = np.sort(np.linalg.eigvalsh(np.cov(y, rowvar=False)))
        expected = np.sort(variances) ** (1 - share)
        assert np.allclose(got / got.sum(), expected / expected.sum(), rtol=0.1, atol=1e-3)
        assert np.abs(y.mean(axis=0)).max() < 1e-3  # centred
        assert got.sum() == pytest.approx(variances.sum(), rel=0.02)  # as large as before


def test_directions_that_few_images_do_not_use_are_not_blown_up():
    few = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    weight, _ = whitening(few, 1.0)
    gains = torch.linalg.eigvalsh(weight)
    assert gains.max() / gains.min() < 5


def test_vectors_that_are_all_the_same_stay_finite():
    weight, bias = whitening(torch.ones(50, 4), 0.5)
    assert torch.equal(weight, torch.eye(4))
    assert torch.isfinite(bias).all()


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (10, -0.1), (10, 1.5)])
def test_wrong_use_is_refused(count, share):
    with pytest.raises(ValueError, match="share in 0..1"):
        whitening(torch.zeros(count, 4), share)


def test_the_encoder_gives_the_mapped_cls_vector_and_the_same_patches(vit):
    pixels = torch.randn(5, 3, 16, 16)
    seen = vit(torch.randn(64, 3, 16, 16)).cls.detach()
    before, after = vit(pixels), whitened(vit, seen, 0.5)(pixels)
    weight, bias = whitening(seen, 0.5)
    assert torch.allclose(after.cls, before.cls @ weight.T + bias, atol=1e-5)
    assert torch.equal(after.patches, before.patches)
    assert torch.equal(after.registers, before.registers)
    assert torch.allclose(whitened_vectors(before.cls, 0.5, learned_from=seen), after.cls, atol=1e-5)


def test_it_can_be_taken_off_again(vit):
    pixels = torch.randn(2, 3, 16, 16)
    back = without_whitening(whitened(vit, vit(torch.randn(64, 3, 16, 16)).cls.detach(), 0.5))
    assert torch.equal(back(pixels).cls, vit(pixels).cls)
    assert back.config == vit.config
    assert without_whitening(vit) is vit


def test_nothing_is_done_for_a_share_of_0_or_too_few_images(vit):
    seen = torch.randn(64, 32)
    assert whitened(vit, seen, 0.0) is vit
    assert whitened(vit, seen[:20], 0.5) is vit
    assert torch.equal(whitened_vectors(seen[:20], 0.5), seen[:20])


def test_it_is_kept_in_the_model_folder_and_changes_the_fingerprint(vit, tmp_path):
    other = whitened(vit, vit(torch.randn(64, 3, 16, 16)).cls.detach(), 0.5)
    plain = read_model(save_model(tmp_path / "plain", vit, Preprocess(img_size=16)))
    saved = read_model(save_model(tmp_path / "whitened", other, Preprocess(img_size=16)))
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(saved.vit(pixels).cls, other(pixels).cls)
    assert saved.fingerprint != plain.fingerprint
