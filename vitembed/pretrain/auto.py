"""Which recipe suits these images and this machine, and why: what ``vitembed pretrain`` does without a config."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vitembed.config import PretrainConfig
from vitembed.device import resolve_device
from vitembed.images.grey import is_grey
from vitembed.images.loader import load_batches
from vitembed.images.on_demand import Squash
from vitembed.images.source import ImageRef
from vitembed.pretrain.memory import fitting_batch_size
from vitembed.recipes import load_config

CPU_MINUTES = 10
"""Length of a run without a GPU when the user names none: a useful encoder before the coffee is cold."""
MANY_IMAGES = 50_000
"""From here on the recipe for large sets is used on a GPU."""


@dataclass(frozen=True)
class Choice:
    """A recipe with settings for the data, and the reasons in words."""

    recipe: str
    overrides: list[str]
    reasons: list[str]


@dataclass(frozen=True)
class Look:
    """What a sample of the images says about all of them."""

    side: int
    """Median shorter side in pixels; 0 if none could be read."""
    grey: bool
    """Whether no image of the sample has colour."""


def choose(
    refs: Sequence[ImageRef],
    *,
    overrides: Sequence[str] = (),
    has_length: bool = False,
    gpu: bool | None = None,
    batch_size: int | None = None,
) -> Choice:
    """Pick recipe, image size, patch size, batch size and length.

    Args:
        refs: The images; a sample of them is looked at.
        overrides: The user's own ``key=value`` settings; what they name is left to them.
        has_length: Whether the user gave a time budget.
        gpu: Whether an accelerator trains; none: if there is one.
        batch_size: Images per step of the interrupted run that goes on: what is free by now is no reason to change it.
    """
    named = {setting.split("=", 1)[0] for setting in overrides}
    has_length = has_length or bool(named & {"optim.max_steps", "optim.max_epochs", "time_budget_seconds"})
    num, look = len(refs), look_at(refs)
    gpu = (torch.cuda.is_available() or torch.backends.mps.is_available()) if gpu is None else gpu
    settings: dict[str, str] = {}
    if gpu:
        recipe = "small" if num < MANY_IMAGES else "base"
        what = "ViT-S, no teacher" if recipe == "small" else "ViT-B with a teacher"
        reasons = [f"a GPU is here and {num:,} images: recipe {recipe} ({what})"]
    else:
        recipe = "nano"
        reasons = ["no GPU is here: recipe nano (4 blocks of width 128, a convolutional stem)"]
    if "augment.preset=none" in overrides:
        settings["model.size"] = load_config(PretrainConfig, recipe).model.size
        recipe = "plain"
        reasons.append("augment.preset=none leaves no views to compare: recipe plain (masked patches, cls regression)")

    img_size, patch_size = sizes_for(look.side, gpu=gpu, compares_views=recipe != "plain")
    asked = [setting.split("=", 1)[1] for setting in overrides if setting.startswith("model.img_size=")]
    if asked and asked[-1].isdecimal() and not gpu:
        img_size, patch_size = int(asked[-1]), patch_of(int(asked[-1]))
    settings |= {"model.img_size": str(img_size), "model.patch_size": str(patch_size)}
    reasons.append(
        f"images are typically {look.side} px on their shorter side: views of {img_size} px in {patch_size}-px patches"
    )
    if look.grey:
        settings |= {"augment.saturation": "0", "augment.hue": "0", "augment.gray_prob": "0"}
        reasons.append("the images are grey: colours are not changed")

    config = load_config(
        PretrainConfig, recipe, overrides, chosen=[f"{key}={value}" for key, value in settings.items()]
    )
    if "optim.batch_size" not in named:
        size, why = (batch_size, []) if batch_size is not None else fitting_batch(num, config)
        reasons += why
        if size != config.optim.batch_size:
            settings["optim.batch_size"] = str(size)
    if not has_length:
        if gpu:
            settings["optim.max_epochs"] = str(epochs_for(num))
            reasons.append(
                f"no length was given: {epochs_for(num)} passes over {num:,} images (set one: --time-budget)"
            )
        else:
            settings["time_budget_seconds"] = str(CPU_MINUTES * 60)
            reasons.append(f"no length was given: {CPU_MINUTES} minutes (longer is better: --time-budget 2h)")
    chosen = [f"{key}={value}" for key, value in settings.items() if key not in named]
    return Choice(recipe, chosen, reasons)


def sizes_for(side: int, *, gpu: bool, compares_views: bool = True) -> tuple[int, int]:
    """Side of a view and of a patch in pixels, for images of a typical shorter side.

    A CPU gets 16 patches an image: images seen count for more there than details (docs/experiments.md). 64 where
    nothing but hidden patches is learned from.
    """
    if side < 48:
        return (32, 4) if gpu else (32, 8)
    if not gpu:
        return (64, 16) if compares_views else (64, 8)
    return (96, 8) if side < 160 else (224, 16)


def patch_of(img_size: int) -> int:
    """Side of a patch for views of a size that the user chose, on a CPU: 4, 8 or 16 px, so that 16 patches are left."""
    return max([size for size in (4, 8, 16) if img_size % size == 0 and img_size >= 4 * size], default=4)


def fitting_batch(num_images: int, config: PretrainConfig) -> tuple[int, list[str]]:
    """Images per step that suit the number of images and the device's memory, and why where it is not the recipe's."""
    wanted, reasons = config.optim.batch_size, []
    if (size := batch_for(num_images, config)) < wanted:
        reasons.append(f"{num_images:,} images are few: batches of {size} instead of {wanted}")
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, batch_size=size))
    fitting, why = fitting_batch_size(config, resolve_device())
    if fitting < size:
        reasons.append(why)
    return fitting, reasons


def batch_for(num_images: int, config: PretrainConfig) -> int:
    """Images per step: the recipe's, or the power of two that leaves 8 steps a pass, but at least 32."""
    fitting: int = 1 << max(0, (num_images // 8).bit_length() - 1)
    return min(config.optim.batch_size, max(32, fitting))


def epochs_for(num_images: int) -> int:
    """Passes on a GPU: 400 up to 10,000 images, 100 at 100,000, 30 from 750,000 on.

    Between what published recipes take at these sizes: steps, not passes, are what counts.
    """
    return round(min(400.0, max(30.0, 400 * math.pow(10_000 / num_images, 0.6))))


def look_at(refs: Sequence[ImageRef], *, num_samples: int = 64) -> Look:
    """Size and colour of evenly spaced images; unreadable ones do not count, the decoding names them later."""
    sample = refs[:: max(1, len(refs) // num_samples)][:num_samples]
    sides, colours = list[int](), list[bool]()
    for batch in load_batches(sample, Squash(32), batch_size=num_samples, isolated=True):
        sides += batch.image_sizes.min(axis=1).tolist()
        colours += [not is_grey(pixels) for pixels in batch.images]
    return Look(side=round(statistics.median(sides)) if sides else 0, grey=bool(sides) and not any(colours))
