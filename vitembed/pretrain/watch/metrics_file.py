"""``metrics.jsonl``: the history of a run, one JSON object per line, whole across interruptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitembed.atomic import atomic_path
from vitembed.pretrain.keep.disk import append_line, spared
from vitembed.pretrain.keep.files import METRICS_FILE

Line = dict[str, Any]
"""``step``, ``progress``, ``elapsed_seconds``, ``images_per_second``, ``data_wait_share``, ``lr``, ``loss``, each term
of it, ``grad_norm``, ``grad_clipped``; the newest scores of the monitors with ``monitor_step``; ``alarms``, if any."""


def read_metrics(directory: Path) -> list[Line]:
    """Every line of a run; a last one that was cut off by a kill is left out, as is one that was damaged."""
    path = directory / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [line for text in lines if text.endswith(b"}") and (line := _parsed(text)) is not None]


def _parsed(text: bytes) -> Line | None:
    """One line; none if it is not as it was written."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    plain = isinstance(line, dict) and isinstance(line.get("step"), int)
    if not plain or not isinstance(line.get("loss", 0.0), (int, float, type(None))):
        return None
    whole: Line = line
    return whole


def training_lines(directory: Path) -> list[Line]:
    """The lines of a run but for that of the frozen model, which a continued run writes before it trains."""
    return [line for line in read_metrics(directory) if "loss" in line]


def append_metrics(directory: Path, line: Mapping[str, Any]) -> None:
    """Add a line. What is no number (as the loss of a run that is about to be stopped) becomes null."""
    safe = {key: None if isinstance(value, float) and value - value != 0 else value for key, value in line.items()}
    path = directory / METRICS_FILE
    with spared(path):
        append_line(path, json.dumps(safe, allow_nan=False))


def forget_after(directory: Path, step: int) -> list[Line]:
    """Drop lines of steps that were lost with a killed process and come again; what is left."""
    path = directory / METRICS_FILE
    if not path.is_file():
        return []
    kept = [line for line in read_metrics(directory) if line["step"] <= step]
    with atomic_path(path) as temp:
        temp.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return kept


def last_metrics(directory: Path) -> dict[str, int | float]:
    """The numbers of a run's newest line; empty if there is none."""
    lines = read_metrics(directory)
    return numbers(lines[-1]) if lines else {}


def numbers(line: Mapping[str, Any]) -> dict[str, int | float]:
    """What is a number in a line."""
    return {key: value for key, value in line.items() if isinstance(value, (int, float))}
