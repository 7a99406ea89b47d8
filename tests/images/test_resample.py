"""Batched resampling against ``grid_sample`` and an average, on each of its two ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vitembed.images import resample


def reference(pixels, theta, side, oversample):
    grid = F.affine_grid(
        theta, [len(pixels), pixels.shape[1], side * oversample, side * oversample], align_corners=False
    )
    return F.avg_pool2d(
        F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False), oversample
    )


def random_maps(b: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(b, 2, generator=generator) * 0.8 + 0.2
    centre = (1 - scale) * (torch.rand(b, 2, generator=generator) * 2 - 1)
    sign = torch.where(torch.rand(b, 2, generator=generator) < 0.5, -1.0, 1.0)
    return scale * sign, centre


@pytest.fixture(params=["gather", "matrices"])
def way(request, monkeypatch):
    """The rows are gathered on CPUs and multiplied elsewhere; here the second is made to run on the CPU, too."""
    if request.param == "matrices":
        monkeypatch.setattr(resample, "_gathers", lambda device: False)
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("size", "side", "oversample"), [(48, 32, 1), (33, 20, 2), (9, 32, 1), (1, 4, 2), (64, 16, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_those_of_grid_sample(size, side, oversample, channels):
    pixels = torch.rand(6, channels, size, size, generator=torch.Generator().manual_seed(1))
    scale, centre = random_maps(6)
    theta = torch.zeros(6, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[:, 0], scale[:, 1], centre
    found = resample.crop_resize(pixels, scale, centre, side=side, oversample=oversample)
    torch.testing.assert_close(found, reference(pixels, theta, side, oversample), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("way")
def test_width_and_height_are_not_mixed_up():
    pixels = torch.rand(3, 3, 20, 31)
    scale, centre = random_maps(3)
    theta = torch.zeros(3, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[:, 0], scale[:, 1], centre
    found = resample.crop_resize(pixels, scale, centre, side=12, oversample=1)
    torch.testing.assert_close(found, reference(pixels, theta, 12, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("oversample", [1, 3])
def test_turned_crops_are_those_of_affine_grid_and_grid_sample(oversample):
    pixels = torch.rand(5, 3, 24, 24)
    theta = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(2)) * 0.7  # some reach out of the image
    found = resample.turned_crop_resize(pixels, theta, side=16, oversample=oversample)
    torch.testing.assert_close(found, reference(pixels, theta, 16, oversample), atol=1e-4, rtol=0)
