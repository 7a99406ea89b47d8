"""Every setting of a fine-tuning run: the whole encoder and a head, trained on labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitembed.config.learning import AugmentConfig
from vitembed.config.ranges import out_of_range
from vitembed.config.running import DataConfig, OptimConfig, TrainerConfig
from vitembed.errors import ConfigError

HEADS = ("mlp", "linear")
CLASS_WEIGHTS = ("none", "balanced")


@dataclass(frozen=True, kw_only=True)
class TunedModelConfig:
    """The classifier: the encoder that it starts from, and what is put on its cls vector."""

    img_size: int | None = None
    """Side of a training view in pixels; none: what the encoder's preprocessing gives. Positions are interpolated."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block."""
    head: str = "mlp"
    """mlp (one hidden layer) or linear, which starts as the linear probe."""
    head_hidden_dim: int | None = None
    """Width of the MLP's hidden layer; none: that of the encoder."""

    def __post_init__(self) -> None:
        problems = out_of_range(self, "model.")
        if self.head not in HEADS:
            problems.append(f"model.head must be one of {', '.join(HEADS)}, got {self.head!r}")
        if self.head == "linear" and self.head_hidden_dim is not None:
            problems.append("model.head_hidden_dim is for model.head=mlp: a linear head has no hidden layer")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class LabelsConfig:
    """How labels teach: mixing of images, smoothing, weights of classes."""

    mixup_alpha: float = 0.2
    """Mixup: images are blended by a share from Beta(alpha, alpha) (arXiv:1710.09412); 0: never."""
    cutmix_alpha: float = 1.0
    """CutMix: a box of another image is pasted in, 1 minus its area from Beta(alpha, alpha) (arXiv:1905.04899);
    0: never."""
    mix_prob: float = 0.5
    """How often an image is mixed with another one of its batch; where both ways are on, each half of the time."""
    smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    class_weight: str = "none"
    """none, or balanced: each class counts the same, however many images it has."""

    def __post_init__(self) -> None:
        problems = out_of_range(self, "labels.")
        if self.class_weight not in CLASS_WEIGHTS:
            problems.append(f"labels.class_weight must be one of {', '.join(CLASS_WEIGHTS)}, got {self.class_weight!r}")
        if problems:
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Which images are learned from, which choose the epoch, and which are tested: those of ``vitembed probe``."""

    test_share: float = 0.25
    """How much of each class is tested, where the data brings no split of its own."""
    group_copies: bool = False
    """Keep near duplicates on one side of the split."""
    validation_share: float = 0.1
    """Share of the training images that choose the epoch and are not learned from; 0: none, the last epoch is taken."""

    def __post_init__(self) -> None:
        if problems := out_of_range(self, "split."):
            raise ConfigError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class TuneOptimConfig(OptimConfig):
    """AdamW as in pretraining, with slower layers below and a head that learns first."""

    batch_size: int = 64
    """Images per step."""
    base_lr: float = 2e-3
    """Peak learning rate of the head at a batch of 256 images."""
    warmup_share: float = 0.1
    """Share of the run in which the learning rate rises linearly, and that of the encoder after the head's phase."""
    max_epochs: float = 30.0
    """Length of the run in passes over the images, when max_steps is not given."""
    encoder_lr_scale: float = 0.5
    """Learning rate of the encoder's end over that of the head; the blocks follow by ``layer_decay``."""
    layer_decay: float = 0.75
    """Learning rate of each block over that of the next one (BEiT, arXiv:2106.08254)."""
    head_warmup_share: float = 0.1
    """Share of the run (20 steps at least) in which only the head learns (LP-FT, arXiv:2202.10054); 0: none."""


# Settings of sections that fine-tuning shares with pretraining and has no use for.
_WITHOUT_USE = (
    *(("trainer", name) for name in ("num_nodes", "strategy", "num_pictures")),
    ("optim", "low_res_share"),
    ("data", "holdout"),
    ("data", "depth"),  # the model's holds
)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A whole fine-tuning run."""

    model: TunedModelConfig = field(default_factory=TunedModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    optim: TuneOptimConfig = field(default_factory=TuneOptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    parent: str | None = None
    """Fingerprint of the encoder that the run starts from; filled in, and checked if given."""
    time_budget_seconds: float | None = None
    """End in this time at the latest, the schedule planned for it; none: by steps or epochs."""
    seed: int = 0
    """Decides the split and all that is random. Same seed, same images, same machine: same weights."""

    def __post_init__(self) -> None:
        problems = out_of_range(self)
        for section, name in _WITHOUT_USE:
            given, default = (getattr(each, name) for each in (getattr(self, section), _SECTIONS[section]))
            if given != default:
                problems.append(f"{section}.{name} is for pretraining and does nothing here: leave it out")
        if self.trainer.devices not in ("auto", "1"):
            problems.append(
                f"trainer.devices={self.trainer.devices}: fine-tuning runs on one device, several would split batches "
                "that are small already; leave it out"
            )
        if self.trainer.compile == "on":
            problems.append("trainer.compile=on: fine-tuning does not compile its blocks; leave it out")
        if problems:
            raise ConfigError("; ".join(problems))

    @property
    def img_size(self) -> int:
        """Side in pixels of a training view.

        Raises:
            ConfigError: If it is not known yet, as no encoder was chosen.
        """
        if self.model.img_size is None:
            raise ConfigError("model.img_size is taken from the encoder: name one")
        return self.model.img_size

    @property
    def cache_size(self) -> int:
        """Side in pixels of the cached images."""
        return self.data.cache_size or (self.img_size * 3 + 1) // 2


_SECTIONS = {"trainer": TrainerConfig(), "optim": TuneOptimConfig(), "data": DataConfig()}
