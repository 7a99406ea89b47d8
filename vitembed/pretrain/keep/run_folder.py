"""What lies in a run folder: whether a run goes on, what a new one clears away, what is said when the disk is full."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitembed import __version__
from vitembed.atomic import atomic_path
from vitembed.config import FinetuneConfig, PretrainConfig, to_dict
from vitembed.errors import ConfigError, DamagedFile, TrainingError, printable
from vitembed.images.source import ImageRef
from vitembed.pretrain.keep.disk import is_disk_full
from vitembed.pretrain.keep.files import CHECKPOINT_FILE, LEFTOVERS, PREVIOUS_FILE, RUN_FILE
from vitembed.recipes import differences
from vitembed.seal import read_document

# Settings that change how a run is carried out, not what comes out of it: they may differ when it is resumed.
_FREE_SETTINGS = (
    *(f"trainer.{name}:" for name in ("accelerator", "devices", "num_nodes", "strategy")),  # ``world_size`` is compared
    *(f"trainer.{name}:" for name in ("log_every_steps", "save_every_minutes", "num_pictures", "compile")),
    "monitor",
    "data.num_workers:",
    "data.cache:",
)


def prepare_run(
    run_dir: Path,
    model_dir: Path,
    config: PretrainConfig | FinetuneConfig,
    refs: Sequence[ImageRef],
    *,
    fresh: bool,
    world_size: int,
    labels: Sequence[str] = (),
) -> str:
    """Make the run folder, or find out what an earlier call left in it: ``new``, ``resume`` or ``complete``.

    Args:
        run_dir: The folder.
        model_dir: Where the model goes.
        config: The run.
        refs: Its images.
        fresh: Start anew, whatever is there.
        world_size: Processes in all.
        labels: What else belongs to the data: a run on the same images with other labels is another run.
    """
    settings, key = to_dict(config), data_key(refs, labels)
    if (run_dir / RUN_FILE).exists() and not fresh:
        old = read_state(run_dir)
        changed = [line for line in differences(old["config"], settings) if not line.startswith(_FREE_SETTINGS)]
        if old["data_key"] != key:
            what = "their files or labels" if labels else "their files"
            changed.append(f"images: {old['num_images']} then, {len(refs)} now, or {what} changed")
        if old.get("world_size", 1) != world_size:
            changed.append(f"devices in all: {old.get('world_size', 1)} -> {world_size}, each with its own batch")
        if not changed and old["status"] == "complete" and model_dir.is_dir():
            return "complete"
        saved = any((run_dir / name).is_file() for name in (CHECKPOINT_FILE, PREVIOUS_FILE))
        if old["status"] == "running" and saved:
            if changed:
                raise ConfigError(
                    f"the interrupted run in {run_dir} had other settings ({'; '.join(changed)}): "
                    "repeat its command to go on, or start anew with --fresh"
                )
            return "resume"
    for pattern in LEFTOVERS:
        for leftover in run_dir.glob(pattern):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    if (run_dir / RUN_FILE).is_dir():  # nothing of ours
        raise DamagedFile(f"{printable(run_dir / RUN_FILE)} is a folder: move it away")
    state = {"status": "running", "config": settings, "data_key": key, "num_images": len(refs)}
    write_state(run_dir, {**state, "world_size": world_size})
    return "new"


def batch_of_interrupted(run_dir: Path) -> int | None:
    """Images per step of the run that was interrupted here, if one was."""
    if not (run_dir / RUN_FILE).exists():
        return None
    state = read_state(run_dir)
    return int(state["config"]["optim"]["batch_size"]) if state["status"] == "running" else None


@contextlib.contextmanager
def one_line_when_full(run_dir: Path) -> Iterator[None]:
    """Say what is the matter when not even the first files of a run find room."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise TrainingError(f"the disk is full: nothing can be written to {printable(run_dir)}") from error


@contextlib.contextmanager
def export_to(model_dir: Path) -> Iterator[None]:
    """Say what to do when the disk is full at the very end."""
    try:
        yield
    except Exception as error:
        sweep(model_dir)
        if not is_disk_full(error):
            raise
        raise TrainingError(
            f"the disk is full: the model cannot be written to {printable(model_dir)}. Training has ended and is "
            "saved: make room and repeat the command, it only writes the model"
        ) from error


def sweep(*model_dirs: Path) -> None:
    """Remove what processes that were killed left beside model folders (``save_model`` writes there)."""
    for model_dir in model_dirs:
        for kind in ("new", "old"):
            for leftover in model_dir.parent.glob(f".{model_dir.name}.{kind}-*"):
                shutil.rmtree(leftover, ignore_errors=True)


def write_state(run_dir: Path, state: dict[str, Any]) -> None:
    """Replace ``run.json``."""
    with atomic_path(run_dir / RUN_FILE) as path:
        path.write_text(json.dumps({"vitembed_version": __version__, **state}, indent=2) + "\n", encoding="utf-8")


def read_state(run_dir: Path, **needs: type) -> dict[str, Any]:
    """What ``write_state`` wrote last.

    Args:
        run_dir: The folder.
        **needs: What it must hold besides, and of which type.

    Raises:
        DamagedFile: If it is no longer that.
    """
    path, number = run_dir / RUN_FILE, (int, float)
    advice = (
        f"train again with --fresh, which clears {printable(run_dir)} (with its {CHECKPOINT_FILE}; the model "
        "stays until the new one is complete)"
    )
    always = {"status": str, "config": dict, "data_key": str, "num_images": int}
    state: dict[str, Any] = read_document(path, needs={**always, **needs}, advice=advice)
    if state["status"] == "complete":
        read_document(path, needs={"num_steps": int, "seconds": number}, advice=advice)
    optim = state["config"].get("optim")
    if not isinstance(optim, dict) or not isinstance(optim.get("batch_size"), int):
        raise DamagedFile(f"{printable(path)} is damaged (its settings are not those of a run): {advice}")
    return state


def data_key(refs: Sequence[ImageRef], labels: Sequence[str] = ()) -> str:
    """Changes when an image is added, removed, renamed, of another size, or labelled otherwise."""
    digest = hashlib.sha256()
    for ref in refs:
        try:
            size = Path(ref.path).stat().st_size
        except OSError:  # it vanished; decoding says so
            size = -1
        digest.update(os.fsencode(ref.path) + b"\0" + str(size).encode() + b"\0")
    for label in labels:
        digest.update(label.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()
