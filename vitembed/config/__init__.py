"""Every setting of a pretraining run, as frozen dataclasses. No torch here; ``recipes.py`` fills them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from vitembed.config.architecture import PRESETS, ModelConfig, ViTConfig, preset
from vitembed.config.finetuning import FinetuneConfig
from vitembed.config.learning import AUGMENT_PRESETS, SPREADS, AugmentConfig, ObjectiveConfig
from vitembed.config.ranges import out_of_range
from vitembed.config.running import AdaptConfig, DataConfig, MonitorConfig, OptimConfig, TrainerConfig
from vitembed.errors import ConfigError

__all__ = [
    "AUGMENT_PRESETS",
    "PRESETS",
    "SPREADS",
    "AdaptConfig",
    "AugmentConfig",
    "DataConfig",
    "FinetuneConfig",
    "ModelConfig",
    "MonitorConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "PretrainConfig",
    "TrainerConfig",
    "ViTConfig",
    "preset",
    "to_dict",
]


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
        if problems := out_of_range(self):
            raise ConfigError("; ".join(problems))
        if self.model.img_size == self.model.patch_size and self.objective.mask_ratio > 0:
            raise ConfigError(
                f"model.img_size {self.model.img_size} is one patch of model.patch_size {self.model.patch_size}: there "
                "is nothing to hide and to predict from the rest, so nothing would be learned; take a smaller "
                f"model.patch_size, such as {max(1, self.model.patch_size // 4)}"
            )
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
