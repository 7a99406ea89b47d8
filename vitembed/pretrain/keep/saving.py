"""A run that is interrupted loses nothing: signals end it after the current step, state is saved every few minutes."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from vitembed.errors import DataError, FailedElsewhere, TrainingError, VitembedError, printable
from vitembed.pretrain.keep.checkpoint_io import SafeCheckpointIO
from vitembed.pretrain.keep.disk import is_disk_full
from vitembed.pretrain.keep.files import CHECKPOINT_FILE
from vitembed.pretrain.many.agree import Agreement, Wishes
from vitembed.pretrain.training_module import TrainingModule

log = logging.getLogger("vitembed")

# SIGUSR1 is what SLURM sends before a job's time is up, where asked to (--signal=USR1@120); Windows has none.
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class Saver(pl.Callback):
    """Ends the run on SIGINT, SIGTERM, SIGUSR1 or when its time is up, and says when the state is to be saved.

    Belongs before the log, which writes a last line when the run ends; ``SaveState``, after it, does the saving. A
    second Ctrl-C ends at once, at the state last saved. With several processes all save and stop at the same step,
    whichever of them got the signal.

    Args:
        directory: Run folder.
        every_minutes: Minutes between saves.
        files: What the trainer writes checkpoints with.
        agreement: Between the processes.
    """

    def __init__(self, directory: Path, *, every_minutes: float, files: SafeCheckpointIO, agreement: Agreement) -> None:
        self.path = directory / CHECKPOINT_FILE
        self.every_seconds = every_minutes * 60
        self.files = files
        self.agreement = agreement
        self.planned_at = time.monotonic()
        """When the time budget was planned; what passes until training starts is taken off it."""
        self.saved_at = 0.0
        self.interrupted = False
        self.wanted = False
        """Whether the state is to be saved after this step."""
        self.old_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take over the signals and start the clock."""
        assert isinstance(module, TrainingModule)
        if module.clock.budget_seconds is not None:  # other processes had to be started, and a state to be read
            waited = time.monotonic() - self.planned_at
            module.clock.budget_seconds = max(1.0, module.clock.budget_seconds - waited)
        module.clock.start()
        self.saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in _SIGNALS:
                self.old_handlers[number] = signal.getsignal(number)
                signal.signal(number, self.on_signal)
        self.agreement.start(trainer.global_step)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask for the end after this step; give up waiting when asked twice."""
        if self.interrupted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Ask for a save when it is time; stop when asked to, or when the run is done."""
        assert isinstance(module, TrainingModule)
        step = trainer.global_step
        done = module.shared_progress(step) >= 1.0  # the same on every process
        if not (done or self.agreement.due(step)):
            return
        late = time.monotonic() - self.saved_at >= self.every_seconds
        wishes = Wishes(stop=self.interrupted, save=late)
        if trainer.world_size > 1:
            wishes.bad_step = module.guard.first_bad_step()
        wishes = self.agreement.agree(wishes, step)
        if wishes.bad_step >= 0:
            raise module.guard.error(module, wishes.bad_step)
        self.interrupted |= wishes.stop
        if wishes.stop or done:
            trainer.should_stop = True
        self.wanted = wishes.stop or done or wishes.save

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write the state; one with a broken loss is never saved.

        Raises:
            TrainingError: If the disk is full or cannot be written; the last good state is still there.
        """
        module.check_finite()
        trainer.save_checkpoint(self.path)
        error, self.files.error = self.files.error, None
        failed = self.agreement.agree(Wishes(failed=error is not None), trainer.global_step).failed
        if failed:
            raise _explained(error, self.path)
        self.saved_at = time.monotonic()
        self.wanted = False

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Give the signals back; on SLURM say how the job goes on."""
        self.restore_signals()
        job = os.environ.get("SLURM_JOB_ID")
        if self.interrupted and job and trainer.is_global_zero:
            log.info("saved; `scontrol requeue %s` lets this job go on from here, as does the same command", job)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back; where an image could not be read any more, save what was learned so far."""
        self.restore_signals()
        if isinstance(exception, DataError) and trainer.world_size == 1 and trainer.global_step > 0:
            assert isinstance(module, TrainingModule)
            self.save(trainer, module)

    def restore_signals(self) -> None:
        """Put the handlers back that were there before the run."""
        for number, handler in self.old_handlers.items():
            signal.signal(number, handler)
        self.old_handlers.clear()


class SaveState(pl.Callback):
    """Saves when ``Saver`` says so; after the log, so that no line of ``metrics.jsonl`` is missing before the state."""

    def __init__(self, saver: Saver) -> None:
        self.saver = saver

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Save if it is time."""
        assert isinstance(module, TrainingModule)
        if self.saver.wanted:
            self.saver.save(trainer, module)


def _explained(error: BaseException | None, path: Path) -> BaseException:
    """What to raise when a state could not be written."""
    if error is None:
        return FailedElsewhere("the state could not be written")
    if isinstance(error, VitembedError) or not isinstance(error, (OSError, RuntimeError)):
        return error
    kept = "the last good one is kept" if path.is_file() else "there is none yet"
    if is_disk_full(error):
        problem = TrainingError(
            f"the disk is full: the training state cannot be written to {printable(path.parent)} ({kept}). "
            "Make room and repeat the command: it goes on from the last state"
        )
    elif isinstance(error, OSError):
        problem = TrainingError(
            f"the training state cannot be written to {printable(path.parent)}: {error.strerror or error} ({kept})"
        )
    else:
        return error
    problem.__cause__ = error
    return problem
