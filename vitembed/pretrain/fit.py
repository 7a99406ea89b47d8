"""Puts module, data and callbacks into a Lightning trainer and runs it."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from vitembed._torchvision import import_torchvision

import_torchvision()  # Lightning imports it by way of torchmetrics

import pytorch_lightning as pl  # noqa: E402 - after the line above on purpose
import torch  # noqa: E402
from lightning_fabric.utilities.exceptions import MisconfigurationException  # noqa: E402

from vitembed.config import PretrainConfig, TrainerConfig  # noqa: E402
from vitembed.errors import ConfigError  # noqa: E402
from vitembed.images.cache import ImageCache  # noqa: E402
from vitembed.model.vit import VisionTransformer  # noqa: E402
from vitembed.pretrain.batches import BatchStream  # noqa: E402
from vitembed.pretrain.files import CHECKPOINT_FILE  # noqa: E402
from vitembed.pretrain.module import PretrainModule  # noqa: E402
from vitembed.pretrain.monitors import Monitors  # noqa: E402
from vitembed.pretrain.progress import RunLog, last_metrics  # noqa: E402
from vitembed.pretrain.saving import Saver  # noqa: E402
from vitembed.pretrain.schedule import Clock, scaled_lr, total_steps  # noqa: E402

log = logging.getLogger("vitembed")


@dataclass(frozen=True)
class FitOutcome:
    """How a fit ended."""

    vit: VisionTransformer
    num_steps: int
    seconds: float
    completed: bool
    metrics: dict[str, int | float]


def fit(
    config: PretrainConfig, cache: ImageCache, run_dir: Path, *, resume: bool, started: float, show: bool
) -> FitOutcome:
    """Train until the end of the schedule, or until interrupted.

    Args:
        config: The run.
        cache: Decoded images.
        run_dir: Where checkpoint, metrics and pictures go.
        resume: Go on from the checkpoint in ``run_dir``.
        started: ``time.monotonic`` at which the time budget began.
        show: Whether to show progress on stderr.

    Raises:
        TrainingError: If the loss becomes non-finite.
        KeyboardInterrupt: If interrupted twice; the state last saved is on disk.
    """
    _quiet_lightning()
    pl.seed_everything(config.seed, verbose=False)
    clock = Clock(max_steps=None, budget_seconds=None)
    saver = Saver(run_dir, every_minutes=config.trainer.save_every_minutes)
    trainer = _trainer(config.trainer, grad_clip=config.optim.grad_clip, run_dir=run_dir)
    stream = BatchStream(
        cache,
        batch_size=config.optim.batch_size,
        seed=config.seed,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        first_step=lambda: trainer.global_step,
    )
    if config.time_budget_seconds is None or config.optim.max_steps is not None:
        clock.max_steps = total_steps(config.optim, stream.steps_per_epoch)
    module = PretrainModule(
        config,
        VisionTransformer(config.model.vit()),
        peak_lr=scaled_lr(config.optim, stream.batch_size * trainer.world_size),
        clock=clock,
    )
    monitors = Monitors(stream, run_dir, num_times=config.trainer.num_pictures, holdout=config.data.holdout)
    run_log = RunLog(run_dir, monitors, every_steps=config.trainer.log_every_steps, show=show)
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set in Trainer's connector
    callbacks.extend([monitors, saver, run_log])  # in this order: the log shows what the others did
    log.info("training on %s in %s, %d images per step", module_device(trainer), trainer.precision, stream.batch_size)
    if config.time_budget_seconds is not None:
        spent = time.monotonic() - started
        clock.budget_seconds = config.time_budget_seconds - spent - _closing_seconds(config.time_budget_seconds)
        if clock.budget_seconds <= 0:
            raise ConfigError(
                f"a time budget of {config.time_budget_seconds:.0f} s is too short: "
                f"finding and decoding the images and starting up took {spent:.0f} s already"
            )
    if resume and (num_steps := _restore_finished(module, run_dir)):
        log.info("training had ended already: the model is exported")
        return FitOutcome(module.vit.eval(), num_steps, clock.elapsed(), True, last_metrics(run_dir))
    try:
        trainer.fit(module, stream, ckpt_path=run_dir / CHECKPOINT_FILE if resume else None, weights_only=True)
    except SystemExit:  # Lightning's answer to a Ctrl-C that came before ours was in place
        raise KeyboardInterrupt from None
    return FitOutcome(
        vit=module.vit.cpu().eval(),
        num_steps=trainer.global_step,
        seconds=clock.elapsed(),
        completed=clock.progress(trainer.global_step) >= 1.0,
        metrics=run_log.latest,
    )


def _restore_finished(module: PretrainModule, run_dir: Path) -> int | None:
    """If the checkpoint is that of the last step (the process died before the export), load its weights; its step."""
    checkpoint = torch.load(run_dir / CHECKPOINT_FILE, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    if module.clock.progress(checkpoint["global_step"]) < 1.0:
        return None
    module.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["global_step"])


def module_device(trainer: pl.Trainer) -> str:
    """The device in words."""
    name = trainer.strategy.root_device.type
    return torch.cuda.get_device_name() if name == "cuda" else f"{name} ({torch.get_num_threads()} threads)"


def _closing_seconds(budget: float) -> float:
    """Part of a time budget that is kept for the last pictures, the last save and the export."""
    return min(1.0 + 0.01 * budget, 20.0)


def _trainer(config: TrainerConfig, *, grad_clip: float, run_dir: Path) -> pl.Trainer:
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision=precision(config),  # type: ignore[arg-type]  # checked by Lightning, as below
            max_steps=-1,
            max_epochs=-1,
            gradient_clip_val=grad_clip,
            default_root_dir=run_dir,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, MisconfigurationException) as error:
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


def _quiet_lightning() -> None:
    """Keep hints about things that we chose on purpose off the user's screen; warnings of other libraries stay."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*GPU available but not used.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
