"""Arguments and options that several commands share, and what the text in them means."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitembed.config.ranges import SECONDS

if TYPE_CHECKING:
    from vitembed.collection.collection import Collection

# Text, not paths: "@list.txt" is no path, and bytes outside UTF-8 pass through.
Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES...",
        help="Folders (with all below them), image files, or @FILE: a list with one path a line (# starts a "
        "comment) or NUL-separated, relative to the current folder.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A model folder, a --name of pretrain, a public name that vitembed models lists, timm/NAME or ORG/NAME of "
        "the Hugging Face hub, or a weights file. [default: the workspace's]",
    ),
]
SpeedOption = Annotated[
    str | None,
    typer.Option(
        "--speed",
        metavar="SPEED",
        help="exact, half (16 bits), tome:R (each block merges its R most alike tokens) or half+tome:R. Vectors of "
        "different speeds do not meet in one index. [default: exact; of an index: its own]",
    ),
]
GpuDecodeOption = Annotated[
    bool,
    typer.Option(
        "--gpu-decode",
        help="Let the NVIDIA GPU decode large JPEGs too, beside the processor: for few cores and many photographs. Its "
        "pixels are compared with the processor's first.",
    ),
]
DepthOption = Annotated[
    str | None,
    typer.Option(
        "--depth",
        metavar="DEPTH",
        help="What is white in images of more than 8 bits per channel: auto (as the file states, else by its brightest "
        "pixel), 8 to 16 (bits), full (16), minmax or percentile (each image stretched). Vectors of different depths "
        "do not meet in one index. [default: the model's; of an index: its own]",
    ),
]
TolerantOption = Annotated[
    bool, typer.Option("--tolerant", help="Take truncated images as far as they go, each with a note.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        metavar="DIR",
        help="Folder that holds .vitembed. [default: VITEMBED_WORKSPACE, else the nearest at or above here]",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="FILE.csv",
        help="What label means in --where: columns path and label, as vitembed label writes them. "
        "[default: the folder an image is in]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 3 if any image had to be skipped.")]
ReportOption = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.jsonl", help="Write every skipped image and the reason there.")
]

VECTOR_SUFFIXES = (".npy", ".npz", ".parquet", ".csv", ".safetensors")

_SETTING = re.compile(r"[a-z_][a-z0-9_.]*=")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smh])+")


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images and ``key=value`` settings, told apart; what exists on disk is an image even if it holds ``=``.

    Raises:
        typer.BadParameter: If there are settings alone.
    """
    settings = [text for text in arguments if _SETTING.match(text) and not os.path.lexists(text)]
    images = [text for text in arguments if text not in settings]
    if not images:
        raise typer.BadParameter("only key=value settings were given: name a folder or image too", param_hint="IMAGES")
    return images, settings


def name_labels(collection: Collection, file: Path | None) -> None:
    """Let ``label`` in filters mean what a file says, if one was named.

    Raises:
        DataError: If it cannot be read.
    """
    if file is not None:
        from vitembed.collection.finding.label_file import read_labels

        collection.use_labels(read_labels(file))


def finite(value: float | None) -> float | None:
    """Refuse NaN and infinities, which lie within any ``min`` and ``max`` of an option.

    Raises:
        typer.BadParameter: If it is such a number.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def seconds_of(duration: str) -> float:
    """Seconds in ``30s``, ``20m``, ``2h`` or ``1h30m``.

    Raises:
        typer.BadParameter: If it is something else, or nothing.
    """
    parts = re.findall(r"([\d.]+)([smh])", duration) if _DURATION.fullmatch(duration) else []
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds <= SECONDS.high:
        raise typer.BadParameter(
            f"{duration!r} is not a time such as 30s, 20m or 2h (above 0 and up to {SECONDS.high / 3600:.0f}h)",
            param_hint="--time-budget",
        )
    return seconds
