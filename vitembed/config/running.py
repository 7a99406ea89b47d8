"""How a run goes: data, optimiser, devices, what is watched, and how it goes on from a trained model."""

from __future__ import annotations

from dataclasses import dataclass

from vitembed.config.ranges import out_of_range
from vitembed.errors import ConfigError

DEPTHS = ("auto", "full", *map(str, range(8, 17)), "minmax", "percentile")
"""What ``data.depth`` may be."""
_MOST_DEVICES = 1024


def _switch(word: str) -> str:
    """YAML takes a bare on or off for true or false, which arrive here as text."""
    return {"True": "on", "False": "off"}.get(word, word)


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
    depth: str = "auto"
    """What is white in images of more than 8 bits per channel: auto (what the file states, else the least of 8, 12, 14
    and 16 bits that holds its brightest pixel), 8 to 16 (bits), full (16 bits), minmax or percentile (each image
    stretched). The model keeps it for every image that it embeds."""
    tolerant: bool = False
    """Learn also from what is there of truncated images."""
    holdout: int = 256
    """Images used for the monitors (they are trained on as well: there are no labels to leak)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", _switch(self.cache))
        problems = out_of_range(self, "data.")
        if self.cache not in ("auto", "ram", "disk", "off"):
            problems.append(f"data.cache must be auto, ram, disk or off, got {self.cache!r}")
        if self.depth not in DEPTHS:
            problems.append(f"data.depth must be one of {', '.join(DEPTHS)}, got {self.depth!r}")
        if problems:
            raise ConfigError("; ".join(problems))


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
        problems = out_of_range(self, "optim.")
        if self.lr_scaling not in ("linear", "sqrt", "none"):
            problems.append(f"optim.lr_scaling must be linear, sqrt or none, got {self.lr_scaling!r}")
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
        problems = out_of_range(self, "trainer.")
        if self.devices != "auto" and not (
            self.devices.isdecimal() and len(self.devices) < 9 and 0 < int(self.devices) <= _MOST_DEVICES
        ):
            problems.append(f"trainer.devices must be auto or a number in 1..{_MOST_DEVICES}, got {self.devices!r}")
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
        problems = out_of_range(self, "monitor.")
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
        problems = out_of_range(self, "adapt.")
        if self.mode not in ("full", "lora", "last_blocks"):
            problems.append(f"adapt.mode must be full, lora or last_blocks, got {self.mode!r}")
        if problems:
            raise ConfigError("; ".join(problems))
