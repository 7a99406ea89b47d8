"""A run that is interrupted loses nothing: signals end it after the current step, state is saved every few minutes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from vitembed.atomic import fsync_directory
from vitembed.pretrain.files import CHECKPOINT_FILE
from vitembed.pretrain.module import PretrainModule


class Saver(pl.Callback):
    """Saves the training state, ends the run on SIGINT, SIGTERM or when its time is up.

    A second Ctrl-C ends at once, at the state last saved.

    Args:
        directory: Run folder.
        every_minutes: Minutes between saves.
    """

    def __init__(self, directory: Path, *, every_minutes: float) -> None:
        self.path = directory / CHECKPOINT_FILE
        self.every_seconds = every_minutes * 60
        self.saved_at = 0.0
        self.interrupted = False
        self.old_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take over the signals and start the clock."""
        assert isinstance(module, PretrainModule)
        module.clock.start()
        self.saved_at = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM):
            self.old_handlers[number] = signal.getsignal(number)
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask for the end after this step; give up waiting when asked twice."""
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Save when it is time; stop when asked to, or when the run is done."""
        assert isinstance(module, PretrainModule)
        interrupted = self.interrupted
        if trainer.world_size > 1:  # every process stops at the same step
            interrupted = bool(trainer.strategy.reduce_boolean_decision(interrupted, all=False))
        done = module.shared_progress(trainer.global_step) >= 1.0
        if interrupted or done:
            trainer.should_stop = True
        if interrupted or done or time.monotonic() - self.saved_at >= self.every_seconds:
            self.save(trainer, module)

    def save(self, trainer: pl.Trainer, module: PretrainModule) -> None:
        """Write the state beside its place and move it there whole; a state with a broken loss is never saved."""
        module.check_finite()
        fresh = self.path.with_name(f"{self.path.name}.new")
        trainer.save_checkpoint(fresh)
        if trainer.is_global_zero:
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.replace(self.path)
            fsync_directory(self.path.parent)
        self.saved_at = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Give the signals back."""
        self.restore_signals()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.restore_signals()

    def restore_signals(self) -> None:
        """Put the handlers back that were there before the run."""
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)
        self.old_handlers.clear()
