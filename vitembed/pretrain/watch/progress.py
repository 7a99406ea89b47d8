"""What a run says while it goes: a bar on a terminal, a line now and then elsewhere, ``metrics.jsonl`` always."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vitembed.pretrain.training_module import TrainingModule
from vitembed.pretrain.watch.alarms import Alarm
from vitembed.pretrain.watch.event_files import EventFiles
from vitembed.pretrain.watch.gradient import GradientWatch
from vitembed.pretrain.watch.metrics_file import Line, append_metrics, forget_after

log = logging.getLogger("vitembed")
_LINE_SECONDS = 30.0
_SLOW_SECONDS = 5.0  # where steps are slow, a person still sees that something moves


@runtime_checkable
class Watcher(Protocol):
    """What looks at the encoder now and then, such as ``Monitors``."""

    seconds: float
    """Time that looking took, in this process."""

    @property
    def latest(self) -> Mapping[str, int | float]:
        """The newest look: ``step``, ``progress`` and scores; empty before there is one."""


@runtime_checkable
class Listener(Protocol):
    """What hears every line of a run, such as ``Alarms``."""

    def feed(self, line: Line) -> Sequence[Alarm]:
        """The alarms that begin with this line."""


class RunLog(pl.Callback):
    """Measures the run, shows it, and sounds alarms.

    Args:
        directory: Run folder.
        monitors: Whose newest scores are written too; what they take does not count as time of the run's steps.
        alarms: Rules that every line is held against.
        every_steps: Steps between lines of ``metrics.jsonl``; there is one at every point looked at, too.
        show: Whether to draw a progress bar (on a terminal) or log lines (elsewhere).
        tensorboard: Whether to write event files.
        what: What the run does, in a word.
    """

    def __init__(
        self,
        directory: Path,
        monitors: Watcher,
        alarms: Listener,
        *,
        every_steps: int,
        show: bool,
        tensorboard: bool = False,
        what: str = "pretrain",
    ) -> None:
        self.directory = directory
        self.monitors = monitors
        self.alarms = alarms
        self.every_steps = every_steps
        self.console = Console(stderr=True)
        self.show = show
        self.tensorboard = tensorboard
        self.what = what
        self.events: EventFiles | None = None
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.gradient = GradientWatch()
        self.latest: Line = {}
        """The newest line."""
        self.window_images = 0
        self.window_wait = 0.0
        self.window_start = self.step_end = self.line_at = 0.0
        self.looking = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start to measure."""
        if self.show and trainer.is_global_zero and self.console.is_terminal:
            self.bar = Progress(
                TextColumn(self.what),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
            )
            self.task = self.bar.add_task(self.what, total=1.0, status="")
            self.bar.start()
        if trainer.is_global_zero:
            for line in forget_after(self.directory, trainer.global_step):
                if "loss" not in line:  # the frozen model's scores, before any training
                    continue
                self.alarms.feed(line)  # they sounded then: what began before the interruption is not told again
            if self.tensorboard:
                self.events = EventFiles(self.directory, trainer.global_step)
        self.window_start = self.step_end = self.line_at = time.perf_counter()
        self.looking = self.monitors.seconds

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Time since the last step was spent waiting for images, unless the monitors took it."""
        self.leave_out_looking()
        self.window_wait += time.perf_counter() - self.step_end

    def leave_out_looking(self) -> None:
        """Move the clocks on by what the monitors took since the last call."""
        took = self.monitors.seconds - self.looking
        self.looking = self.monitors.seconds
        self.window_start += took
        self.step_end += took

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Count, and every so often write and show."""
        assert isinstance(module, TrainingModule)
        assert isinstance(batch, dict)
        self.leave_out_looking()
        self.gradient.note(module.guard.norm)
        self.window_images += len(batch["images"]) * trainer.world_size
        slow = time.perf_counter() - self.window_start > _SLOW_SECONDS
        looked = self.monitors.latest.get("step") == trainer.global_step
        if trainer.global_step % self.every_steps == 0 or slow or looked or trainer.should_stop:
            module.check_finite()
            if trainer.is_global_zero:
                self.write(trainer, module)
        self.step_end = time.perf_counter()

    def write(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """One line of ``metrics.jsonl`` and a fresh status."""
        now = time.perf_counter()
        seconds = max(now - self.window_start, 1e-9)
        progress = module.clock.progress(trainer.global_step)
        elapsed = module.clock.elapsed()
        output = module.last_output
        assert output is not None
        # A continued run has groups with rates of their own; the heads' is the one that was set.
        lr = max(group["lr"] for group in trainer.optimizers[0].param_groups)
        scores = {name: value for name, value in self.monitors.latest.items() if name not in ("step", "progress")}
        line: Line = {
            "step": trainer.global_step,
            "progress": round(progress, 5),
            "elapsed_seconds": round(elapsed, 2),
            "images_per_second": round(self.window_images / seconds, 1),
            "data_wait_share": round(min(1.0, self.window_wait / seconds), 4),
            "lr": lr,
            **self.gradient.read(module.config.optim.grad_clip),
            "loss": float(output.loss.detach()),
            **{name: float(term) for name, term in output.terms.items()},
        }
        if self.monitors.latest:
            line |= {"monitor_step": self.monitors.latest["step"], **scores}
        if alarms := self.alarms.feed(line):
            line["alarms"] = [asdict(alarm) for alarm in alarms]
            for alarm in alarms:
                log.warning("alarm %s at step %d: %s", alarm.code, alarm.step, alarm.message)
        self.latest = line
        append_metrics(self.directory, line)
        if self.events is not None:
            self.events.write(line)
        remaining = elapsed * (1 - progress) / progress if progress > 0 else 0.0
        status = (
            f"{line['images_per_second']:.0f} images/s, data wait {line['data_wait_share']:.0%}, "
            + ", ".join(f"{name} {float(term):.3f}" for name, term in output.terms.items())
            + f", {words_for(remaining)} left"
        )
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=progress, status=status)
        elif self.show and (now - self.line_at > _LINE_SECONDS or trainer.should_stop):
            log.info("%s %3.0f %%, step %d: %s", self.what, progress * 100, trainer.global_step, status)
            self.line_at = now
        self.window_start, self.window_images, self.window_wait = now, 0, 0.0

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the bar as it stands."""
        self.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the bar as it stands."""
        self.close()

    def close(self) -> None:
        """Stop drawing, finish the event files."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if self.events is not None:
            self.events.close()
            self.events = None


def words_for(seconds: float) -> str:
    """A length of time as people say it: ``40 s``, ``12 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
