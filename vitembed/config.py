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


_CHOICES: dict[str, tuple[str, ...]] = {
    "pos_embed": ("learned", "sincos2d", "rope"),
    "final_norm": ("tokens", "pooled", "none"),
    "act": ("gelu", "quick_gelu", "gelu_tanh"),
    "mlp": ("mlp", "swiglu"),
    "pos_interpolation": ("antialias", "bicubic", "bicubic_offset"),
    "rope_periods": ("float32", "bfloat16"),
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
    stem: Literal["patch", "conv"] = "patch"
    """How pixels become tokens: one convolution as large as a patch (ViT), or some small ones (arXiv:2106.14881)."""
    pos_embed: Literal["learned", "sincos2d", "rope"] = "learned"
    """Learned 1-D positions (ViT), fixed 2-D sine-cosine ones (MAE), or queries and keys turned by place (DINOv3)."""
    no_embed_class: bool = False
    """Whether positions are for patches only (timm's name); otherwise cls and registers have one too."""
    init_values: float | None = None
    """Start value of LayerScale; none: no LayerScale."""
    class_token: bool = True
    """Whether there is a cls token; without one a vector is the mean of the patches (I-JEPA) or ``attn_pool``'s."""
    pre_norm: bool = False
    """A norm before the first block, and a patch embedding without bias (CLIP)."""
    norm_eps: float = 1e-6
    """What the norms add to the variance: 1e-6 in most ViTs, 1e-5 in CLIP and DINOv3, 1e-12 in Hugging Face's ViT."""
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    """Where the last norm stands: on every token, on the mean of the patches (timm's ``fc_norm``), or nowhere."""
    act: Literal["gelu", "quick_gelu", "gelu_tanh"] = "gelu"
    """Activation of an MLP: exact GELU, OpenAI CLIP's ``x * sigmoid(1.702 x)``, or GELU's tanh approximation."""
    mlp: Literal["mlp", "swiglu"] = "mlp"
    """Two linear layers, or SwiGLU with gate and value side by side in the first; ``mlp_ratio`` then counts both."""
    pos_interpolation: Literal["antialias", "bicubic", "bicubic_offset"] = "antialias"
    """How positions are resized: bicubic with antialiasing (timm), plain (Hugging Face), or as Meta's DINO does it."""
    rope_theta: float = 100.0
    """Longest period of rotary positions."""
    rope_periods: Literal["float32", "bfloat16"] = "float32"
    """What their periods are rounded to: Meta's DINOv3 files keep them in bfloat16."""
    attn_pool: bool = False
    """Whether cls is pooled from the patches by a learned query after the last norm (SigLIP)."""
    cls_proj: bool = False
    """Whether a linear map follows on the cls vector: what whitens it (``model/whitening.py``)."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; it rises linearly from 0."""

    def __post_init__(self) -> None:
        if self.img_size % self.patch_size:
            raise ConfigError(f"img_size {self.img_size} must be a multiple of patch_size {self.patch_size}")
        if self.stem == "conv":
            num = self.patch_size.bit_length() - 1
            if self.patch_size < 2 or self.patch_size != 1 << num:
                raise ConfigError(f"stem conv halves the image: patch_size must be a power of 2, got {self.patch_size}")
            if self.embed_dim % (1 << num):
                raise ConfigError(
                    f"stem conv needs an embed_dim that is a multiple of {1 << num}, got {self.embed_dim}"
                )
        elif self.stem != "patch":
            raise ConfigError(f"stem must be patch or conv, got {self.stem!r}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}")
        for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "in_chans"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")
        if self.pos_embed == "rope" and (self.embed_dim // self.num_heads) % 4:
            raise ConfigError(
                f"rotary positions need heads whose width is a multiple of 4, got {self.embed_dim // self.num_heads}"
            )

    @property
    def has_cls(self) -> bool:
        """Whether there is a cls vector: from a token or pooled by a learned query."""
        return self.class_token or self.attn_pool

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


def _switch(word: str) -> str:
    """YAML takes a bare on or off for true or false, which arrive here as text."""
    return {"True": "on", "False": "off"}.get(word, word)


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
    stem: str = "patch"
    """patch (one convolution as large as a patch) or conv (small ones of stride 2)."""
    pos_embed: str = "learned"
    """learned or sincos2d."""
    init_values: float | None = None
    """LayerScale start value; none: no LayerScale."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block."""
    whiten: float = 0.5
    """How far the exported cls vector is whitened: 0 not at all, 1 fully. Learned from the images, without labels."""

    def __post_init__(self) -> None:
        if not 0 <= self.whiten <= 1:
            raise ConfigError(f"model.whiten must lie in 0..1, got {self.whiten}")
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
            stem=self.stem,
            pos_embed=self.pos_embed,
            init_values=self.init_values,
            drop_path_rate=self.drop_path_rate,
            **given,
        )


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
        problems = []
        if self.preset not in AUGMENT_PRESETS:
            problems.append(f"augment.preset must be one of {', '.join(AUGMENT_PRESETS)}, got {self.preset!r}")
        for name in ("crop_scale", "local_crop_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                problems.append(f"augment.{name} must rise within 0..1, got {(low, high)}")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            problems.append(f"augment.crop_ratio must rise and be positive, got {self.crop_ratio}")
        for name in ("hflip_prob", "vflip_prob", "jitter_prob", "tint", "gray_prob", "blur_prob", "solarize_prob"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"augment.{name} must lie in 0..1, got {getattr(self, name)}")
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
        problems = []
        for name in ("mask_ratio", "local_mask_ratio"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"objective.{name} must lie in 0..1 (1 excluded), got {getattr(self, name)}")
        if self.num_views < 1:
            problems.append(f"objective.num_views must be at least 1, got {self.num_views}")
        if self.num_patch_views is not None and not 1 <= self.num_patch_views <= self.num_views:
            problems.append(
                f"objective.num_patch_views must lie in 1..num_views ({self.num_views}), got {self.num_patch_views}"
            )
        if self.num_local_views < 0:
            problems.append(f"objective.num_local_views must not be negative, got {self.num_local_views}")
        if self.spread not in SPREADS:
            problems.append(f"objective.spread must be one of {', '.join(SPREADS)}, got {self.spread!r}")
        if self.spread != "none" and self.num_views < 2:
            problems.append(f"objective.spread {self.spread!r} compares views: num_views must be at least 2")
        if self.contrast_weight < 0 or (self.contrast_weight and self.spread in ("info_nce", "none")):
            problems.append(
                f"objective.contrast_weight is for spread coding_rate or visreg and not negative, got "
                f"{self.contrast_weight} with {self.spread}"
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
        if not 0 <= self.teacher_momentum < 1:
            problems.append(f"objective.teacher_momentum must lie in 0..1 (1 excluded), got {self.teacher_momentum}")
        if self.spread == "none" and self.patch_target == "latent" and self.patch_weight > 0:
            problems.append("objective.patch_target latent collapses without a spread: set objective.spread")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How images reach the training step."""

    cache: str = "auto"
    """Where decoded images are kept as small uint8 squares: ram, disk, off (nowhere: every pass decodes anew), or auto
    (ram while they are few, then disk, then half of the memory, then off; by what is free)."""
    cache_size: int | None = None
    """Side in pixels of the kept images; none: 1.5 times the training view (at most twice)."""
    num_workers: int | None = None
    """Threads that decode; none: one per core."""
    holdout: int = 256
    """Images used for the monitors (they are trained on as well: there are no labels to leak)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", _switch(self.cache))
        if self.cache not in ("auto", "ram", "disk", "off"):
            raise ConfigError(f"data.cache must be auto, ram, disk or off, got {self.cache!r}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and cosine decay. Rates are quoted per 256 images and follow the effective batch size."""

    batch_size: int = 256
    """Images per step and device."""
    base_lr: float = 2e-3
    """Peak learning rate at an effective batch of 256 images."""
    lr_scaling: str = "sqrt"
    """How it follows the effective batch size: linear, sqrt or none; weight decay and EMA momenta go with it."""
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
    export_ema: float = 0.0
    """Momentum per 256 images of an average of the encoder's weights that is exported in their place; 0: none."""
    low_res_share: float = 0.0
    """Share of the run, from its start, in which views have half the size (FastDINOv2's curriculum)."""
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
        if self.lr_scaling not in ("linear", "sqrt", "none"):
            problems.append(f"optim.lr_scaling must be linear, sqrt or none, got {self.lr_scaling!r}")
        for name in ("export_ema", "low_res_share"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"optim.{name} must lie in 0..1 (1 excluded), got {getattr(self, name)}")
        if not 0 <= self.warmup_share < 1:
            problems.append(f"optim.warmup_share must lie in 0..1 (1 excluded), got {self.warmup_share}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Passed to Lightning."""

    accelerator: str = "auto"
    """auto, cpu, gpu or mps."""
    devices: str = "auto"
    """GPUs (or CPU processes) per machine, each with ``optim.batch_size`` images: a number, or auto (every GPU)."""
    num_nodes: int = 1
    """Machines; more than one are started by torchrun or srun."""
    strategy: str = "auto"
    """How several devices share the work: ddp, fsdp (model spread over CUDA GPUs), or auto (ddp)."""
    precision: str = "auto"
    """auto (bf16 where the GPU has it, fp16 on older ones, else fp32), 32-true, bf16-mixed or 16-mixed."""
    compile: str = "auto"
    """torch.compile for the blocks: on, off, or auto (on GPUs, where the run is long and a trial comes out faster)."""
    log_every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    save_every_minutes: float = 5.0
    """Minutes between saves for resuming."""
    num_pictures: int = 4
    """How often in a run the pictures and monitors are made, the end included and the start besides; 0: never."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "compile", _switch(self.compile))
        if self.compile not in ("auto", "on", "off"):
            raise ConfigError(f"trainer.compile must be auto, on or off, got {self.compile!r}")
        problems = []
        if self.devices != "auto" and not (self.devices.isdecimal() and int(self.devices) > 0):
            problems.append(f"trainer.devices must be auto or a number of at least 1, got {self.devices!r}")
        if self.num_nodes < 1:
            problems.append(f"trainer.num_nodes must be at least 1, got {self.num_nodes}")
        if self.strategy not in ("auto", "ddp", "fsdp"):
            problems.append(f"trainer.strategy must be auto, ddp or fsdp, got {self.strategy!r}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """How the encoder is judged while it learns. Nothing here changes what is learned."""

    labels: str = "auto"
    """auto (class sub-folders, if the images lie in such), none, or a labelled folder or CSV as ``vitembed probe``."""
    num_bank: int = 2000
    """Labelled images that k-NN and linear probe learn from, at most."""
    num_queries: int = 1000
    """Labelled images that they are tested on, at most."""
    export: str = "last"
    """Which weights become the model: last, or best (by k-NN with labels, else by RankMe times view retrieval)."""
    tensorboard: bool = False
    """Write TensorBoard event files too (needs the extra ``vitembed[tensorboard]``)."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("num_bank", "num_queries"):
            if getattr(self, name) < 1:
                problems.append(f"monitor.{name} must be at least 1, got {getattr(self, name)}")
        if self.export not in ("last", "best"):
            problems.append(f"monitor.export must be last or best, got {self.export!r}")
        if not self.labels:
            problems.append("monitor.labels must be auto, none or a path, got an empty text")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How a run goes on from a trained model (``--model``); refused without one."""

    parent: str | None = None
    """Fingerprint of that model; filled in by ``--model``, and checked if given."""
    mode: str = "full"
    """full (all blocks, early ones slower), lora (low-rank changes, last blocks whole) or last_blocks (only these)."""
    lr_scale: float = 0.1
    """Learning rate of the encoder's final norm over that of the heads; the blocks follow by ``layer_decay``."""
    layer_decay: float = 0.75
    """Learning rate of each block over that of the next one."""
    num_blocks: int = 1
    """Last blocks that are trained whole (lora, last_blocks)."""
    lora_rank: int = 16
    """Rank of the changes (lora)."""
    lora_alpha: float = 16.0
    """Changes are scaled by this over the rank (lora)."""
    lora_lr_scale: float = 0.2
    """Learning rate of the changes over that of the heads (lora): they start at zero and need more than weights do."""
    head_warmup_share: float = 0.05
    """Share of the run (20 steps at least) in which only the heads learn and the encoder stays as it is; 0: none."""
    patch_ramp_share: float = 0.2
    """Share of the run in which the patch loss rises from 0 to its weight."""
    anchor_weight: float = 0.5
    """Weight of 1 minus the cosine between a view's cls vector and what the unchanged model gives for that view."""
    tolerance: float = 0.02
    """Share of the unchanged model's score by which the trained one may be worse at a check."""
    patience: int = 3
    """Checks in a row that may be worse before the run stops and the unchanged model is kept."""
    num_checks: int = 20
    """Checks in a run: ``trainer.num_pictures`` where that is not given."""

    def __post_init__(self) -> None:
        problems = []
        if self.mode not in ("full", "lora", "last_blocks"):
            problems.append(f"adapt.mode must be full, lora or last_blocks, got {self.mode!r}")
        for name in ("lr_scale", "layer_decay", "lora_alpha", "lora_lr_scale"):
            if getattr(self, name) <= 0:
                problems.append(f"adapt.{name} must be positive, got {getattr(self, name)}")
        if self.layer_decay > 1:
            problems.append(f"adapt.layer_decay must be at most 1, got {self.layer_decay}")
        for name in ("num_blocks", "lora_rank", "patience", "num_checks"):
            if getattr(self, name) < 1:
                problems.append(f"adapt.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("head_warmup_share", "patch_ramp_share", "tolerance"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"adapt.{name} must lie in 0..1 (1 excluded), got {getattr(self, name)}")
        if self.anchor_weight < 0:
            problems.append(f"adapt.anchor_weight must not be negative, got {self.anchor_weight}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A whole pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    time_budget_seconds: float | None = None
    """Plan the schedule to end in this time; none: by steps or epochs."""
    seed: int = 0
    """Same seed, same images, same machine: same weights."""

    def __post_init__(self) -> None:
        if self.time_budget_seconds is not None and self.time_budget_seconds <= 0:
            raise ConfigError(f"time_budget_seconds must be positive, got {self.time_budget_seconds}")
        if self.local_img_size % self.model.patch_size:
            raise ConfigError(
                f"objective.local_img_size {self.local_img_size} must be a multiple of "
                f"model.patch_size {self.model.patch_size}"
            )

    @property
    def local_img_size(self) -> int:
        """Side in pixels of a local view: a multiple of the patch size."""
        return self.objective.local_img_size or self._half_size()

    @property
    def low_res_img_size(self) -> int:
        """Side in pixels of a view in the first part of the run, if that has a curriculum."""
        return self._half_size()

    def _half_size(self) -> int:
        patch_size = self.model.patch_size
        return max(1, round(self.model.img_size / 2 / patch_size)) * patch_size

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
