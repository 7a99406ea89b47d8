"""Every setting of a pretraining run, as frozen dataclasses. No torch here; ``recipes.py`` fills them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from vitembed.errors import ConfigError

# Width, depth and heads of each size. nano is for CPU demos; the others are the sizes of DeiT / ViT / MAE.
PRESETS: dict[str, tuple[int, int, int]] = {
    "nano": (128, 4, 2),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The architecture of an encoder, complete: what is stored beside its weights."""

    img_size: int
    """Native side of the (square) image in pixels; other sizes are possible, positions are then interpolated."""
    patch_size: int
    """Side of a patch in pixels."""
    embed_dim: int
    """Width of a token."""
    depth: int
    """Number of blocks."""
    num_heads: int
    """Attention heads per block."""
    in_chans: int = 3
    """Channels of the input."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its width."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    num_registers: int = 0
    """Scratch tokens beside cls (arXiv:2309.16588)."""
    pos_embed: Literal["learned", "sincos2d"] = "learned"
    """Learned 1-D positions (ViT) or fixed 2-D sine-cosine ones (MAE)."""
    no_embed_class: bool = False
    """Whether positions are for patches only (timm's name); otherwise cls and registers have one too."""
    init_values: float | None = None
    """Start value of LayerScale; none: no LayerScale."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; it rises linearly from 0."""

    def __post_init__(self) -> None:
        if self.img_size % self.patch_size:
            raise ConfigError(f"img_size {self.img_size} must be a multiple of patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}")
        for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "in_chans"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def num_patches(self) -> int:
        """Patches of an image of the native size."""
        return (self.img_size // self.patch_size) ** 2


def preset(size: str, **settings: Any) -> ViTConfig:
    """The architecture of a named size, such as ``preset("small", img_size=224, patch_size=16)``.

    Raises:
        ConfigError: If the size is unknown.
    """
    if size not in PRESETS:
        raise ConfigError(f"unknown model size {size!r}: expected one of {', '.join(PRESETS)}")
    embed_dim, depth, num_heads = PRESETS[size]
    return ViTConfig(**{"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, **settings})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder to train."""

    size: str = "small"
    """nano, tiny, small, base, large or huge."""
    img_size: int = 224
    """Side of a training view in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    embed_dim: int | None = None
    """Width, instead of the size's own."""
    depth: int | None = None
    """Blocks, instead of the size's own."""
    num_heads: int | None = None
    """Heads, instead of the size's own."""
    num_registers: int = 0
    """Register tokens."""
    pos_embed: str = "learned"
    """learned or sincos2d."""
    init_values: float | None = None
    """LayerScale start value; none: no LayerScale."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block."""

    def __post_init__(self) -> None:
        if self.pos_embed not in ("learned", "sincos2d"):
            raise ConfigError(f"model.pos_embed must be learned or sincos2d, got {self.pos_embed!r}")
        self.vit()

    def vit(self) -> ViTConfig:
        """The complete architecture.

        Raises:
            ConfigError: If the size is unknown or the sizes do not fit together.
        """
        given = {k: v for k in ("embed_dim", "depth", "num_heads") if (v := getattr(self, k)) is not None}
        return preset(
            self.size,
            img_size=self.img_size,
            patch_size=self.patch_size,
            num_registers=self.num_registers,
            pos_embed=self.pos_embed,
            init_values=self.init_values,
            drop_path_rate=self.drop_path_rate,
            **given,
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How random views differ from their image. Strengths as in torchvision's ColorJitter."""

    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Share of the image's area that a crop covers."""
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
        problems = []
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            problems.append(f"augment.crop_scale must rise within 0..1, got {self.crop_scale}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            problems.append(f"augment.crop_ratio must rise and be positive, got {self.crop_ratio}")
        for name in ("hflip_prob", "vflip_prob", "jitter_prob", "tint", "gray_prob", "blur_prob", "solarize_prob"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"augment.{name} must lie in 0..1, got {getattr(self, name)}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned: the terms of the loss and their weights."""

    mask_ratio: float = 0.5
    """Share of patches hidden in each view; the encoder never computes them."""
    num_views: int = 2
    """Random views per image."""
    spread: str = "coding_rate"
    """What keeps the cls vectors of different images apart: coding_rate, info_nce or none."""
    align_weight: float = 1.0
    """Weight of the agreement between views (coding_rate only; info_nce has it inside)."""
    spread_weight: float = 1.0
    """Weight of the spread."""
    coding_rate_eps: float = 0.05
    """Precision to which the coding rate codes."""
    temperature: float = 0.2
    """Temperature of info_nce."""
    patch_weight: float = 1.0
    """Weight of the hidden patches' reconstruction; 0 leaves the decoder out."""
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
        problems = []
        if not 0 <= self.mask_ratio < 1:
            problems.append(f"objective.mask_ratio must lie in 0..1 (1 excluded), got {self.mask_ratio}")
        if self.num_views < 1:
            problems.append(f"objective.num_views must be at least 1, got {self.num_views}")
        if self.spread not in ("coding_rate", "info_nce", "none"):
            problems.append(f"objective.spread must be coding_rate, info_nce or none, got {self.spread!r}")
        if self.spread != "none" and self.num_views < 2:
            problems.append(f"objective.spread {self.spread!r} compares views: num_views must be at least 2")
        if self.spread == "none" and self.patch_weight == 0:
            problems.append("objective has no term: set objective.spread or objective.patch_weight")
        if self.patch_weight > 0 and self.mask_ratio == 0:
            problems.append("objective.patch_weight needs hidden patches: set objective.mask_ratio above 0")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images reach the training step."""

    cache: str = "auto"
    """Decode once and keep the small uint8 images: ram, disk, or auto (ram while they are few)."""
    cache_size: int | None = None
    """Side in pixels of the kept images; none: 1.5 times the training view (at most twice)."""
    num_workers: int | None = None
    """Threads that decode; none: one per core."""
    holdout: int = 256
    """Images used for the monitors (they are trained on as well: there are no labels to leak)."""

    def __post_init__(self) -> None:
        if self.cache not in ("auto", "ram", "disk"):
            raise ConfigError(f"data.cache must be auto, ram or disk, got {self.cache!r}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay."""

    batch_size: int = 256
    """Images per step and device."""
    base_lr: float = 2e-3
    """Peak learning rate per 256 images of the effective batch (linear rule)."""
    min_lr_ratio: float = 0.0
    """Learning rate at the end over the peak."""
    weight_decay: float = 0.05
    """On weight matrices only: norms, biases, tokens and positions have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging."""
    grad_clip: float = 3.0
    """Largest gradient norm."""
    warmup_share: float = 0.05
    """Share of the run in which the learning rate rises linearly."""
    max_steps: int | None = None
    """Length of the run in steps; none: from max_epochs."""
    max_epochs: float = 200.0
    """Length of the run in passes over the images, when max_steps is not given."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("batch_size", "base_lr", "max_epochs", "grad_clip"):
            if getattr(self, name) <= 0:
                problems.append(f"optim.{name} must be positive, got {getattr(self, name)}")
        if self.max_steps is not None and self.max_steps < 1:
            problems.append(f"optim.max_steps must be at least 1, got {self.max_steps}")
        if not 0 <= self.warmup_share < 1:
            problems.append(f"optim.warmup_share must lie in 0..1 (1 excluded), got {self.warmup_share}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Passed to Lightning."""

    accelerator: str = "auto"
    """auto, cpu, gpu or mps."""
    precision: str = "auto"
    """auto (bf16 where the GPU has it, fp16 on older ones, else fp32), 32-true, bf16-mixed or 16-mixed."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every_minutes: float = 5.0
    """Minutes between saves for resuming."""
    num_pictures: int = 4
    """How often in a run the pictures and monitors are made, the end included."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A whole pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    time_budget_seconds: float | None = None
    """Plan the schedule to end in this time; none: by steps or epochs."""
    seed: int = 0
    """Same seed, same images, same machine: same weights."""

    def __post_init__(self) -> None:
        if self.time_budget_seconds is not None and self.time_budget_seconds <= 0:
            raise ConfigError(f"time_budget_seconds must be positive, got {self.time_budget_seconds}")

    @property
    def cache_size(self) -> int:
        """Side in pixels of the cached images."""
        return self.data.cache_size or (self.model.img_size * 3 + 1) // 2


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as JSON- and YAML-safe data."""
    return {
        key: list(value) if isinstance(value, tuple) else to_dict(value) if dataclasses.is_dataclass(value) else value
        for key, value in ((f.name, getattr(config, f.name)) for f in dataclasses.fields(config))
    }
