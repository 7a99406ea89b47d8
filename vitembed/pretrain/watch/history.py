"""What the alarms of a run are told from: its lines so far, and the settings that they are read by."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vitembed.config import PretrainConfig
from vitembed.pretrain.watch.metrics_file import Line, numbers


@dataclass(frozen=True)
class Context:
    """What the rules must know of a run."""

    config: PretrainConfig
    pool_size: int
    """Images that the monitors look at."""
    max_rank: int
    """The largest RankMe that they allow."""
    num_queries: int = 0
    """Labelled images that are named; 0 without labels."""

    @property
    def compares_views(self) -> bool:
        """Whether the objective asks the cls vectors of an image's views to agree."""
        return self.config.objective.spread != "none"

    @property
    def settled_from(self) -> float:
        """Progress from which on losses can be compared: the same rates, weights and sizes from there."""
        config = self.config
        ramps = [config.optim.warmup_share, config.optim.low_res_share]
        if config.adapt.parent is not None:
            ramps += [config.adapt.head_warmup_share + config.optim.warmup_share, config.adapt.patch_ramp_share]
        return max(ramps)

    @property
    def comparable_from(self) -> float:
        """Progress from which on all parameters learn by the whole loss: in a continued run not from the start."""
        return 0.0 if self.config.adapt.parent is None else self.settled_from


@dataclass
class History:
    """The lines of a run so far, and what the rules ask of them."""

    lines: list[Line] = field(default_factory=list)
    looks: list[Line] = field(default_factory=list)
    """The first line of each point that the monitors looked at; the first of all is the start of the run."""
    columns: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)

    def add(self, line: Line) -> bool:
        """Take in a line; whether it is the first of a new point looked at."""
        new = "monitor_step" in line and (not self.looks or line["monitor_step"] != self.looks[-1]["monitor_step"])
        self.lines.append(line)
        if new:
            self.looks.append(line)
        for name, value in numbers(line).items():
            progress, values = self.columns.setdefault(name, ([], []))
            progress.append(line["progress"])
            values.append(value)
        return new

    @property
    def progress(self) -> float:
        """How far the run is; 0..1."""
        return float(self.lines[-1]["progress"])

    def values(self, name: str, *, after: float = -1.0) -> npt.NDArray[np.float64]:
        """All values of a number in lines past a progress; lines without it are left out."""
        progress, values = self.columns.get(name, ([], []))
        return np.asarray(values[bisect.bisect_right(progress, after) :], dtype=np.float64)
