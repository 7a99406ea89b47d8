"""Puts module, labelled batches and callbacks into the trainer that pretraining has, and runs it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitembed._torchvision import import_torchvision

import_torchvision()  # Lightning imports it by way of torchmetrics

import numpy as np  # noqa: E402 - after the line above on purpose
import numpy.typing as npt  # noqa: E402
import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402

from vitembed.config import FinetuneConfig  # noqa: E402
from vitembed.errors import ConfigError  # noqa: E402
from vitembed.images.cache import ImageCache  # noqa: E402
from vitembed.images.preprocess import Preprocess  # noqa: E402
from vitembed.model.vit import VisionTransformer  # noqa: E402
from vitembed.pretrain.classifier import ViTClassifier  # noqa: E402
from vitembed.pretrain.keep.checkpoint_io import SafeCheckpointIO  # noqa: E402
from vitembed.pretrain.keep.nonfinite import Guard  # noqa: E402
from vitembed.pretrain.keep.saving import Saver, SaveState  # noqa: E402
from vitembed.pretrain.many.agree import Agreement  # noqa: E402
from vitembed.pretrain.many.processes import Share  # noqa: E402
from vitembed.pretrain.memory import exhaustion_explained  # noqa: E402
from vitembed.pretrain.schedule import Clock, total_steps  # noqa: E402
from vitembed.pretrain.speed import matmul_precision  # noqa: E402
from vitembed.pretrain.supervised.head import StandardHead  # noqa: E402
from vitembed.pretrain.supervised.module import FinetuneModule, Network  # noqa: E402
from vitembed.pretrain.supervised.stream import LabelledStream  # noqa: E402
from vitembed.pretrain.supervised.validation import Validation  # noqa: E402
from vitembed.pretrain.trainer import (  # noqa: E402
    closing_seconds,
    make_trainer,
    module_device,
    quiet_lightning,
    restore_finished,
)
from vitembed.pretrain.watch.alarms import Alarm  # noqa: E402
from vitembed.pretrain.watch.metrics_file import Line  # noqa: E402
from vitembed.pretrain.watch.pool import Pool  # noqa: E402
from vitembed.pretrain.watch.progress import RunLog  # noqa: E402

log = logging.getLogger("vitembed")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learned from: decoded images with their classes."""

    cache: ImageCache
    targets: npt.NDArray[np.int64]
    """Class number of each row of the cache, [n]."""
    train: npt.NDArray[np.int64]
    """Rows that are learned from."""
    validation: npt.NDArray[np.int64]
    """Rows that choose the epoch; may be empty."""


@dataclass(frozen=True)
class FitOutcome:
    """How a fit ended."""

    classifier: ViTClassifier
    """The chosen epoch's, on the CPU, in evaluation mode."""
    num_steps: int
    seconds: float
    completed: bool
    looks: list[dict[str, int | float]]
    """All looks at the validation images."""
    chosen: dict[str, int | float] | None
    """The look whose weights were taken; none: the last state, unjudged."""


class _Silent:
    """No alarms: those of pretraining are about vectors that collapse."""

    def feed(self, line: Line) -> Sequence[Alarm]:
        return []


def fit(
    config: FinetuneConfig,
    lesson: Lesson,
    run_dir: Path,
    *,
    vit: VisionTransformer,
    head: StandardHead,
    preprocess: Preprocess,
    class_weights: torch.Tensor | None,
    checkpoint: Path | None,
    started: float,
    reserved: float,
    show: bool,
) -> FitOutcome:
    """Train until the end of the schedule, or until interrupted.

    Args:
        config: The run.
        lesson: Images and classes.
        run_dir: Where training state and metrics go.
        vit: The encoder to train.
        head: The head to train.
        preprocess: How the exported encoder sees images.
        class_weights: Of each class's part of the loss; none: all 1.
        checkpoint: Training state to go on from.
        started: ``time.monotonic`` at which the time budget began.
        reserved: Seconds of it that are needed after training.
        show: Whether to show progress on stderr.

    Raises:
        TrainingError: If the loss becomes non-finite, or the state cannot be written.
        KeyboardInterrupt: If interrupted twice; the state last saved is on disk.
    """
    quiet_lightning()
    pl.seed_everything(config.seed, verbose=False)
    clock = Clock(max_steps=None, budget_seconds=None)
    files = SafeCheckpointIO()
    trainer = make_trainer(config, Share(), run_dir=run_dir, files=files)
    every_minutes = config.trainer.save_every_minutes
    agreement = Agreement(clock, every_seconds=every_minutes * 60)
    saver = Saver(run_dir, every_minutes=every_minutes, files=files, agreement=agreement)
    stream = LabelledStream(
        lesson.cache,
        lesson.targets,
        batch_size=config.optim.batch_size,
        seed=config.seed,
        first_step=lambda: trainer.global_step,
        subset=lesson.train,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )
    clock.max_steps = total_steps(config.optim, stream.steps_per_epoch)
    module = FinetuneModule(
        config,
        Network(vit, head),
        preprocess=preprocess,
        class_weights=class_weights,
        effective_batch_size=stream.batch_size,
        clock=clock,
    )
    module.guard = Guard()
    validation = Validation(
        Pool(lesson.cache, lesson.validation, preprocess) if len(lesson.validation) else None,
        torch.from_numpy(lesson.targets[lesson.validation]),
        steps_per_epoch=stream.steps_per_epoch,
        max_steps=clock.max_steps,
    )
    run_log = RunLog(
        run_dir, validation, _Silent(), every_steps=config.trainer.log_every_steps, show=show, what="finetune"
    )
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set in Trainer's connector
    # In this order: the log shows what was seen, and is written before the state is saved.
    callbacks.extend([validation, saver, run_log, SaveState(saver)])
    log.info(
        "training on %s in %s, %d images per step, %d steps",
        module_device(trainer), trainer.precision, stream.batch_size, clock.max_steps,
    )  # fmt: skip
    if config.time_budget_seconds is not None:
        saver.planned_at = time.monotonic()
        spent = saver.planned_at - started
        clock.budget_seconds = (
            config.time_budget_seconds - spent - reserved - closing_seconds(config.time_budget_seconds)
        )
        if clock.budget_seconds <= 0:
            raise ConfigError(
                f"a time budget of {config.time_budget_seconds:.0f} s is too short: embedding and decoding the images "
                f"took {spent:.0f} s already, testing takes about {reserved:.0f} s more"
            )
    if checkpoint and (num_steps := restore_finished(module, [validation], checkpoint)):
        log.info("training had ended already: the model is exported")
        return _outcome(module, validation, num_steps, completed=True)
    what = f"vit of {vit.config.depth} blocks of width {vit.config.embed_dim}, {config.img_size} px"
    try:
        with (
            exhaustion_explained(config.optim.batch_size, what, "a smaller model.img_size"),
            matmul_precision(trainer),
        ):
            trainer.fit(module, stream, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's answer to a Ctrl-C that came before ours was in place
        raise KeyboardInterrupt from None
    return _outcome(module, validation, trainer.global_step, completed=clock.progress(trainer.global_step) >= 1.0)


def _outcome(module: FinetuneModule, validation: Validation, num_steps: int, *, completed: bool) -> FitOutcome:
    network = module.export_network().cpu()
    chosen = validation.chosen
    if completed and chosen is not None and chosen is validation.best and validation.weights is not None:
        network.load_state_dict(validation.weights)
    return FitOutcome(
        classifier=ViTClassifier.of(network.vit, network.head.folded()).eval(),
        num_steps=num_steps,
        seconds=module.clock.elapsed(),
        completed=completed,
        looks=validation.looks,
        chosen=chosen,
    )
