"""The run folder: resume or start, what a new run sets aside, and what is reported when the disk is full."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitembed import __version__
from vitembed.atomic import atomic_path, fsync_directory, recover_folder
from vitembed.config import FinetuneConfig, PretrainConfig, to_dict
from vitembed.errors import ConfigError, DamagedFile, TrainingError, counted, printable
from vitembed.images.source import ImageRef
from vitembed.model.folder import MODEL_FILES
from vitembed.model.kept import free_name, kept_name
from vitembed.model.late import stated_fingerprint
from vitembed.pretrain.keep.disk import is_disk_full
from vitembed.pretrain.keep.files import CHECKPOINT_FILE, LEFTOVERS, LOCK_FILE, PREVIOUS_FILE, RUN_FILE
from vitembed.pretrain.keep.image_list import (
    ImageChanges,
    ListedImage,
    changes_since,
    read_image_list,
    write_image_list,
)
from vitembed.recipes import differences, flat
from vitembed.seal import read_document

log = logging.getLogger("vitembed")

# Settings that change how a run is carried out, not what comes out of it: they may differ when it is resumed.
_FREE_SETTINGS = (
    *(f"trainer.{name}:" for name in ("accelerator", "devices", "num_nodes", "strategy")),  # ``world_size`` is compared
    *(f"trainer.{name}:" for name in ("log_every_steps", "save_every_minutes", "num_pictures", "compile")),
    "monitor",
    "data.num_workers:",
    "data.cache:",
    *(f"data.{name}: None " for name in ("depth", "tolerant")),  # of runs from before there was a choice
)


RESUME_ON = ("recorded", "new")
"""Ways to resume an interrupted run whose images have changed."""


def prepare_run(
    run_dir: Path,
    model_dir: Path,
    config: PretrainConfig | FinetuneConfig,
    refs: Sequence[ImageRef],
    *,
    fresh: bool,
    world_size: int,
    labels: Sequence[str] = (),
    facts: Sequence[Sequence[str | None]] = (),
    resume_on: str | None = None,
) -> str:
    """Make the run folder, or find out what an earlier call left in it: ``new``, ``resume`` or ``complete``.

    Nothing that was trained is removed: what a new run finds here is set aside, under another name beside the folder.

    Args:
        run_dir: The folder.
        model_dir: Where the model goes.
        config: The run.
        refs: Its images.
        fresh: Start again, whatever is there.
        world_size: Processes in all.
        labels: What else belongs to the data: a run on the same images with other labels is another run.
        facts: The same by image, for the list of images.
        resume_on: ``new`` to resume an interrupted run on other images than it started with.

    Raises:
        ConfigError: If the run here was another one, and what to do about it is for the user to say.
    """
    settings, key = to_dict(config), data_key(refs, labels)
    try:
        old = earlier_state(run_dir)
    except DamagedFile:
        if not fresh:
            raise
        old = None
    saved = any((run_dir / name).is_file() for name in (CHECKPOINT_FILE, PREVIOUS_FILE))
    if resume_on is not None and (old is None or fresh or not saved or old["status"] != "running"):
        raise ConfigError(
            f"--resume-on is for a run that was interrupted, and {printable(run_dir)} holds none: leave it out"
            if not fresh
            else "--resume-on and --fresh contradict each other: resume the interrupted run, or start again"
        )
    if old is not None and not fresh:
        changed = _changed_settings(old, config, world_size)
        images = _changed_images(run_dir, old, refs, key, labels)
        finished = old["status"] == "complete"
        if finished and model_dir.is_dir():
            if not changed and not images:
                return "complete"
            raise _refuse_finished(run_dir, model_dir, [*changed, *([f"images: {images}"] if images else [])])
        if saved and images and resume_on == "new" and not changed:
            if not _takes_new_images(config):
                raise ConfigError(f"--resume-on new is not for this run: {_why_not_new(config)}")
            log.info("the interrupted run continues from its weights with the current images: %s", images)
            write_image_list(run_dir, refs, facts)
            write_state(run_dir, {**old, "data_key": key, "num_images": len(refs)})
            return "resume"
        if saved and not finished and images:
            raise _refuse_other_images(run_dir, config, old, images)
        if saved and not finished and changed:
            raise ConfigError(
                f"the interrupted run in {printable(run_dir)} had other settings ({_few(changed)}): repeat its "
                "command to resume, or start again with --fresh (its training state is kept in "
                f"runs/{interrupted_name(run_dir.name)})"
            )
        if saved and not changed and not images:
            return "resume"
    if (run_dir / RUN_FILE).is_dir():  # nothing of ours
        raise DamagedFile(f"{printable(run_dir / RUN_FILE)} is a folder: move it away")
    if saved or (old is not None and old["status"] == "complete") or (old is None and (run_dir / RUN_FILE).exists()):
        _set_aside(run_dir, model_dir, old)
    for pattern in LEFTOVERS:
        for leftover in run_dir.glob(pattern):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
    write_image_list(run_dir, refs, facts)
    state = {"status": "running", "config": settings, "data_key": key, "num_images": len(refs)}
    write_state(run_dir, {**state, "world_size": world_size})
    return "new"


def earlier_state(run_dir: Path) -> dict[str, Any] | None:
    """What ``run.json`` says; None where there is no run.

    Raises:
        DamagedFile: If it is damaged.
    """
    return read_state(run_dir) if (run_dir / RUN_FILE).exists() else None


def _changed_settings(old: Mapping[str, Any], config: PretrainConfig | FinetuneConfig, world_size: int) -> list[str]:
    before = _completed(old["config"], to_dict(type(config)()))
    changed = [line for line in differences(before, to_dict(config)) if not line.startswith(_FREE_SETTINGS)]
    if old.get("world_size", 1) != world_size:
        changed.append(f"devices in all: {old.get('world_size', 1)} -> {world_size}, each with its own batch")
    return changed


def _completed(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an earlier version, with those that have been added since."""
    found = {**defaults, **settings}
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), Mapping):
            found[key] = _completed(settings[key], value)
    return found


def _changed_images(
    run_dir: Path, old: Mapping[str, Any], refs: Sequence[ImageRef], key: str, labels: Sequence[str]
) -> ImageChanges | str:
    """How the images differ from those that the run began with; empty if they do not."""
    listed = read_image_list(run_dir)
    changes = None if listed is None else changes_since(listed, refs)
    if changes:
        return changes
    if old["data_key"] == key:
        return ""
    if changes is not None and labels:
        return "their labels, split or groups"
    what = "files or labels" if labels else "files"
    return f"{old['num_images']} then, {len(refs)} now, or the {what} are not the same"


def _refuse_finished(run_dir: Path, model_dir: Path, changed: Sequence[str]) -> ConfigError:
    fingerprint = stated_fingerprint(model_dir) or ""
    name = run_dir.name
    return ConfigError(
        f"{name!r} has finished already, and this is another run ({_few(changed)}). Which is meant? To continue "
        f"from it: --model {name} --name OTHER; to train again: --fresh (the finished model is kept as "
        f"{kept_name(name, fingerprint)}); to train another one beside it: --name OTHER"
    )


def _refuse_other_images(
    run_dir: Path, config: PretrainConfig | FinetuneConfig, old: Mapping[str, Any], images: ImageChanges | str
) -> ConfigError:
    ways = []
    why_not = ""
    if isinstance(images, ImageChanges):
        if not images.lost:
            ways.append(f"finish on the {counted(old['num_images'], 'image')} it started with: --resume-on recorded")
        else:
            be = "is" if len(images.lost) == 1 else "are"
            why_not = f" ({len(images.lost):,} of its images {be} gone or changed, so it cannot be finished on them)"
    if _takes_new_images(config):
        ways.append("continue from its weights with the current images: --resume-on new")
    ways.append(f"start again: --fresh (its training state is kept in runs/{interrupted_name(run_dir.name)})")
    choice = "Either " if len(ways) > 1 else "Only one way is left: "
    return ConfigError(
        f"the images of the interrupted run in {printable(run_dir)} have changed: {images}{why_not}. {choice}"
        + "; or ".join(ways)
    )


def _takes_new_images(config: PretrainConfig | FinetuneConfig) -> bool:
    return isinstance(config, PretrainConfig) and config.adapt.parent is None


def _why_not_new(config: PretrainConfig | FinetuneConfig) -> str:
    if isinstance(config, FinetuneConfig):
        return "other images change the split, and images already trained on would be tested"
    return "a run from a trained model is compared with that model on the images it started with"


def _few(lines: Sequence[str], most: int = 4) -> str:
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def interrupted_name(name: str) -> str:
    """What an interrupted run is called once another one has its name."""
    return f"{name}@interrupted"


def _set_aside(run_dir: Path, model_dir: Path, old: Mapping[str, Any] | None) -> None:
    """Move what a run left to a folder beside its own.

    ``run.json`` goes last: a move that was interrupted is taken up by the next call.
    """
    finished = old is not None and old["status"] == "complete"
    fingerprint = (old or {}).get("fingerprint") or stated_fingerprint(model_dir)
    if old is None:
        name = f"{run_dir.name}@damaged"
    else:
        name = kept_name(run_dir.name, fingerprint) if finished and fingerprint else interrupted_name(run_dir.name)
    target = run_dir.with_name(name)
    if target.exists() and (old is None or (target / RUN_FILE).exists()):
        target = free_name(target)
    target.mkdir(exist_ok=True)
    entries = [entry for entry in run_dir.iterdir() if entry.name != LOCK_FILE]
    for entry in sorted(entries, key=lambda entry: entry.name == RUN_FILE):
        entry.replace(target / entry.name)
    fsync_directory(run_dir.parent)
    if finished or old is None:
        log.info("the %s run is kept: %s", "finished" if finished else "damaged", printable(target))
    else:
        log.info(
            "the interrupted run is kept: %s (to resume it, move that folder to runs/OTHER and repeat its command "
            "with --name OTHER)",
            printable(target),
        )


def recorded_images(run_dir: Path) -> list[ListedImage]:
    """Read the images that an interrupted run started with, for ``--resume-on recorded``.

    Raises:
        ConfigError: If there is no such run or list, or the files are not as they were.
    """
    old, listed = earlier_state(run_dir), read_image_list(run_dir)
    if old is None or old["status"] != "running" or listed is None:
        raise ConfigError(
            f"--resume-on recorded: {printable(run_dir)} holds no interrupted run with a list of its images"
        )
    lost = changes_since(listed, []).lost
    if lost:
        raise ConfigError(
            f"--resume-on recorded: gone or changed since the run began, {len(lost):,} of its {len(listed):,} images "
            f"(first: {printable(lost[0])}): bring them back, or use --resume-on new or --fresh"
        )
    return listed


def recorded_settings(run_dir: Path) -> list[str]:
    """The settings of the run that was interrupted here, as ``key=value``."""
    state = earlier_state(run_dir)
    return [] if state is None else [f"{key}={json.dumps(value)}" for key, value in flat(state["config"])]


def batch_of_earlier(run_dir: Path) -> int | None:
    """Images per step of the run that was interrupted or finished here, if one was."""
    state = earlier_state(run_dir)
    return None if state is None else int(state["config"]["optim"]["batch_size"])


def note_threads(run_dir: Path, num_threads: int) -> None:
    """Record with how many threads a run is computed on a CPU; say so where they are others than before."""
    state = read_state(run_dir)
    before = state.get("num_threads")
    if before != num_threads:
        if before is not None:
            log.info(
                "this part of the run computes with %s, the one before with %d: sums are rounded in another "
                "order, so the weights will not be those of an uninterrupted run to the last bit",
                counted(num_threads, "thread"),
                before,
            )
        write_state(run_dir, {**state, "num_threads": num_threads})


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
    """Undo what processes that were killed left beside model folders (``save_model`` writes there)."""
    for model_dir in model_dirs:
        recover_folder(model_dir, MODEL_FILES)


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
        f"train again with --fresh (what is in {printable(run_dir)} is kept under another name, the model until the "
        "new one is complete)"
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
