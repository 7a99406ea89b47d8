"""Batched views against torchvision's, one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vitembed._torchvision import import_torchvision
from vitembed.config import AugmentConfig
from vitembed.images.augment import random_colour, random_resized_crop, random_views

import_torchvision()
from torchvision.transforms.v2 import functional as tv


def still(**settings) -> AugmentConfig:
    base = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "hflip_prob": 0.0, "jitter_prob": 0.0, "gray_prob": 0.0}
    return AugmentConfig(**{**base, **settings})


def smooth(b: int = 4, side: int = 48) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.nn.functional.interpolate(torch.rand(b, 3, 6, 6), size=side, mode="bicubic").clamp(0, 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_to_do_is_a_plain_resize():
    pixels = smooth(side=64)
    views = random_resized_crop(pixels, torch.ones(4), still(), img_size=32, generator=generator())
    torch.testing.assert_close(views, tv.resize(pixels, [32, 32], antialias=True), atol=0.02, rtol=0)
    same = random_resized_crop(pixels, torch.ones(4), still(), img_size=64, generator=generator())
    torch.testing.assert_close(same, pixels, atol=1e-5, rtol=0)


def test_crops_are_where_and_as_large_as_asked():
    # A map whose red is x and whose green is y tells of each pixel where it came from.
    side = 64
    place = (torch.arange(side) + 0.5) / side
    pixels = torch.stack([place.expand(side, side), place.unsqueeze(1).expand(side, side), torch.zeros(side, side)])
    config = still(crop_scale=(0.3, 0.8), crop_ratio=(0.75, 4 / 3))
    aspect = torch.full((500,), 1.5)
    views = random_resized_crop(pixels.expand(500, -1, -1, -1), aspect, config, img_size=32, generator=generator())
    step_x = (views[:, 0, 16, 31] - views[:, 0, 16, 0]) / 31 * 32
    step_y = (views[:, 1, 31, 16] - views[:, 1, 0, 16]) / 31 * 32
    area = step_x * step_y
    assert area.min() > 0.25
    assert area.max() < 0.82
    ratio = step_x / step_y * 1.5  # shape of the crop in the original, which is 1.5 times as wide as high
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert area.mean().item() == pytest.approx(0.55, abs=0.03)
    assert ratio.log().mean().item() == pytest.approx(0, abs=0.03)
    assert views.min() >= 0
    assert views.max() <= 1
    assert (views[:, 0, 0, 0] < 0.05).any()
    assert (views[:, 0, 0, -1] > 0.95).any()


def test_flips_and_turns_match_torchvision():
    pixels = smooth(side=32)
    ones = torch.ones(4)
    flipped = random_resized_crop(pixels, ones, still(hflip_prob=1.0), img_size=32, generator=generator())
    torch.testing.assert_close(flipped, pixels.flip(-1), atol=1e-5, rtol=0)
    flipped = random_resized_crop(pixels, ones, still(vflip_prob=1.0), img_size=32, generator=generator())
    torch.testing.assert_close(flipped, pixels.flip(-2), atol=1e-5, rtol=0)
    turned = random_resized_crop(pixels, ones, still(rotate_degrees=30.0), img_size=32, generator=generator())
    inner = slice(10, 22)  # far from the corners, which torchvision fills with black
    for before, after in zip(pixels, turned, strict=True):
        best = min(
            (
                tv.rotate(before, angle, interpolation=tv.InterpolationMode.BILINEAR)[:, inner, inner]
                - after[:, inner, inner]
            )
            .abs()
            .max()
            .item()
            for angle in torch.arange(-30, 30.5, 0.5).tolist()
        )
        assert best < 0.02


def test_turning_a_squashed_photo_turns_the_photo():
    # A 2:1 photo of a disc, squashed to a square, becomes a disc again when a square crop of it is turned.
    side = 96
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-2, 2, side), indexing="ij")
    disc = ((x**2 + y**2) < 0.25).float().expand(1, 3, side, side)
    config = still(crop_scale=(0.5, 0.5), rotate_degrees=45.0)
    found = []
    for seed in range(40):
        view = random_resized_crop(disc, torch.tensor([2.0]), config, img_size=64, generator=generator(seed))[0, 0]
        inside = view > 0.5
        rows, cols = inside.any(1).sum().item(), inside.any(0).sum().item()
        if not (inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, -1].any()):
            found.append(rows / cols)
    assert len(found) > 5
    assert max(found) < 1.12
    assert min(found) > 0.9


@pytest.mark.parametrize(
    ("setting", "reference"),
    [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast), ("saturation", tv.adjust_saturation)],
)
def test_each_image_gets_its_own_torchvision_colour_change(setting, reference):
    pixels = smooth() * 0.5 + 0.25  # nothing is clipped
    nothing = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    config = still(jitter_prob=1.0, **{**nothing, setting: 0.4})
    views = random_colour(pixels, config, generator=generator())
    factors = []
    for before, after in zip(pixels, views, strict=True):
        errors = {f: (reference(before, f) - after).abs().max().item() for f in torch.arange(0.6, 1.4, 0.002).tolist()}
        best = min(errors, key=errors.get)
        factors.append(round(best, 3))
        assert errors[best] < 0.005
    assert len(set(factors)) == 4


def test_hue_turns_colours_and_keeps_lightness():
    pixels = smooth() * 0.2 + 0.4
    config = still(jitter_prob=1.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.5)
    views = random_colour(pixels, config, generator=generator())
    torch.testing.assert_close(tv.rgb_to_grayscale(views), tv.rgb_to_grayscale(pixels), atol=2e-3, rtol=0)
    assert (views - pixels).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_grey_is_torchvisions_grey():
    pixels = smooth()
    views = random_colour(pixels, still(gray_prob=1.0), generator=generator())
    torch.testing.assert_close(views, tv.rgb_to_grayscale(pixels, num_output_channels=3), atol=2e-3, rtol=0)


def test_tint_blends_with_one_colour_per_image():
    pixels = smooth(b=64)
    nothing = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    views = random_colour(pixels, still(jitter_prob=1.0, tint=0.4, **nothing), generator=generator())
    shares = []
    for before, after in zip(pixels, views, strict=True):
        # after = (1 - share) * before + share * colour: a line per channel, the same slope in each.
        slopes, offsets = zip(
            *(np.polyfit(b.flatten().numpy(), a.flatten().numpy(), 1) for b, a in zip(before, after, strict=True)),
            strict=True,
        )
        assert np.ptp(slopes) < 1e-3
        share = 1 - slopes[0]
        shares.append(share)
        assert -1e-3 <= share <= 0.4
        if share > 0.05:
            assert all(-0.01 <= offset / share <= 1.01 for offset in offsets)
    assert np.mean(shares) == pytest.approx(0.2, abs=0.05)


def test_blur_is_a_gaussian():
    pixels = smooth(side=56)
    config = still(blur_prob=1.0, blur_sigma=(8.0, 8.0))  # quoted for 224 px: sigma 2 here
    views = random_colour(pixels, config, generator=generator())
    expected = tv.gaussian_blur(pixels, [13, 13], [2.0, 2.0])
    torch.testing.assert_close(views[..., 10:-10, 10:-10], expected[..., 10:-10, 10:-10], atol=5e-3, rtol=0)
    half = random_colour(pixels.repeat(50, 1, 1, 1), still(blur_prob=0.5, blur_sigma=(8.0, 8.0)), generator=generator())
    changed = ((half - pixels.repeat(50, 1, 1, 1)).abs().amax(dim=(1, 2, 3)) > 1e-4).float().mean()
    assert 0.35 < changed < 0.65


def test_solarise_inverts_what_is_bright():
    pixels = smooth()
    views = random_colour(pixels, still(solarize_prob=1.0), generator=generator())
    torch.testing.assert_close(views, torch.where(pixels > 0.5, 1 - pixels, pixels), atol=1e-5, rtol=0)


def test_probabilities_are_shares_of_images():
    pixels = smooth(b=1).expand(2000, -1, -1, -1)
    views = random_colour(pixels, still(gray_prob=0.2), generator=generator())
    grey = (views[:, 0] - views[:, 1]).abs().amax(dim=(1, 2)) < 1e-3
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_same_generator_same_views_and_grey_images_work():
    images = torch.randint(0, 255, (3, 40, 40, 3), dtype=torch.uint8)
    config = AugmentConfig(blur_prob=0.5, solarize_prob=0.2, rotate_degrees=10.0)
    first = random_views(images, torch.ones(3), config, img_size=32, generator=generator(5))
    again = random_views(images, torch.ones(3), config, img_size=32, generator=generator(5))
    other = random_views(images, torch.ones(3), config, img_size=32, generator=generator(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1
    single = random_views(images[..., :1], torch.ones(3), config, img_size=32, generator=generator())
    assert single.shape == (3, 1, 32, 32)
    assert math.isfinite(single.sum().item())
