"""What a model folder is, told without torch: where a model may be written, and what is never replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vitembed.errors import ModelError, printable

WEIGHTS_FILE = "encoder.safetensors"
CONFIG_FILE = "config.json"
PROBE_FILE = "probe.safetensors"
"""Of a fine-tuned encoder: its classifier."""
FORMAT = "vitembed-encoder"
MODEL_FILES = (WEIGHTS_FILE, CONFIG_FILE, PROBE_FILE)
"""What belongs to a model; anything else in its folder is the user's and is kept when the model is replaced."""


def check_model_folder(directory: str | os.PathLike[str]) -> None:
    """Refuse a place where no model can be written, or where something else than a model of ours lies.

    Raises:
        ModelError: If it is a file, a mount point, a folder that holds something else, or cannot be written.
    """
    name, place = printable(directory), Path(os.path.realpath(directory))
    if place.is_dir():
        if any(place.iterdir()) and not is_model_folder(place):
            raise ModelError(
                f"{name} holds files, and its {CONFIG_FILE} is not that of a vitembed model (absent or damaged): it is "
                "not replaced; move it away, or choose another place"
            )
        if place.is_mount():
            raise ModelError(f"{name} is a mount point, which no model can replace: choose a folder inside it")
    elif os.path.lexists(place):
        raise ModelError(f"{name} is no folder: it is not replaced; choose another place, or move it away")
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ModelError(f"{name}: no model can be written to {printable(parent)}")


def is_model_folder(directory: Path) -> bool:
    """Whether its ``config.json`` says that vitembed wrote it."""
    try:
        config = json.loads((directory / CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT
