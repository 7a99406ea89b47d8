"""The range of every numeric setting, in one table: what lies outside is refused when a configuration is made.

NaN and infinities lie in no range. The upper ends are far beyond any use; they keep numbers that overflow out of a run
that would fail on them later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from vitembed.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``."""

    low: int | float
    high: int | float
    whole: bool = False
    """Whole numbers only."""
    low_open: bool = False
    """``low`` itself is out."""
    high_open: bool = False
    """``high`` itself is out."""

    def __contains__(self, value: object) -> bool:
        """Whether a value is a number of this range."""
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        return bool(
            (self.low < number if self.low_open else self.low <= number)
            and (number < self.high if self.high_open else number <= self.high)
        )

    def __str__(self) -> str:
        """Give the range in words, as in ``a number in 0..1 (1 excluded)``."""
        out = [f"{end:g}" for end, is_open in ((self.low, self.low_open), (self.high, self.high_open)) if is_open]
        kind = "a whole number" if self.whole else "a number"
        ends = [str(end) if self.whole else f"{end:g}" for end in (self.low, self.high)]
        return f"{kind} in {ends[0]}..{ends[1]}" + (f" ({' and '.join(out)} excluded)" if out else "")


def _count(low: int, high: int) -> Range:
    return Range(low, high, whole=True)


def _positive(high: int | float) -> Range:
    return Range(0, high, low_open=True)


_SHARE = Range(0, 1)
_BELOW_ONE = Range(0, 1, high_open=True)
_INSIDE = Range(0, 1, low_open=True, high_open=True)
_WEIGHT = Range(0, 1e6)
_WIDTH = _count(1, 1 << 16)
_MANY = _count(1, 10**9)
PIXELS = _count(1, 1 << 14)
"""Of a side of an image or patch."""
SEED = _count(0, 2**32 - 1)
"""What NumPy, PyTorch and scikit-learn all take."""
SECONDS = _positive(1e9)
"""Up to 31 years."""
NUM_WORKERS = _count(0, 1024)
BATCH_SIZE = _count(1, 1 << 20)

_OPTIM = {
    "batch_size": BATCH_SIZE,
    "base_lr": _positive(1e30),
    "min_lr_ratio": _SHARE,
    "weight_decay": Range(0, 1e3),
    "betas": _BELOW_ONE,
    "grad_clip": _positive(1e32),
    "warmup_share": _BELOW_ONE,
    "export_ema": _BELOW_ONE,
    "low_res_share": _BELOW_ONE,
    "max_steps": _MANY,
    "max_epochs": _positive(1e6),
}

RANGES: Mapping[str, Mapping[str, Range]] = {
    "ViTConfig": {
        "img_size": PIXELS,
        "patch_size": PIXELS,
        "embed_dim": _WIDTH,
        "depth": _count(1, 4096),
        "num_heads": _count(1, 4096),
        "in_chans": _count(1, 4096),
        "mlp_ratio": _positive(1024),
        "num_registers": _count(0, 4096),
        "init_values": Range(-1e6, 1e6),
        "norm_eps": Range(0, 1),
        "rope_theta": _positive(1e12),
        "drop_path_rate": _BELOW_ONE,
    },
    "ModelConfig": {
        "img_size": PIXELS,
        "patch_size": PIXELS,
        "embed_dim": _WIDTH,
        "depth": _count(1, 4096),
        "num_heads": _count(1, 4096),
        "num_registers": _count(0, 4096),
        "init_values": Range(0, 1e3),
        "drop_path_rate": _BELOW_ONE,
        "whiten": _SHARE,
    },
    "DataConfig": {"cache_size": PIXELS, "num_workers": NUM_WORKERS, "holdout": _count(0, 10**6)},
    "AugmentConfig": {
        "crop_scale": Range(0, 1, low_open=True),
        "local_crop_scale": Range(0, 1, low_open=True),
        "crop_ratio": Range(0.01, 100),
        "hflip_prob": _SHARE,
        "vflip_prob": _SHARE,
        "rotate_degrees": Range(0, 180),
        "jitter_prob": _SHARE,
        "brightness": _SHARE,
        "contrast": _SHARE,
        "saturation": _SHARE,
        "hue": Range(0, 0.5),
        "tint": _SHARE,
        "gray_prob": _SHARE,
        "blur_prob": _SHARE,
        "blur_sigma": Range(0.01, 100),
        "solarize_prob": _SHARE,
    },
    "ObjectiveConfig": {
        "mask_ratio": _BELOW_ONE,
        "num_views": _count(1, 64),
        "num_local_views": _count(0, 64),
        "local_img_size": PIXELS,
        "local_mask_ratio": _BELOW_ONE,
        "align_weight": _WEIGHT,
        "spread_weight": _WEIGHT,
        "visreg_slices": _WIDTH,
        "teacher_momentum": _BELOW_ONE,
        "cls_regression_weight": _WEIGHT,
        "coding_rate_eps": Range(1e-4, 1e3),
        "contrast_weight": _WEIGHT,
        "temperature": Range(1e-3, 1e3),
        "patch_weight": _WEIGHT,
        "num_patch_views": _count(1, 64),
        "head_hidden_dim": _WIDTH,
        "head_dim": _WIDTH,
        "decoder_dim": _WIDTH,
        "decoder_depth": _count(1, 64),
    },
    "OptimConfig": _OPTIM,
    "TuneOptimConfig": {
        **_OPTIM,
        "encoder_lr_scale": _positive(1e3),
        "layer_decay": Range(0, 1, low_open=True),
        "head_warmup_share": _BELOW_ONE,
    },
    "TrainerConfig": {
        "num_nodes": _count(1, 1 << 16),
        "log_every_steps": _MANY,
        "save_every_minutes": Range(0, 1e7),
        "num_pictures": _count(0, 10**6),
    },
    "MonitorConfig": {"num_bank": _count(1, 10**7), "num_queries": _count(1, 10**7)},
    "AdaptConfig": {
        "lr_scale": _positive(1e4),
        "layer_decay": Range(0, 1, low_open=True),
        "num_blocks": _count(1, 4096),
        "lora_rank": _WIDTH,
        "lora_alpha": _positive(1e6),
        "lora_lr_scale": _positive(1e3),
        "head_warmup_share": _BELOW_ONE,
        "patch_ramp_share": _BELOW_ONE,
        "anchor_weight": _WEIGHT,
        "tolerance": _BELOW_ONE,
        "patience": _MANY,
        "num_checks": _count(1, 10**6),
    },
    "TunedModelConfig": {"img_size": PIXELS, "drop_path_rate": _BELOW_ONE, "head_hidden_dim": _WIDTH},
    "LabelsConfig": {
        "mixup_alpha": Range(0, 1e3),
        "cutmix_alpha": Range(0, 1e3),
        "mix_prob": _SHARE,
        "smoothing": _BELOW_ONE,
    },
    "SplitConfig": {"test_share": _INSIDE, "validation_share": _BELOW_ONE},
    "PretrainConfig": {"time_budget_seconds": SECONDS, "seed": SEED},
    "FinetuneConfig": {"time_budget_seconds": SECONDS, "seed": SEED},
}
"""By class and field; fields that hold several numbers have the range of each. None means "not given"."""


def out_of_range(config: Any, section: str = "") -> list[str]:
    """One line for each number of a configuration that lies outside its range.

    Args:
        config: A dataclass that ``RANGES`` names.
        section: What stands before the names of its fields, such as ``optim.``.
    """
    problems = []
    ranges = next(RANGES[kind.__name__] for kind in type(config).__mro__ if kind.__name__ in RANGES)
    for name, allowed in ranges.items():
        value = getattr(config, name)
        numbers = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
        if any(number not in allowed for number in numbers):
            problems.append(f"{section}{name} must be {allowed}, got {value!r}")
    return problems


def check_numbers(**given: tuple[object, Range]) -> None:
    """Check arguments of a public function: each with its range; None means "not given".

    Raises:
        ConfigError: If one lies outside its range; all are named.
    """
    problems = [
        f"{name} must be {allowed}, got {value!r}"
        for name, (value, allowed) in given.items()
        if value is not None and value not in allowed
    ]
    if problems:
        raise ConfigError("; ".join(problems))
