"""What is learned: how views differ from their image, and the terms of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitembed.config.ranges import out_of_range
from vitembed.errors import ConfigError

# Where the settings of AugmentConfig start; what a recipe or the user sets beside ``augment.preset`` goes before.
AUGMENT_PRESETS: dict[str, dict[str, Any]] = {
    # Things keep their name when mirrored, cropped, or seen in other light.
    "photo": {},
    # Pages and drawings: never mirrored, no colours to turn, most of the page stays in sight.
    "document": {
        "crop_scale": [0.5, 1.0],
        "local_crop_scale": [0.2, 0.5],
        "hflip_prob": 0.0,
        "rotate_degrees": 5.0,
        "saturation": 0.1,
        "hue": 0.0,
        "gray_prob": 0.1,
        "blur_prob": 0.2,
        "blur_sigma": [0.1, 1.0],
    },
    # Seen from above: no side is up; stain and exposure vary, but colour carries meaning and is never taken away.
    "microscopy": {
        "crop_scale": [0.4, 1.0],
        "vflip_prob": 0.5,
        "rotate_degrees": 180.0,
        "saturation": 0.2,
        "hue": 0.03,
        "gray_prob": 0.0,
        "blur_prob": 0.2,
        "blur_sigma": [0.1, 1.0],
    },
    # The image as it is: only which patches are hidden differs.
    "none": {
        "crop_scale": [1.0, 1.0],
        "crop_ratio": [1.0, 1.0],
        "hflip_prob": 0.0,
        "jitter_prob": 0.0,
        "gray_prob": 0.0,
    },
}


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How random views differ from their image. Strengths as in torchvision's ColorJitter."""

    preset: str = "photo"
    """Where the other settings of this section start: photo, document, microscopy or none (AUGMENT_PRESETS)."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Share of the image's area that a crop covers."""
    local_crop_scale: tuple[float, float] = (0.05, 0.3)
    """The same for the small views of multi-crop (``objective.num_local_views``)."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333)
    """Width over height of a crop."""
    hflip_prob: float = 0.5
    """Mirror left-right."""
    vflip_prob: float = 0.0
    """Mirror top-bottom."""
    rotate_degrees: float = 0.0
    """Turn by up to this many degrees either way."""
    jitter_prob: float = 0.8
    """How often brightness, contrast, saturation and hue change."""
    brightness: float = 0.4
    """Factor drawn from 1 +- this."""
    contrast: float = 0.4
    """Factor drawn from 1 +- this."""
    saturation: float = 0.4
    """Factor drawn from 1 +- this."""
    hue: float = 0.1
    """Turn of the colour wheel drawn from +- this, in turns."""
    tint: float = 0.0
    """Blend the view with one random colour whose share is drawn from 0 to this, as a filter does (jittered views)."""
    gray_prob: float = 0.2
    """How often the colour is taken away."""
    blur_prob: float = 0.0
    """How often the view is blurred."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Gaussian sigma in pixels of a 224-px view."""
    solarize_prob: float = 0.0
    """How often values above a half are inverted."""

    def __post_init__(self) -> None:
        problems = out_of_range(self, "augment.")
        if self.preset not in AUGMENT_PRESETS:
            problems.append(f"augment.preset must be one of {', '.join(AUGMENT_PRESETS)}, got {self.preset!r}")
        for name in ("crop_scale", "local_crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                problems.append(f"augment.{name} must rise, got {(low, high)}")
        if problems:
            raise ConfigError("; ".join(problems))


SPREADS = ("coding_rate", "visreg", "info_nce", "none")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned: the terms of the loss and their weights."""

    mask_ratio: float = 0.5
    """Share of patches hidden in each view; the encoder never computes them."""
    num_views: int = 2
    """Random views per image (the global ones of multi-crop)."""
    num_local_views: int = 0
    """Smaller views of small crops beside them (multi-crop, arXiv:2006.09882): they agree with the global ones."""
    local_img_size: int | None = None
    """Side of a local view in pixels; none: half of ``model.img_size``, to a multiple of the patch size."""
    local_mask_ratio: float = 0.0
    """Share of patches hidden in each local view."""
    spread: str = "coding_rate"
    """What keeps the cls vectors of different images apart: coding_rate, visreg, info_nce or none."""
    align_weight: float = 1.0
    """Weight of the agreement between views (coding_rate and visreg; info_nce has it inside)."""
    spread_weight: float = 1.0
    """Weight of the spread."""
    visreg_slices: int = 256
    """Random directions in which visreg compares the batch with a Gaussian."""
    teacher: bool = False
    """Whether an EMA copy of the encoder, which sees whole views, gives the targets."""
    teacher_momentum: float = 0.996
    """Momentum of the teacher at the start, per step of 256 images; it rises to 1 along half a cosine."""
    cls_regression_weight: float = 0.0
    """Weight of the cls vector predicting the teacher's mean patch of the same view (needs no crops; data2vec)."""
    coding_rate_eps: float = 0.05
    """Precision to which the coding rate codes."""
    contrast_weight: float = 0.0
    """Weight of InfoNCE beside coding_rate or visreg; 0: none."""
    temperature: float = 0.2
    """Temperature of InfoNCE."""
    patch_weight: float = 1.0
    """Weight of the hidden patches' prediction; 0 leaves the decoder out."""
    num_patch_views: int | None = None
    """Views whose hidden patches are predicted, the first of the global ones; none: all of them."""
    patch_target: str = "pixels"
    """What is predicted of a hidden patch: pixels (MAE), or latent, the teacher's vector of it (iBOT)."""
    norm_pix_loss: bool = True
    """Reconstruct each patch standardised to mean 0 and variance 1."""
    head_hidden_dim: int = 1024
    """Width of the projection head."""
    head_dim: int = 128
    """Width of the vectors that are compared while training."""
    decoder_dim: int = 64
    """Width of the decoder."""
    decoder_depth: int = 1
    """Blocks of the decoder."""

    def __post_init__(self) -> None:
        problems = out_of_range(self, "objective.")
        if self.num_patch_views is not None and self.num_patch_views > self.num_views:
            problems.append(
                f"objective.num_patch_views must lie in 1..num_views ({self.num_views}), got {self.num_patch_views}"
            )
        num_heads = max(1, self.decoder_dim // 32)  # as pretrain/decoder.py has them
        if self.decoder_dim % 4 or self.decoder_dim % num_heads:
            problems.append(
                f"objective.decoder_dim must be a multiple of 4 and, from 64 on, of its heads (one per 32), such as "
                f"32, 64, 96 or 128, got {self.decoder_dim}"
            )
        if self.spread not in SPREADS:
            problems.append(f"objective.spread must be one of {', '.join(SPREADS)}, got {self.spread!r}")
        if self.spread != "none" and self.num_views < 2:
            problems.append(f"objective.spread {self.spread!r} compares views: num_views must be at least 2")
        if self.contrast_weight and self.spread in ("info_nce", "none"):
            problems.append(
                f"objective.contrast_weight is for spread coding_rate or visreg, got {self.contrast_weight} with "
                f"{self.spread}"
            )
        if self.spread == "none" and self.num_local_views:
            problems.append("objective.num_local_views are for the cls loss: set objective.spread")
        if self.spread == "none" and self.patch_weight == 0 and self.cls_regression_weight == 0:
            problems.append("objective has no term: set objective.spread or objective.patch_weight")
        if self.patch_weight > 0 and self.mask_ratio == 0:
            problems.append("objective.patch_weight needs hidden patches: set objective.mask_ratio above 0")
        if self.patch_target not in ("pixels", "latent"):
            problems.append(f"objective.patch_target must be pixels or latent, got {self.patch_target!r}")
        needs_teacher = self.patch_weight > 0 and self.patch_target == "latent"
        if (needs_teacher or self.cls_regression_weight > 0) and not self.teacher:
            problems.append("patch_target=latent and cls_regression_weight take targets from objective.teacher=true")
        if self.spread == "none" and self.patch_target == "latent" and self.patch_weight > 0:
            problems.append("objective.patch_target latent collapses without a spread: set objective.spread")
        if problems:
            raise ConfigError("; ".join(problems))
