"""Random views of images, made in batches on the training device: every image draws its own parameters.

Decoding and augmenting one image at a time in worker processes starves GPUs and CPUs alike; here a view costs one
affine resampling and one colour matrix for the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vitembed.config import AugmentConfig
from vitembed.images.resample import crop_resize, turned_crop_resize

# Rec. 601 luma, and the chroma axes of YIQ: rotating the (i, q) plane turns the hue.
_LUMA = (0.299, 0.587, 0.114)
_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def random_views(
    images: UInt8[Tensor, "b s s c"],
    aspect: Float[Tensor, "b"],
    config: AugmentConfig,
    *,
    img_size: int,
    generator: torch.Generator,
) -> Float[Tensor, "b c h w"]:
    """One random view of each image, in 0..1.

    Args:
        images: Whole images squashed to squares, on the training device.
        aspect: Width over height of each original, so that crops have the shapes they would have had there.
        config: Strengths and probabilities.
        img_size: Side of the view in pixels.
        generator: Source of all randomness, on the device of ``images``.
    """
    pixels = images.permute(0, 3, 1, 2).float().div_(255.0)
    views = random_resized_crop(pixels, aspect, config, img_size=img_size, generator=generator)
    return random_colour(views, config, generator=generator)


def random_resized_crop(
    pixels: Float[Tensor, "b c s s"],
    aspect: Float[Tensor, "b"],
    config: AugmentConfig,
    *,
    img_size: int,
    generator: torch.Generator,
) -> Float[Tensor, "b c h w"]:
    """Crop, un-squash, turn, flip and resize in one affine resampling.

    The crop covers a share of the area drawn from ``crop_scale`` with a shape drawn log-uniformly from
    ``crop_ratio``, as torchvision's ``RandomResizedCrop`` draws it (a shape too long for the image is cut to fit).
    Turned corners show the image mirrored at its edge.
    """
    b, device = pixels.shape[0], pixels.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(b, device=device, generator=generator) * (high - low) + low

    area = uniform(*config.crop_scale)
    ratio = uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])).exp()
    # In units of the squashed image's sides: width = sqrt(area * ratio / aspect), height = sqrt(area * aspect / ratio).
    width = (area * ratio / aspect).sqrt().clamp(max=1.0)
    height = (area * aspect / ratio).sqrt().clamp(max=1.0)
    centre_x = (1 - width) * uniform(-1.0, 1.0)
    centre_y = (1 - height) * uniform(-1.0, 1.0)
    flip_x = torch.where(uniform(0.0, 1.0) < config.hflip_prob, -1.0, 1.0)
    flip_y = torch.where(uniform(0.0, 1.0) < config.vflip_prob, -1.0, 1.0)
    angle = uniform(-1.0, 1.0) * math.radians(config.rotate_degrees)
    # Bilinear sampling alone aliases when it shrinks: sample finer by a whole factor and average.
    oversample = max(1, round(pixels.shape[-1] * math.sqrt(config.crop_scale[1]) / img_size))
    if config.rotate_degrees == 0:
        scale, centre = torch.stack([width * flip_x, height * flip_y], dim=1), torch.stack([centre_x, centre_y], dim=1)
        return crop_resize(pixels, scale, centre, side=img_size, oversample=oversample)
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([width * cos * flip_x, -width * sin * flip_y, centre_x], dim=1),
            torch.stack([height * sin * flip_x, height * cos * flip_y, centre_y], dim=1),
        ],
        dim=1,
    )
    return turned_crop_resize(pixels, theta, side=img_size, oversample=oversample)


def random_colour(
    views: Float[Tensor, "b c h w"], config: AugmentConfig, *, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Brightness, contrast, saturation, hue, grey and tint as one matrix per image; then blur and solarise.

    Images that are not RGB get no saturation, hue and grey. Values stay in 0..1.
    """
    b, c = views.shape[:2]
    device = views.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(b, device=device, generator=generator) * (high - low) + low

    jitter = uniform(0.0, 1.0) < config.jitter_prob
    brightness = torch.where(jitter, uniform(1 - config.brightness, 1 + config.brightness), 1.0)
    contrast = torch.where(jitter, uniform(1 - config.contrast, 1 + config.contrast), 1.0)
    matrix = torch.eye(c, device=device).expand(b, c, c)
    luma = torch.full((c,), 1 / c, device=device)
    if c == 3:
        saturation = torch.where(jitter, uniform(1 - config.saturation, 1 + config.saturation), 1.0)
        saturation = torch.where(uniform(0.0, 1.0) < config.gray_prob, 0.0, saturation)
        turn = torch.where(jitter, uniform(-config.hue, config.hue), 0.0) * (2 * math.pi)
        rgb_to_yiq = torch.tensor(_RGB_TO_YIQ)
        luma, to_yiq, from_yiq = (
            _constant(tensor, device) for tensor in (torch.tensor(_LUMA), rgb_to_yiq, torch.linalg.inv(rgb_to_yiq))
        )
        chroma = torch.zeros(b, 3, 3, device=device)
        chroma[:, 0, 0] = 1
        chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * turn.cos()
        chroma[:, 2, 1] = saturation * turn.sin()
        chroma[:, 1, 2] = -chroma[:, 2, 1]
        matrix = from_yiq @ chroma @ to_yiq
    matrix = matrix * (brightness * contrast).reshape(b, 1, 1)
    mean_luma = torch.einsum("bchw,c->b", views, luma) / (views.shape[2] * views.shape[3])
    offset = (mean_luma * brightness * (1 - contrast)).reshape(b, 1, 1)
    if config.tint > 0:
        share = torch.where(jitter, uniform(0.0, config.tint), 0.0).reshape(b, 1, 1)
        colour = torch.rand(b, c, 1, device=device, generator=generator)
        matrix, offset = matrix * (1 - share), offset * (1 - share) + share * colour
    views = torch.baddbmm(offset, matrix, views.flatten(2)).reshape(views.shape).clamp_(0, 1)
    if config.blur_prob > 0:
        views = _blur(views, config, uniform)
    if config.solarize_prob > 0:
        chosen = (uniform(0.0, 1.0) < config.solarize_prob).reshape(b, 1, 1, 1)
        views = torch.where(chosen & (views > 0.5), 1 - views, views)
    return views


def _constant(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for what that still computes."""
    return tensor.to(device, non_blocking=True)


def _blur(views: Tensor, config: AugmentConfig, uniform: Callable[[float, float], Tensor]) -> Tensor:
    """Gaussian blur of a random width for a random part of the batch."""
    b, c, height, width = views.shape
    chosen = uniform(0.0, 1.0) < config.blur_prob
    sigma = uniform(*config.blur_sigma) * min(height, width) / 224  # sigmas are quoted for 224 px
    radius = max(1, math.ceil(3 * config.blur_sigma[1] * min(height, width) / 224))
    place = torch.arange(-radius, radius + 1, device=views.device).float()
    kernel = torch.exp(-0.5 * (place / sigma.clamp(min=1e-3).unsqueeze(1)) ** 2)
    kernel = torch.where(chosen.unsqueeze(1), kernel, (place == 0).float())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    x = F.pad(views.reshape(1, b * c, height, width), [radius] * 4, mode="replicate")
    x = F.conv2d(x, kernel.reshape(b * c, 1, 1, -1), groups=b * c)
    x = F.conv2d(x, kernel.reshape(b * c, 1, -1, 1), groups=b * c)
    return x.reshape(b, c, height, width)
