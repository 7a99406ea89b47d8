"""The Lightning trainer that every run gets: its device, precision, files; how a finished state is taken up."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

from vitembed._torchvision import import_torchvision

import_torchvision()  # Lightning imports it by way of torchmetrics

import pytorch_lightning as pl  # noqa: E402 - after the line above on purpose
import torch  # noqa: E402
from lightning_fabric.utilities.exceptions import MisconfigurationException  # noqa: E402

from vitembed.config import TrainerConfig  # noqa: E402
from vitembed.errors import ConfigError  # noqa: E402
from vitembed.pretrain.keep.checkpoint_io import SafeCheckpointIO, read_checkpoint  # noqa: E402
from vitembed.pretrain.many.processes import Share  # noqa: E402
from vitembed.pretrain.many.strategies import cluster_of, strategy_of  # noqa: E402
from vitembed.pretrain.training_module import RunConfig, TrainingModule  # noqa: E402


def make_trainer(config: RunConfig, share: Share, *, run_dir: Path, files: SafeCheckpointIO) -> pl.Trainer:
    """A trainer that neither logs nor saves by itself: the run's callbacks do.

    Raises:
        ConfigError: If the settings do not work on this machine.
    """
    settings = config.trainer
    strategy = strategy_of(settings, share.world_size)
    try:
        return pl.Trainer(
            accelerator=settings.accelerator,
            devices=share.devices,
            num_nodes=share.num_nodes,
            strategy=strategy,
            plugins=[cluster_of(share.launcher), files],
            precision=precision(settings),  # type: ignore[arg-type]  # checked by Lightning, as below
            max_steps=-1,
            max_epochs=-1,
            # With FSDP Lightning refuses what ``nonfinite.py`` does anyway.
            gradient_clip_val=None if settings.strategy == "fsdp" else config.optim.grad_clip,
            default_root_dir=run_dir,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from error


def precision(config: TrainerConfig) -> str:
    """The precision asked for; auto is bf16 where the GPU has it, fp16 on older ones, fp32 elsewhere.

    Not bf16 on CPUs: measured at half the speed of fp32 for the small sizes that one trains there.
    """
    if config.precision != "auto":
        return config.precision
    if config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "16-mixed"
    return "32-true"


def restore_finished(module: TrainingModule, callbacks: Sequence[pl.Callback], path: Path) -> int | None:
    """If the checkpoint is that of the last step (the process died before the export), load its weights; its step.

    Args:
        module: Gets the weights.
        callbacks: Get their states.
        path: The checkpoint.
    """
    checkpoint = read_checkpoint(path)
    module.on_load_checkpoint(checkpoint)
    if module.clock.progress(checkpoint["global_step"]) < 1.0:
        return None
    module.load_state_dict(checkpoint["state_dict"])
    for callback in callbacks:
        if state := checkpoint["callbacks"].get(callback.state_key):
            callback.load_state_dict(state)
    return int(checkpoint["global_step"])


def module_device(trainer: pl.Trainer) -> str:
    """The device in words."""
    name = trainer.strategy.root_device.type
    return torch.cuda.get_device_name() if name == "cuda" else f"{name} ({torch.get_num_threads()} threads)"


def closing_seconds(budget: float) -> float:
    """Part of a time budget that is kept for the last pictures, the last save and the export."""
    return min(1.0 + 0.01 * budget, 20.0)


def quiet_lightning() -> None:
    """Keep hints about things that we chose on purpose off the user's screen; warnings of other libraries stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
