"""Puts module, data and callbacks into a Lightning trainer and runs it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitembed._torchvision import import_torchvision

import_torchvision()  # Lightning imports it by way of torchmetrics

import pytorch_lightning as pl  # noqa: E402 - after the line above on purpose

from vitembed.config import PretrainConfig  # noqa: E402
from vitembed.errors import ConfigError  # noqa: E402
from vitembed.images.cache import ImageCache  # noqa: E402
from vitembed.images.preprocess import Preprocess  # noqa: E402
from vitembed.model.checkpoint import SavedModel  # noqa: E402
from vitembed.model.vit import VisionTransformer  # noqa: E402
from vitembed.pretrain.batches import BatchStream  # noqa: E402
from vitembed.pretrain.finish import whiten_share  # noqa: E402
from vitembed.pretrain.keep.checkpoint_io import SafeCheckpointIO, read_checkpoint  # noqa: E402
from vitembed.pretrain.keep.nonfinite import Guard  # noqa: E402
from vitembed.pretrain.keep.saving import Saver, SaveState  # noqa: E402
from vitembed.pretrain.many.agree import Agreement, SharedClock  # noqa: E402
from vitembed.pretrain.many.processes import Share  # noqa: E402
from vitembed.pretrain.memory import memory_explained  # noqa: E402
from vitembed.pretrain.module import PretrainModule  # noqa: E402
from vitembed.pretrain.onward.adapt import Adaptation, Adapting  # noqa: E402
from vitembed.pretrain.onward.frozen import Decision, FrozenGuard, conclude, parentage  # noqa: E402
from vitembed.pretrain.schedule import Clock, total_steps  # noqa: E402
from vitembed.pretrain.speed import matmul_precision, prepare_speed  # noqa: E402
from vitembed.pretrain.trainer import (  # noqa: E402
    closing_seconds,
    make_trainer,
    module_device,
    quiet_lightning,
    restore_finished,
)
from vitembed.pretrain.watch.alarms import Alarms  # noqa: E402
from vitembed.pretrain.watch.facts import RunFacts  # noqa: E402
from vitembed.pretrain.watch.metrics_file import last_metrics, numbers  # noqa: E402
from vitembed.pretrain.watch.monitors import Monitors  # noqa: E402
from vitembed.pretrain.watch.progress import RunLog  # noqa: E402
from vitembed.pretrain.watch.report import Report  # noqa: E402

log = logging.getLogger("vitembed")


@dataclass(frozen=True)
class FitOutcome:
    """How a fit ended."""

    vit: VisionTransformer
    num_steps: int
    seconds: float
    completed: bool
    metrics: dict[str, int | float]
    decision: Decision | None = None
    """Of a run that went on from a model: what is kept."""
    monitor: dict[str, Any] = field(default_factory=dict)
    """All points looked at and the best of them, as JSON."""
    standing: dict[str, Any] = field(default_factory=dict)
    """Where ``vit`` stands among them, for its provenance."""


def fit(
    config: PretrainConfig,
    cache: ImageCache,
    run_dir: Path,
    *,
    checkpoint: Path | None,
    started: float,
    show: bool,
    parent: SavedModel | None = None,
    share: Share = Share(),
    facts: RunFacts = RunFacts(),
) -> FitOutcome:
    """Train until the end of the schedule, or until interrupted.

    Args:
        config: The run.
        cache: Decoded images.
        run_dir: Where checkpoint, metrics and pictures go.
        checkpoint: Training state to go on from.
        started: ``time.monotonic`` at which the time budget began.
        show: Whether to show progress on stderr.
        parent: The model to go on from; none: from nothing.
        share: The part of this process in a run of several.
        facts: What the report says of the run, and labels to judge by.

    Raises:
        TrainingError: If the loss becomes non-finite, or the state cannot be written.
        KeyboardInterrupt: If interrupted twice; the state last saved is on disk.
    """
    quiet_lightning()
    pl.seed_everything(config.seed, verbose=False)
    clock = (SharedClock if share.world_size > 1 else Clock)(max_steps=None, budget_seconds=None)
    files = SafeCheckpointIO()
    trainer = make_trainer(config, share, run_dir=run_dir, files=files)
    every_minutes = config.trainer.save_every_minutes
    agreement = Agreement(clock, every_seconds=every_minutes * 60)
    saver = Saver(run_dir, every_minutes=every_minutes, files=files, agreement=agreement)
    stream = BatchStream(
        cache,
        batch_size=config.optim.batch_size,
        seed=config.seed,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        first_step=lambda: trainer.global_step,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )
    if config.time_budget_seconds is None or config.optim.max_steps is not None:
        clock.max_steps = total_steps(config.optim, stream.steps_per_epoch)
    adaptation = Adaptation(config, parent) if parent is not None else None
    module = PretrainModule(
        config,
        VisionTransformer(config.model.vit()) if adaptation is None else adaptation.start(),
        effective_batch_size=stream.batch_size * trainer.world_size,
        clock=clock,
        adaptation=adaptation,
    )
    module.guard = Guard(run_dir, stream.batch)
    prepare_speed(module, trainer, batch_size=stream.batch_size, max_steps=clock.max_steps)
    monitors = Monitors(
        config,
        cache,
        run_dir,
        preprocess=adaptation.preprocess
        if adaptation
        else Preprocess(img_size=config.model.img_size, depth=config.data.depth),
        labelled=facts.labelled,
        whiten=whiten_share(config, parent),
        kin=None if adaptation is None else adaptation.kin,
        facts=facts.provenance if parent is None else {**facts.provenance, **parentage(parent)},
    )
    alarms = Alarms(monitors.context())
    run_log = RunLog(
        run_dir,
        monitors,
        alarms,
        every_steps=config.trainer.log_every_steps,
        show=show,
        tensorboard=config.monitor.tensorboard,
    )
    report = Report(config, run_dir, cache, monitors, alarms, facts, device=module_device(trainer))
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set in Trainer's connector
    guards = [Adapting(config), FrozenGuard(monitors.best, config.adapt, run_dir)] if adaptation is not None else []
    # In this order: the log shows what the others did, and is written before the state is saved.
    callbacks.extend([monitors, *guards, saver, run_log, SaveState(saver), report])
    if share.rank == 0:
        images = f"{stream.batch_size * trainer.world_size} images per step"
        if trainer.world_size > 1:
            images += f" ({stream.batch_size} on each of {trainer.world_size} devices)"
        log.info("training on %s in %s, %s", module_device(trainer), trainer.precision, images)
    if share.plan is not None:
        clock.budget_seconds = share.plan["budget_seconds"]
    elif config.time_budget_seconds is not None:
        saver.planned_at = time.monotonic()
        spent = saver.planned_at - started
        clock.budget_seconds = config.time_budget_seconds - spent - closing_seconds(config.time_budget_seconds)
        if clock.budget_seconds <= 0:
            raise ConfigError(
                f"a time budget of {config.time_budget_seconds:.0f} s is too short: "
                f"finding and decoding the images and starting up took {spent:.0f} s already"
            )
    if share.plan is None and checkpoint and (num_steps := restore_finished(module, [monitors], checkpoint)):
        log.info("training had ended already: the model is exported")
        report.finish(trainer)
        vit, decision = conclude(module, monitors.best, completed=True)
        vit, told = monitors.conclude(vit, decision.kept if decision is not None else None)
        vit = monitors.finished(vit, trainer.strategy.root_device)
        return FitOutcome(vit, num_steps, clock.elapsed(), True, last_metrics(run_dir), decision, *told)
    try:
        with (
            share.others({"budget_seconds": clock.budget_seconds}),
            memory_explained(config),
            matmul_precision(trainer),
        ):
            trainer.fit(module, stream, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to a Ctrl-C that came before ours was in place
        raise KeyboardInterrupt from None
    num_steps, completed = trainer.global_step, clock.progress(trainer.global_step) >= 1.0
    if share.rank > 0:  # what is left to do is for the first process
        return FitOutcome(module.vit, num_steps, clock.elapsed(), completed, {})
    if config.trainer.strategy == "fsdp":  # the weights in memory are a part; the saved ones are whole
        module = PretrainModule(
            config,
            VisionTransformer(config.model.vit()) if adaptation is None else adaptation.start(),
            effective_batch_size=module.effective_batch_size,
            clock=clock,
            adaptation=adaptation,
        )
        module.load_state_dict(read_checkpoint(saver.path)["state_dict"])
    vit, decision = conclude(module, monitors.best, completed=completed)
    vit, (seen, standing) = monitors.conclude(vit, decision.kept if decision is not None else None)
    if completed:
        vit = monitors.finished(vit, trainer.strategy.root_device)
    return FitOutcome(
        vit=vit,
        num_steps=num_steps,
        seconds=clock.elapsed(),
        completed=completed,
        metrics=numbers(run_log.latest),
        decision=decision,
        monitor=seen,
        standing=standing,
    )
