"""The monitors' images: seen as the encoder's preprocessing sees them, and always in the same views."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitembed.config import AugmentConfig, preset
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.watch.pool import Encode, Pool


def photo(width, height, seed):
    """A smooth image: resampling filters agree on it."""
    noise = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    sizes = [(96, 96), (160, 96), (96, 144), (120, 90)] * 18
    for i, (width, height) in enumerate(sizes):
        photo(width, height, i).save(folder / f"{i:03}.png")
    return [ImageRef(str(path)) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("settings", [{}, {"crop_pct": 0.8}, {"resize": "squash"}])
def test_whole_images_are_what_the_preprocessing_makes_of_the_files(photos, settings):
    preprocess = Preprocess(img_size=32, **settings)
    cache = ImageCache.in_memory(photos, size=48)
    pool = Pool(cache, np.arange(len(cache)), preprocess)
    expected = np.stack([preprocess.load(ref) for ref in photos]).astype(np.float32) / 255
    made = torch.cat([pool.whole(places) for places in pool.chunks()]).permute(0, 2, 3, 1).numpy()
    assert made.shape == expected.shape
    assert np.abs(made - expected).mean() < 0.012
    squashed = np.stack([np.asarray(Image.open(ref.path).resize((32, 32))) for ref in photos]) / 255
    if settings != {"resize": "squash"}:  # else the test could not tell a crop from a squash
        assert np.abs(squashed - expected).mean() > 0.03


def test_the_views_are_the_same_whenever_and_whatever_else_was_drawn(photos):
    cache = ImageCache.in_memory(photos, size=48)
    pool = Pool.held_out(cache, 70, Preprocess(img_size=32))
    assert len(pool) == 70
    assert len(set(pool.rows.tolist())) == 70
    first = list(pool.views(AugmentConfig()))
    torch.manual_seed(5)
    torch.rand(3)
    again = list(Pool.held_out(cache, 70, Preprocess(img_size=32)).views(AugmentConfig()))
    assert [len(views.first) for views in first] == [64, 6]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.first, b.first)
        assert torch.equal(a.second, b.second)
        assert (a.first - a.second).abs().mean() > 0.02


def test_views_that_would_be_the_same_picture_become_crops(photos):
    cache = ImageCache.in_memory(photos, size=48)
    pool = Pool.held_out(cache, 40, Preprocess(img_size=32))
    still = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip_prob=0.0, jitter_prob=0.0, gray_prob=0.0)
    (views,) = pool.views(still)
    assert (views.first - views.second).abs().mean() > 0.01


def test_vectors_are_those_of_the_encoder(photos):
    cache = ImageCache.in_memory(photos, size=48)
    pool = Pool(cache, np.arange(70), Preprocess(img_size=32))
    vit = VisionTransformer(preset("nano", img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)).eval()
    mean, std = torch.full((1, 3, 1, 1), 0.4), torch.full((1, 3, 1, 1), 0.2)
    with torch.no_grad():
        made = pool.vectors(Encode(vit, mean, std))
        expected = vit((pool.whole() - 0.4) / 0.2).cls
    assert made.shape == (70, 16)
    assert torch.allclose(made, expected, atol=1e-5)
