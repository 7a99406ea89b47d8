"""TensorBoard event files of a run, for those who look there; nothing else needs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from vitembed.config import MonitorConfig
from vitembed.errors import ConfigError
from vitembed.pretrain.keep.files import EVENTS_DIR, PICTURES_DIR
from vitembed.pretrain.watch.metrics_file import Line, numbers

_X = ("step", "progress", "elapsed_seconds", "monitor_step")
_GROUPS = {
    **dict.fromkeys(("rankme", "view_retrieval", "mean_cosine", "knn", "linear"), "encoder"),
    **dict.fromkeys(("lr", "grad_norm", "grad_clipped"), "optimiser"),
    **dict.fromkeys(("images_per_second", "data_wait_share"), "speed"),
}


def refuse_without_tensorboard(config: MonitorConfig) -> None:
    """Stop before anything is done if event files are asked for and cannot be written.

    Raises:
        ConfigError: If the package is missing.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "monitor.tensorboard=true needs the package tensorboard: pip install 'vitembed[tensorboard]', or leave it "
            "off (metrics.jsonl and report.html have the same figures)"
        )


class EventFiles:
    """Writes lines of metrics and sheets as they come.

    Args:
        directory: Run folder; the files go to ``tensorboard/`` in it.
        step: The run goes on after this step; what was written for later ones is hidden.
    """

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.pictures = directory / PICTURES_DIR
        self.writer = SummaryWriter(str(directory / EVENTS_DIR), purge_step=step + 1)
        self.shown: int | None = None

    def write(self, line: Line) -> None:
        """One line of metrics, and the sheets if it is the first of a point that was looked at."""
        step = line["step"]
        new = line.get("monitor_step") != self.shown
        for name, value in numbers(line).items():
            group = _GROUPS.get(name, "loss")
            if name not in _X and (group != "encoder" or new):
                at = line["monitor_step"] if group == "encoder" else step
                self.writer.add_scalar(f"{group}/{name}", value, at)
        if new:
            self.shown = line["monitor_step"]
            for path in sorted(self.pictures.glob(f"*-{self.shown:07d}.png")):
                with Image.open(path) as sheet:
                    pixels = np.asarray(sheet.convert("RGB"))
                name = path.name.split("-")[0]
                self.writer.add_image(name, pixels, self.shown, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Finish the file."""
        self.writer.close()
