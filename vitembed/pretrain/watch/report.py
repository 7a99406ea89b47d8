"""Rewrites ``report.html`` at every point that the monitors look at, at the end, and when a run is broken off."""

from __future__ import annotations

import time
from pathlib import Path

import pytorch_lightning as pl

from vitembed.atomic import atomic_path
from vitembed.config import PretrainConfig
from vitembed.images.cache import ImageCache
from vitembed.pretrain.keep.disk import spared
from vitembed.pretrain.keep.files import REPORT_FILE
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.watch.alarms import Alarms
from vitembed.pretrain.watch.dataset_summary import summarise
from vitembed.pretrain.watch.facts import RunFacts
from vitembed.pretrain.watch.metrics_file import training_lines
from vitembed.pretrain.watch.monitors import Monitors
from vitembed.pretrain.watch.report_html import render
from vitembed.pretrain.watch.report_page import RunPage


class Report(pl.Callback):
    """Writes the page on the first process.

    Args:
        config: The run.
        directory: Run folder.
        cache: The images trained on.
        monitors: Whose points are shown.
        alarms: Which of them are in force.
        facts: What else there is to say.
        device: Where the run trains, in words.
    """

    def __init__(
        self,
        config: PretrainConfig,
        directory: Path,
        cache: ImageCache,
        monitors: Monitors,
        alarms: Alarms,
        facts: RunFacts,
        *,
        device: str,
    ) -> None:
        self.config = config
        self.directory = directory
        self.cache = cache
        self.monitors = monitors
        self.alarms = alarms
        self.facts = facts
        self.device = device
        self.contents: RunPage | None = None
        self.written_for: float | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        """Write the first page once the start was looked at."""
        self.when_looked(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        """Write again after every look."""
        self.when_looked(trainer)

    def when_looked(self, trainer: pl.Trainer) -> None:
        """Write if there is a point that the page does not show yet."""
        looked = self.monitors.latest.get("step")
        if looked is not None and looked != self.written_for and not trainer.should_stop:
            self.written_for = looked
            self.write(trainer, "running")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last page of this part of the run."""
        assert isinstance(pl_module, PretrainModule)
        done = pl_module.clock.progress(trainer.global_step) >= 1.0
        self.write(trainer, "complete" if done else "interrupted")

    def finish(self, trainer: pl.Trainer) -> None:
        """Write the last page of a run that had ended, but was killed before it could."""
        for line in training_lines(self.directory):
            self.alarms.feed(line)
        self.write(trainer, "complete")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say on the page why the run stopped."""
        reason = "" if isinstance(exception, KeyboardInterrupt) else str(exception)
        self.write(trainer, "stopped", reason)

    def write(self, trainer: pl.Trainer, status: str, reason: str = "") -> None:
        """Put the page in its place, whole or not at all."""
        if not trainer.is_global_zero:
            return
        start = time.perf_counter()
        if self.contents is None:
            data = summarise(self.cache, self.facts.bad)
            self.contents = RunPage(
                self.config, self.directory, self.monitors, self.alarms, self.facts, data, device=self.device
            )
        lines = training_lines(self.directory)
        page = self.contents.page(lines, status, reason, precision=str(trainer.precision))
        with spared(self.directory / REPORT_FILE), atomic_path(self.directory / REPORT_FILE) as path:
            path.write_text(render(page), encoding="utf-8")
        self.monitors.seconds += time.perf_counter() - start
