"""Which recipe suits these images and this machine, and why: what ``vitembed pretrain`` does without a config."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from vitembed.images.source import ImageRef

CPU_MINUTES = 10
"""Length of a run without a GPU when the user names none: a useful encoder before the coffee is cold."""


@dataclass(frozen=True)
class Choice:
    """A recipe with settings for the data, and the reasons in words."""

    recipe: str
    overrides: list[str]
    reasons: list[str]


def choose(refs: Sequence[ImageRef], *, overrides: Sequence[str] = (), has_length: bool = False) -> Choice:
    """Pick recipe, image size, patch size and length.

    Args:
        refs: The images; the sizes of at most 200 of them are looked at.
        overrides: The user's own ``key=value`` settings; what they name is left to them.
        has_length: Whether the user gave a time budget.
    """
    named = {setting.split("=", 1)[0] for setting in overrides}
    has_length = has_length or bool(named & {"optim.max_steps", "optim.max_epochs", "time_budget_seconds"})
    side = typical_side(refs)
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    if gpu:
        recipe = "small"
        img_size, patch_size = (32, 4) if side < 48 else (96, 8) if side < 160 else (224, 16)
        reasons = ["a GPU is here: recipe small (ViT-S)"]
    else:
        recipe = "nano"
        img_size, patch_size = (32, 8) if side < 48 else (64, 8)
        reasons = ["no GPU is here: recipe nano (4 blocks of width 128)"]
    reasons.append(
        f"images are typically {side} px on their shorter side: views of {img_size} px in {patch_size}-px patches"
    )
    settings = {"model.img_size": str(img_size), "model.patch_size": str(patch_size)}
    if not gpu and not has_length:
        settings["time_budget_seconds"] = str(CPU_MINUTES * 60)
        reasons.append(f"no length was given: {CPU_MINUTES} minutes (longer is better: --time-budget 2h)")
    chosen = [f"{key}={value}" for key, value in settings.items() if key not in named]
    return Choice(recipe, chosen, reasons)


def typical_side(refs: Sequence[ImageRef], *, num_samples: int = 200) -> int:
    """Median shorter side in pixels of evenly spaced images, from their headers; unreadable ones do not count."""
    sides = []
    for ref in refs[:: max(1, len(refs) // num_samples)][:num_samples]:
        try:
            with Image.open(ref.path) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # the decode pass lists it with its reason
    return round(statistics.median(sides)) if sides else 0
