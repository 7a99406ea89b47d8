"""What is done to every image before a ViT sees it: resize, crop, mean and std, as data that travels with the model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.Image import Image as PILImage
from PIL.Image import Resampling

from vitembed.config.ranges import PIXELS
from vitembed.config.running import DEPTHS
from vitembed.errors import DataError, ModelError
from vitembed.images.decode import Decoded, DecodeOptions, decode_image, upright_pil
from vitembed.images.loaded import Loaded
from vitembed.images.source import ImageRef

Resize = Literal["crop", "squash", "squash+crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "box", "hamming"]
CropOffset = Literal["round", "floor"]

Box = tuple[float, float, float, float]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_RULES = 1
"""Raised whenever the same fields begin to give other pixels, so that old indexes refuse new vectors."""

_MAX_ASPECT = 8
"""Images longer than this are cropped and resized in one step; Pillow then orders passes otherwise, about 1/255 off."""

_RESAMPLING = {
    "bilinear": Resampling.BILINEAR,
    "bicubic": Resampling.BICUBIC,
    "lanczos": Resampling.LANCZOS,
    "box": Resampling.BOX,
    "hamming": Resampling.HAMMING,
}
# Fields that came later: left out of fingerprints and allowed to be absent while they have this value.
_LATER = {"crop_offset": "round", "fewer_scans": False, "depth": "full", "decode_rules": 1}


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Image to uint8 pixels of one size; mean and std are applied on the device, by the encoder."""

    img_size: int = 224
    """Side of the square that the ViT sees."""
    resize: Resize = "crop"
    """``crop``: the shorter side becomes ``img_size / crop_pct``, then the centre is cut out. ``squash``: both sides
    become ``img_size``, whatever the aspect. ``squash+crop``: both become ``img_size / crop_pct``, then the centre is
    cut out. ``pad``: the longer side becomes ``img_size``, the rest shows the background."""
    crop_pct: float = 1.0
    """Share of the side that the centre crop keeps, in (0, 1]; only for ``crop`` and ``squash+crop``."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resize; always antialiased."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per channel, of pixels in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per channel, of pixels in 0..1."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB, 0..255, behind transparent pixels and in the bars of ``pad``."""
    draft: bool = True
    """Scaled JPEG decode while the shorter side stays at least twice what the resize needs."""
    in_chans: int = 3
    """Channels that the ViT takes; pixels are always RGB here."""
    crop_offset: CropOffset = "round"
    """Where an odd margin goes: ``round`` as torchvision and timm (halves to even), ``floor`` as transformers."""
    fewer_scans: bool = True
    """Progressive JPEGs that decode at 1/4 go without the last bit of their brightness."""
    depth: str = "auto"
    """What is white in images of more than 8 bits per channel (``DecodeOptions.depth``)."""
    decode_rules: int = 2
    """Which rules of decoding hold: 1 those of the first models, 2 those of today (``DecodeOptions.rules``)."""

    def __post_init__(self) -> None:
        """Refuse values that no image could be preprocessed with."""
        problems = []
        if self.img_size not in PIXELS:
            problems.append(f"img_size is {self.img_size}, must be {PIXELS}")
        problems += _wrong_choices({name: getattr(self, name) for name in _CHOICES})
        if not 0 < self.crop_pct <= 1:
            problems.append(f"crop_pct is {self.crop_pct}, must be above 0 and at most 1")
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            problems.append(f"mean {self.mean} and std {self.std} must be finite, and std above 0")
        if not all(0 <= value <= 255 for value in self.background):
            problems.append(f"background is {self.background}, must lie in 0..255")
        if self.depth not in DEPTHS:
            problems.append(f"depth is {self.depth!r}, must be one of {', '.join(DEPTHS)}")
        if self.decode_rules not in (1, 2):
            problems.append(f"decode_rules is {self.decode_rules}, must be 1 or 2")
        if self.in_chans < 1:
            problems.append(f"in_chans is {self.in_chans}, must be at least 1")
        if problems:
            raise ValueError("preprocess: " + "; ".join(problems))

    @property
    def decode_options(self) -> DecodeOptions:
        """How files are decoded for this preprocessing."""
        return DecodeOptions(
            background=self.background,
            draft=self.draft,
            fewer_scans=self.fewer_scans,
            depth=self.depth,
            rules=self.decode_rules,
        )

    def as_before(self) -> Preprocess:
        """The same as it was before ``depth`` and ``decode_rules`` came, of which older collections may be."""
        return replace(self, depth="full", decode_rules=1)

    def load(self, ref: ImageRef) -> UInt8[np.ndarray, "{self.img_size} {self.img_size} 3"]:
        """Pixels of an image file, upright, RGB, resized and cropped.

        Raises:
            BadImage: If the file cannot be decoded in full.
        """
        return self.load_image(ref).pixels

    def load_image(self, ref: ImageRef, *, tolerant: bool = False) -> Loaded:
        """As ``load``, with the size that the image has in its file, and notes.

        Args:
            ref: The file and the frame in it.
            tolerant: Take what is there of a truncated image, with a note.
        """
        options = replace(self.decode_options, tolerant=tolerant)
        return self.fit(decode_image(ref, options, target_px=self.short_px))

    def fit(self, decoded: Decoded) -> Loaded:
        """Resize and crop what was decoded with ``short_px`` as its target."""
        # A scaled decode rounds the sides up, and by them a small image would be cut elsewhere.
        if self.decode_rules == 1:
            decoded = replace(decoded, box=None)
        size = decoded.full_size if self.decode_rules > 1 else decoded.image.size
        return Loaded(np.array(self._fit(decoded.image, size, decoded.box)), decoded.full_size, decoded.notes)

    def apply(self, image: np.ndarray | PILImage) -> UInt8[np.ndarray, "{self.img_size} {self.img_size} 3"]:
        """Do the same to an image in memory.

        Args:
            image: A Pillow image, or uint8 [h, w] grey, [h, w, 1], [h, w, 3] RGB or [h, w, 4] RGBA.

        Raises:
            BadImage: If a Pillow image cannot be loaded.
            DataError: If an array is no such image.
        """
        upright = upright_pil(_as_pil(image), self.decode_options)
        return np.array(self._fit(upright, upright.size, None))

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON types."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Restore the preprocessing that ``to_dict`` described.

        Raises:
            ModelError: If a key is missing or unknown, or a value cannot be used; the message names it.
        """
        known = {field.name: getattr(cls(), field.name) for field in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise ModelError(f"preprocess: unknown key {', '.join(unknown)} (known: {', '.join(known)})")
        if missing := [name for name in known if name not in values and name not in _LATER]:
            raise ModelError(f"preprocess: missing key {', '.join(missing)}")
        values = {**_LATER, **values}
        typed = {name: _typed(name, values[name], like=default) for name, default in known.items()}
        if wrong := _wrong_choices(typed):
            raise ModelError(f"preprocess: {'; '.join(wrong)}")
        try:
            return cls(**typed)
        except ValueError as error:
            raise ModelError(str(error)) from error

    def canonical(self) -> str:
        """Canonical JSON of everything here that changes a vector, for fingerprints."""
        floats = {"crop_pct": float(self.crop_pct), "mean": [*map(float, self.mean)], "std": [*map(float, self.std)]}
        values = {key: value for key, value in self.to_dict().items() if _LATER.get(key) != value}
        return json.dumps(values | floats | {"rules": _RULES}, sort_keys=True, separators=(",", ":"))

    @property
    def short_px(self) -> int:
        """Length of the resized shorter side, before any crop."""
        return math.floor(self.img_size / self.crop_pct) if self.resize.endswith("crop") else self.img_size

    def _fit(self, image: PILImage, full_size: tuple[int, int], box: Box | None) -> PILImage:
        size, filter_ = self.img_size, _RESAMPLING[self.interpolation]
        width, height = full_size
        if self.resize == "squash":
            return image.resize((size, size), filter_, box=box)
        if self.resize == "squash+crop":
            whole = self.short_px
            start = self._margin(whole)
            return image.resize((whole, whole), filter_, box=box).crop((start, start, start + size, start + size))
        if self.resize == "pad":
            scale = size / max(width, height)
            inner = (max(1, round(width * scale)), max(1, round(height * scale)))
            canvas = Image.new("RGB", (size, size), self.background)
            canvas.paste(image.resize(inner, filter_, box=box), ((size - inner[0]) // 2, (size - inner[1]) // 2))
            return canvas
        return self._crop(image, full_size, box, filter_)

    def _crop(self, image: PILImage, full_size: tuple[int, int], box: Box | None, filter_: Resampling) -> PILImage:
        # The roundings of torchvision's Resize and CenterCrop, so that public weights see the pixels they know.
        (width, height), short, size = full_size, self.short_px, self.img_size
        if width <= height:
            resized = (short, int(short * height / width))
        else:
            resized = (int(short * width / height), short)
        left, top = (self._margin(side) for side in resized)
        if max(resized) <= _MAX_ASPECT * short:
            return image.resize(resized, filter_, box=box).crop((left, top, left + size, top + size))
        # A 1 x 5000 image would become 224 x 1 120 000 first: resize only the part that survives the crop.
        x0, y0, x1, y1 = box or (0, 0, *image.size)
        x, y = (x1 - x0) / resized[0], (y1 - y0) / resized[1]
        part = (x0 + left * x, y0 + top * y, min(x0 + (left + size) * x, x1), min(y0 + (top + size) * y, y1))
        return image.resize((size, size), filter_, box=part)

    def _margin(self, side: int) -> int:
        """What the centre crop cuts off before its start."""
        return (side - self.img_size) // 2 if self.crop_offset == "floor" else round((side - self.img_size) / 2.0)


def _as_pil(image: np.ndarray | PILImage) -> PILImage:
    if isinstance(image, PILImage):
        return image
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    is_image = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if image.dtype != np.uint8 or not is_image or 0 in image.shape:
        raise DataError(
            "an image array must be uint8 of shape [h, w], [h, w, 3] or [h, w, 4]; "
            f"got {image.dtype} {list(image.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(image))


_CHOICES = {
    "resize": get_args(Resize),
    "interpolation": get_args(Interpolation),
    "crop_offset": get_args(CropOffset),
}


def _wrong_choices(values: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} is {values[name]!r}, must be one of {', '.join(choices)}"
        for name, choices in _CHOICES.items()
        if values[name] not in choices
    ]


def _typed(name: str, value: Any, *, like: Any) -> Any:
    """Turn JSON back into the field's type: lists into tuples, whole numbers into floats where floats belong."""
    if isinstance(like, tuple):
        if not isinstance(value, (list, tuple)) or len(value) != len(like):
            raise ModelError(f"preprocess: {name} is {value!r}, must be a list of {len(like)} numbers")
        return tuple(_typed(name, item, like=like_item) for item, like_item in zip(value, like, strict=True))
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(like):
        raise ModelError(f"preprocess: {name} is {value!r}, must be a {type(like).__name__}")
    return value
