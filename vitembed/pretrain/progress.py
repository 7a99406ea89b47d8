"""What a run says while it goes: a bar on a terminal, a line now and then elsewhere, ``metrics.jsonl`` always."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vitembed.atomic import atomic_path
from vitembed.pretrain.files import METRICS_FILE
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.monitors import Monitors

log = logging.getLogger("vitembed")
_LINE_SECONDS = 30.0
_SLOW_SECONDS = 5.0  # where steps are slow, a person still sees that something moves


class RunLog(pl.Callback):
    """Measures the run and shows it.

    Args:
        directory: Run folder.
        monitors: Whose newest scores are written too.
        every_steps: Steps between lines of ``metrics.jsonl``.
        show: Whether to draw a progress bar (on a terminal) or log lines (elsewhere).
    """

    def __init__(self, directory: Path, monitors: Monitors, *, every_steps: int, show: bool) -> None:
        self.path = directory / METRICS_FILE
        self.monitors = monitors
        self.every_steps = every_steps
        self.console = Console(stderr=True)
        self.show = show
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.latest: dict[str, int | float] = {}
        """The newest line."""
        self.window_images = 0
        self.window_wait = 0.0
        self.window_start = self.step_end = self.line_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start to measure."""
        if self.show and trainer.is_global_zero and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("pretrain"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[status]}"),
                console=self.console,
            )
            self.task = self.bar.add_task("pretrain", total=1.0, status="")
            self.bar.start()
        if trainer.is_global_zero:
            self.forget_after(trainer.global_step)
        self.window_start = self.step_end = self.line_at = time.perf_counter()

    def forget_after(self, step: int) -> None:
        """Drop lines of steps that were lost with a killed process and come again."""
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        with atomic_path(self.path) as path:
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Time since the last step was spent waiting for images."""
        self.window_wait += time.perf_counter() - self.step_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Count, and every so often write and show."""
        assert isinstance(module, PretrainModule)
        assert isinstance(batch, dict)
        self.window_images += len(batch["images"]) * trainer.world_size
        slow = time.perf_counter() - self.window_start > _SLOW_SECONDS
        if trainer.global_step % self.every_steps == 0 or slow or trainer.should_stop:
            module.check_finite()
            if trainer.is_global_zero:
                self.write(trainer, module)
        self.step_end = time.perf_counter()

    def write(self, trainer: pl.Trainer, module: PretrainModule) -> None:
        """One line of ``metrics.jsonl`` and a fresh status."""
        now = time.perf_counter()
        seconds = max(now - self.window_start, 1e-9)
        progress = module.clock.progress(trainer.global_step)
        elapsed = module.clock.elapsed()
        output = module.last_output
        assert output is not None
        optimizer = trainer.optimizers[0]
        self.latest = {
            "step": trainer.global_step,
            "progress": round(progress, 5),
            "elapsed_seconds": round(elapsed, 2),
            "images_per_second": round(self.window_images / seconds, 1),
            "data_wait_share": round(min(1.0, self.window_wait / seconds), 4),
            "lr": optimizer.param_groups[0]["lr"],
            "loss": float(output.loss.detach()),
            **{name: float(term) for name, term in output.terms.items()},
            **self.monitors.latest,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.latest) + "\n")
        remaining = elapsed * (1 - progress) / progress if progress > 0 else 0.0
        status = (
            f"{self.latest['images_per_second']:.0f} images/s, data wait {self.latest['data_wait_share']:.0%}, "
            + ", ".join(f"{name} {float(term):.3f}" for name, term in output.terms.items())
            + f", {_duration(remaining)} left"
        )
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=progress, status=status)
        elif self.show and (now - self.line_at > _LINE_SECONDS or trainer.should_stop):
            log.info("pretrain %3.0f %%, step %d: %s", progress * 100, trainer.global_step, status)
            self.line_at = now
        self.window_start, self.window_images, self.window_wait = now, 0, 0.0

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the bar as it stands."""
        self.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the bar as it stands."""
        self.close()

    def close(self) -> None:
        """Stop drawing."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def last_metrics(directory: Path) -> dict[str, int | float]:
    """The newest line of a run's metrics; empty if there is none."""
    path = directory / METRICS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(json.loads(lines[-1])) if lines else {}


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
