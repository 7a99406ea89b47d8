"""The training state on disk: written beside its place, one older state kept, a damaged one never believed."""

from __future__ import annotations

import contextlib
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from vitembed.atomic import fsync_directory
from vitembed.errors import TrainingError, printable
from vitembed.pretrain.keep.disk import is_disk_full
from vitembed.pretrain.keep.files import CHECKPOINT_FILE, PREVIOUS_FILE

log = logging.getLogger("vitembed")


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes ``last.ckpt`` such that a kill at any moment leaves a whole state: the new, the last or the one before.

    Never raises where Lightning would: it calls this in the first process alone, while the others wait for it. The
    error is kept in ``error`` for ``Saver``, which lets all processes end together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write the state; on an error nothing has changed on disk."""
        try:
            write_checkpoint(checkpoint, Path(path))
        except Exception as error:
            self.error = error


def write_checkpoint(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a training state to ``path``; the one that was there becomes ``previous.ckpt``.

    When the disk is full, the state before the last is given up to make room.

    Raises:
        OSError: If it cannot be written; ``path`` is untouched and nothing half is left.
    """
    fresh = path.with_name(f"{path.name}.new")
    previous = path.with_name(PREVIOUS_FILE)
    try:
        _write(checkpoint, fresh)
    except Exception as error:
        if not (is_disk_full(error) and path.is_file() and previous.is_file()):
            raise
        log.warning("the disk is full: %s is given up to make room for the new state", printable(previous))
        previous.unlink()
        _write(checkpoint, fresh)
    if path.is_file():
        path.replace(previous)
    fresh.replace(path)  # a kill before this line leaves the state before, under its other name
    fsync_directory(path.parent)


def _write(checkpoint: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as raw:
            file = _Remembering(raw)
            try:
                torch.save(checkpoint, cast("IO[bytes]", file))  # it writes and flushes, nothing else
            except Exception:
                if file.error is not None:  # torch's own error does not tell that the disk is full
                    raise file.error from None
                raise
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


class _Remembering:
    """A file for ``torch.save`` that keeps the first error of the system."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            self.error = self.error or error
            raise


def find_checkpoint(run_dir: Path) -> Path | None:
    """The newest training state of a run that is whole; none if there is no state at all.

    A damaged one is passed over with a warning: going on from the one before gives the same end, a little later.

    Raises:
        TrainingError: If every state there is damaged.
    """
    damaged: dict[Path, str] = {}
    for path in (run_dir / CHECKPOINT_FILE, run_dir / PREVIOUS_FILE):
        if not path.is_file():
            continue
        try:
            read_checkpoint(path)
        except TrainingError as error:
            damaged[path] = str(error)
            continue
        for broken in damaged:
            log.warning("%s is damaged: going on from the state before it, %s", printable(broken), path.name)
            broken.unlink()  # else the next save would keep it as the state before
        return path
    if damaged:
        raise TrainingError(f"{next(iter(damaged.values()))}: start anew with --fresh")
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The training state in a file, on the CPU.

    Raises:
        TrainingError: If the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch checks the frame, but not the sums of what is in it
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"checksum of {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not {"global_step", "state_dict", "elapsed_seconds"} <= set(state):
            raise ValueError("not a training state")
    except Exception as error:  # zip, pickle and torch each have errors of their own for a broken file
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise
        raise TrainingError(f"the training state {printable(path)} is damaged or cut short") from error
    return state
