"""Settings that suit the number of labelled images, the encoder and the machine, with the reasons in words."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from vitembed.config import FinetuneConfig
from vitembed.images.source import ImageRef
from vitembed.model.checkpoint import SavedModel
from vitembed.model.cost import flops_of
from vitembed.pretrain.auto import look_at
from vitembed.pretrain.supervised.stream import MIN_VALIDATION
from vitembed.recipes import load_config, named_settings

log = logging.getLogger("vitembed")

CPU_MINUTES = 10
"""How long a run on a CPU shall take at most when the user names no length."""
CPU_FLOPS = 3e10
"""Of one second of training: one thread reached 3 to 6e10 with nano at 32 px. A constant, and no look at the clock: the
same command is the same run, bit for bit."""
LINEAR_HEAD_SCALE = 0.1
"""A linear head starts as a probe whose weights are large: at half of its rate the encoder ran away from it on CIFAR-10
(docs/finetune.md)."""
SMALL_WIDTH = 192
"""Encoders up to this width (nano, tiny) get gentle views and no mixing: at 27 passes over 10,000 images of CIFAR-10
that was worth 4.5 points to nano, which otherwise does not even fit what it is taught (docs/finetune.md)."""
_FEWEST_PASSES = 3
_LENGTH = {"optim.max_steps", "optim.max_epochs"}


def resolve(
    parent: SavedModel, refs: Sequence[ImageRef], num_train: int, config: str | None, overrides: Sequence[str]
) -> FinetuneConfig:
    """The complete settings of a run; what was chosen here is said in the log.

    Args:
        parent: The encoder to start from.
        refs: The labelled images; a sample of them is looked at.
        num_train: Images that are learned from.
        config: A YAML file; none: defaults.
        overrides: ``key=value`` settings.

    Raises:
        ConfigError: If a setting is wrong, or the run is for another encoder.
    """
    given = named_settings(config, overrides)
    named = set(given)
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    settings = {"model.img_size": str(parent.preprocess.img_size), "parent": parent.fingerprint}
    reasons: list[str] = []
    if "optim.batch_size" not in named:
        size = batch_for(num_train, gpu=gpu)
        settings["optim.batch_size"] = str(size)
        reasons.append(f"{num_train:,} images to learn from: batches of {size}")
    if not named & _LENGTH:
        passes, why = passes_for(num_train, 3 * flops_of(parent.vit.config), gpu=gpu)
        settings["optim.max_epochs"] = str(passes)
        reasons.append(why)
    if given.get("model.head") == "linear" and "optim.encoder_lr_scale" not in named:
        settings["optim.encoder_lr_scale"] = str(LINEAR_HEAD_SCALE)
        reasons.append(f"a linear head: the encoder learns at {LINEAR_HEAD_SCALE} of its rate, it is close already")
    small = parent.vit.config.embed_dim <= SMALL_WIDTH
    if small and not named & {"labels.mix_prob", "labels.mixup_alpha", "labels.cutmix_alpha"}:
        settings["labels.mix_prob"] = "0.0"
        reasons.append(
            f"a small encoder (width {parent.vit.config.embed_dim}): images are not mixed, it learns little as it is"
        )
    if not any(name.startswith("augment.") for name in named):
        chosen, why = augmentation(look_at(refs).grey, small=small)
        settings |= chosen
        reasons.append(why)
    chosen_settings = [f"{key}={value}" for key, value in settings.items() if key not in named]
    resolved = load_config(FinetuneConfig, config, overrides, chosen=chosen_settings)
    if "split.validation_share" not in named and 0 < resolved.split.validation_share * num_train < MIN_VALIDATION:
        reasons.append(f"too few images to choose an epoch by (under {MIN_VALIDATION}): the last one is taken")
    for reason in reasons:
        log.info("auto: %s", reason)
    return resolved


def batch_for(num_train: int, *, gpu: bool) -> int:
    """Images per step: the power of two that leaves some 16 steps a pass, 16 to 64 on a CPU and to 256 on a GPU.

    Small batches make more steps of the same arithmetic, which is what few images and a CPU lack.
    """
    fitting = 1 << max(0, (num_train // 16).bit_length() - 1)
    return max(16, min(fitting, 256 if gpu else 64))


def passes_for(num_train: int, flops: int, *, gpu: bool) -> tuple[int, str]:
    """Passes over the images, and why: fewer for many images, and on a CPU for a large encoder.

    Args:
        num_train: Images to learn from.
        flops: Of a training step, per image.
        gpu: Whether an accelerator trains.
    """
    passes = round(min(100.0, max(10.0, 60 * math.pow(1000 / num_train, 0.35))))
    why = f"no length was given: {passes} passes over {num_train:,} images (set one: optim.max_epochs)"
    if gpu:
        return passes, why
    affordable = max(_FEWEST_PASSES, int(CPU_MINUTES * 60 * CPU_FLOPS / (flops * num_train)))
    if affordable >= passes:
        return passes, why
    return affordable, (
        f"no length was given and no GPU is here: {affordable} passes over {num_train:,} images, about {CPU_MINUTES} "
        f"minutes or more; {passes} would suit their number (optim.max_epochs={passes})"
    )


def augmentation(grey: bool, *, small: bool) -> tuple[dict[str, str], str]:
    """Views that leave a thing its name: milder than what pretraining needs to make views differ.

    Args:
        grey: Whether the images have no colour.
        small: Whether the encoder is small.
    """
    if small:
        gentle = {"crop_scale": "[0.6,1.0]", "crop_ratio": "[1.0,1.0]", "jitter_prob": "0.0", "gray_prob": "0.0"}
        why = "views: crops from 60 % of the image, mirrored, colours as they are (augment.preset=photo ... for more)"
        return {f"augment.{name}": value for name, value in gentle.items()}, why
    mild = {"crop_scale": "[0.35,1.0]", "brightness": "0.3", "contrast": "0.3", "saturation": "0.3", "hue": "0.03"}
    settings = {f"augment.{name}": value for name, value in (mild | {"gray_prob": "0.05"}).items()}
    why = "views: crops from 35 % of the image, mirrored, with mild colour jitter (others: augment.preset=document ...)"
    if grey:
        settings |= {"augment.saturation": "0", "augment.hue": "0", "augment.gray_prob": "0"}
        why = "the images are grey: views are crops, mirrored, with other light and no other colours"
    return settings, why
