"""The preprocessing that public weights were trained for, read from what lies beside them.

``preprocessor_config.json`` (transformers), else ``pretrained_cfg`` in ``config.json`` (timm), else ``preprocess_cfg``
in ``open_clip_config.json``, else what the family is known to use. What cannot be done exactly as the source does it is
refused, never approximated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vitembed.errors import ModelError
from vitembed.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)

# Pillow's numbers, as transformers writes them.
_FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}

# What a processor of transformers does where its file does not say: size, resample, crop, mean and std.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "Bit": {
        **{"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True},
        **{"crop_size": {"height": 224, "width": 224}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    },
    "CLIP": {
        **{"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True},
        **{"crop_size": {"height": 224, "width": 224}, "image_mean": CLIP_MEAN, "image_std": CLIP_STD},
    },
    "DINOv3ViT": {
        **{"size": {"height": 224, "width": 224}, "resample": 2},
        **{"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    },
    "DeiT": {
        **{"size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": True},
        **{"crop_size": {"height": 224, "width": 224}, "image_mean": _HALF, "image_std": _HALF},
    },
    "Siglip": {"size": {"height": 224, "width": 224}, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
}

_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic", "resize": "crop"}
# Where nothing lies beside the weights: the evaluation transform of the family's own repository.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "dinov2": {**_IMAGENET, "crop_pct": 0.875},
    "dinov3": {**_IMAGENET, "resize": "squash", "interpolation": "bilinear"},
    "dino": {**_IMAGENET, "crop_pct": 0.875},
    "mae": {**_IMAGENET, "crop_pct": 0.875},
    "ijepa": {**_IMAGENET, "crop_pct": 0.875},
    "deit": {**_IMAGENET, "crop_pct": 0.875},
    "clip": {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize": "crop"},
    "siglip": {"mean": _HALF, "std": _HALF, "interpolation": "bicubic", "resize": "squash"},
    # Ours without a config.json: what pretraining stores when nothing else was asked for.
    "vitembed": {**_IMAGENET},
    # Weights of Google's ViT and AugReg; timm's other plain ViTs come with a config.
    "vit": {"mean": _HALF, "std": _HALF, "interpolation": "bicubic", "resize": "crop", "crop_pct": 0.9},
}
_USUAL_SIZE = 224


def from_source(
    family: str,
    *,
    native_size: int,
    patch_size: int,
    processor: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    where: str,
) -> tuple[Preprocess, str]:
    """The preprocessing of a public model, and in words where it is from.

    Args:
        family: As the converter names it.
        native_size: Side of the image that the positions are for, in pixels.
        patch_size: Side of a patch in pixels.
        processor: The contents of ``preprocessor_config.json``, if there is one.
        config: The contents of ``config.json``, if there is one.
        where: What to call the model in messages.

    Raises:
        ModelError: If the source asks for something that is not done here, or for a size that its patches do not fit.
    """
    timm_config = timm_settings(config)
    open_clip = None if config is None else config.get("preprocess_cfg")
    if processor is not None:
        preprocess, origin = from_processor(processor, where=where), "preprocessor_config.json"
    elif timm_config is not None:
        preprocess, origin = from_timm(timm_config, where=where), "pretrained_cfg in config.json"
    elif isinstance(open_clip, Mapping):
        preprocess, origin = from_open_clip(open_clip, native_size, where=where), "open_clip_config.json"
    else:
        preprocess, origin = family_default(family, native_size), f"default of the family {family}"
    if preprocess.img_size % patch_size:
        raise ModelError(
            f"{where}: images of {preprocess.img_size} px ({origin}) cannot be cut into {patch_size}-px patches: "
            "correct the size there"
        )
    return preprocess, origin


def timm_settings(config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The part of timm's ``config.json`` that is about pixels; none if it is no such file."""
    if config is None or "architecture" not in config:
        return None
    settings = config.get("pretrained_cfg", config)  # before timm 0.9 it stood at the top
    return settings if isinstance(settings, Mapping) else None


def from_timm(settings: Mapping[str, Any], *, where: str) -> Preprocess:
    """What ``timm.data.create_transform(**resolve_data_config(...))`` does in evaluation.

    Raises:
        ModelError: If it asks for something that is not done here.
    """
    size = settings.get("input_size") or (3, 224, 224)
    if _is_numbers(size, 3):
        refuse_channels(size[0], where)
    if not _is_numbers(size, 3) or size[1] != size[2]:
        raise ModelError(f"{where}: input_size {size!r} of pretrained_cfg is not that of a square RGB image")
    mode, crop_pct = settings.get("crop_mode") or "center", settings.get("crop_pct") or 0.875
    if mode not in ("center", "squash", "border") or (mode == "border" and crop_pct != 1):
        raise ModelError(f"{where}: crop_mode {mode!r} with crop_pct {crop_pct} of pretrained_cfg is not done here")
    mean = _triple(settings.get("mean") or IMAGENET_MEAN, "mean", where)
    squash = "squash" if crop_pct == 1 else "squash+crop"
    bars: dict[str, Any] = {"background": tuple(round(255 * value) for value in mean)} if mode == "border" else {}
    return _build(
        where,
        img_size=int(size[1]),
        resize={"center": "crop", "squash": squash, "border": "pad"}[mode],
        crop_pct=float(crop_pct),
        interpolation=settings.get("interpolation") or "bicubic",
        mean=mean,
        std=_triple(settings.get("std") or IMAGENET_STD, "std", where),
        **bars,
    )


def refuse_channels(in_chans: int, where: str) -> None:
    """Refuse a model of other than RGB images.

    Raises:
        ModelError: If it takes another number of channels.
    """
    if in_chans != 3:
        raise ModelError(
            f"{where} takes images of {in_chans} channel{'' if in_chans == 1 else 's'}: images are RGB here, "
            "so only models of 3 channels can be used"
        )


def from_open_clip(settings: Mapping[str, Any], native_size: int, *, where: str) -> Preprocess:
    """What open_clip's evaluation transform does, by its ``preprocess_cfg``.

    Args:
        settings: The contents of ``preprocess_cfg``.
        native_size: Side of the images in pixels, where it does not say.
        where: What to call the model in messages.

    Raises:
        ModelError: If it asks for something that is not done here.
    """
    size, mode = settings.get("size") or native_size, settings.get("resize_mode") or "shortest"
    if isinstance(size, Sequence) and not isinstance(size, str) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int) or mode not in ("shortest", "squash"):
        raise ModelError(f"{where}: size {size!r} with resize_mode {mode!r} of preprocess_cfg is not done here")
    return _build(
        where,
        img_size=size,
        resize={"shortest": "crop", "squash": "squash"}[mode],
        interpolation=settings.get("interpolation") or "bicubic",
        mean=_triple(settings.get("mean") or CLIP_MEAN, "mean", where),
        std=_triple(settings.get("std") or CLIP_STD, "std", where),
    )


def from_processor(processor: Mapping[str, Any], *, where: str) -> Preprocess:
    """What an image processor of transformers does.

    Raises:
        ModelError: If it asks for something that is not done here.
    """
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
    name = kind
    for ending in ("Fast", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(ending)
    if name not in _PROCESSORS and not {"size", "image_mean", "image_std"} <= processor.keys():
        raise ModelError(
            f"{where}: preprocessor_config.json is of {kind or 'an unnamed kind'} and leaves out its settings: "
            f"known kinds are {', '.join(f'{known}ImageProcessor' for known in _PROCESSORS)}"
        )
    given = {**_PROCESSORS.get(name, {}), **{key: value for key, value in processor.items() if value is not None}}
    if not given.get("do_resize", True):
        raise ModelError(f"{where}: preprocessor_config.json does not resize, vectors need images of one size")
    if given.get("do_pad") or given.get("rescale_offset") or given.get("offset"):
        raise ModelError(f"{where}: preprocessor_config.json pads, or moves values after scaling: not done here")
    resample = given.get("resample", 2)
    if resample not in _FILTERS:
        raise ModelError(f"{where}: resample {resample!r} of preprocessor_config.json is not done here")
    mean, std = _scaled(given, where)
    return _build(where, interpolation=_FILTERS[resample], mean=mean, std=std, **_geometry(given, where))


def family_default(family: str, native_size: int) -> Preprocess:
    """What a family's own evaluation does, at its native size; DINOv2 and DINOv3 at 224 px at most."""
    # hf-dinov2-reg is a dinov2: where it is from and what it has beside change no pixel.
    known = next((name for name in family.split("-") if name in FAMILY_DEFAULTS), None)
    values = FAMILY_DEFAULTS[known] if known is not None else {**_IMAGENET, "crop_pct": 0.875}
    usual = _USUAL_SIZE if known in ("dinov2", "dinov3") else native_size
    return Preprocess(img_size=min(native_size, usual), **values)


def _geometry(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Resize and crop."""
    edge, sides = _size(given.get("size", {}))
    if edge is None and sides is None:
        raise ModelError(f"{where}: size {given.get('size')!r} of preprocessor_config.json is not understood here")
    if not given.get("do_center_crop", False):
        if sides is None:
            raise ModelError(f"{where}: preprocessor_config.json gives images of varying shape, they have to be square")
        return {"img_size": _square(sides, where), "resize": "squash"}
    crop = _size(given.get("crop_size", {}))
    side = crop[0] if crop[0] is not None else _square(crop[1] or (0, 1), where)
    if sides is not None and str(given.get("image_processor_type", "")).startswith("DeiT"):
        edge = None  # a bare number was both sides there
    whole = edge if edge is not None else _square(sides or (0, 1), where)
    if whole < side:
        raise ModelError(
            f"{where}: preprocessor_config.json cuts {side} px out of {whole} px: that needs black borders"
        )
    resize = "crop" if edge is not None else ("squash" if whole == side else "squash+crop")
    return {"img_size": side, "resize": resize, "crop_pct": crop_pct_for(side, whole), "crop_offset": "floor"}


def crop_pct_for(side: int, whole: int) -> float:
    """The share that makes ``floor(side / share)`` just ``whole``."""
    share = side / whole
    return share if math.floor(side / share) == whole else math.nextafter(share, 0.0)


def _size(size: Any) -> tuple[int | None, tuple[int, int] | None]:
    """Shorter edge, or height and width; a bare number (transformers before 4.22) may be either."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size, (size, size)
    if isinstance(size, Mapping):
        if "shortest_edge" in size and not size.get("longest_edge"):
            return int(size["shortest_edge"]), None
        if "height" in size and "width" in size:
            return None, (int(size["height"]), int(size["width"]))
    return None, None


def _square(sides: tuple[int, int], where: str) -> int:
    if sides[0] != sides[1]:
        raise ModelError(
            f"{where}: images of {sides[0]} x {sides[1]} px (preprocessor_config.json), they must be square"
        )
    return sides[0]


def _scaled(given: Mapping[str, Any], where: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in 0..1, whatever the source scales by."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if given.get("do_normalize", True):
        mean = _triple(given.get("image_mean"), "image_mean", where)
        std = _triple(given.get("image_std"), "image_std", where)
    factor = float(given.get("rescale_factor", 1 / 255)) if given.get("do_rescale", True) else 1.0
    scale = factor * 255.0
    if abs(scale - 1.0) < 1e-9:  # 1/255, as it came through JSON
        return mean, std
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _triple(values: Any, name: str, where: str) -> tuple[float, ...]:
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        values = (values,) * 3
    if not _is_numbers(values, 3):
        raise ModelError(f"{where}: {name} is {values!r}, expected three numbers")
    return tuple(float(value) for value in values)


def _is_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    )


def _build(where: str, **values: Any) -> Preprocess:
    try:
        return Preprocess.from_dict({**Preprocess().to_dict(), **values})
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
