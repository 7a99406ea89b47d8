"""``vitembed pretrain`` from Python: a folder of images in, a model folder out, resumable in between."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitembed import __version__
from vitembed.atomic import atomic_path
from vitembed.config import PretrainConfig, to_dict
from vitembed.errors import BadImage, ConfigError, DataError
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageListing, ImageRef, find_images
from vitembed.lock import exclusive
from vitembed.pretrain.files import CHECKPOINT_FILE, LOCK_FILE, METRICS_FILE, RUN_FILE
from vitembed.pretrain.status import DecodeBar
from vitembed.recipes import differences, load_config
from vitembed.workspace import Workspace, find_workspace

log = logging.getLogger("vitembed")

MIN_IMAGES = 8
_RAM_CACHE_BYTES = 1 << 30
# Settings that change how a run is carried out, not what comes out of it: they may differ when it is resumed.
_FREE_SETTINGS = ("trainer.", "data.num_workers", "data.cache:")


@dataclass(frozen=True)
class PretrainResult:
    """What a call of ``pretrain`` left behind."""

    model_dir: Path
    """The model folder; absent when the run was interrupted before its end."""
    run_dir: Path
    """Config, metrics, pictures and training state."""
    num_images: int
    """Images trained on."""
    bad: list[BadImage]
    """Files that look like images and cannot be decoded."""
    num_steps: int
    """Optimiser steps of the whole run."""
    seconds: float
    """Training time of the whole run."""
    completed: bool
    """False when interrupted: the same call goes on."""
    metrics: dict[str, int | float]
    """The newest line of ``metrics.jsonl``."""


def pretrain(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    workspace: Workspace | Path | None = None,
    name: str = "model",
    fresh: bool = False,
    time_budget: float | None = None,
    progress: bool = True,
) -> PretrainResult:
    """Train a ViT encoder on unlabelled images.

    An interrupted run (Ctrl-C, SIGTERM, crash) goes on when called again with the same arguments.

    Args:
        images: Folders, files and ``@list.txt``.
        config: A packaged recipe or a YAML file; none: chosen from the images and the machine, with the reasons logged.
        overrides: Settings such as ``optim.max_steps=60``.
        workspace: Where model and run go; none: the workspace around the current folder, made if there is none.
        name: ``model`` for the workspace's own model, or another name to keep beside it.
        fresh: Start anew where a run was interrupted.
        time_budget: Seconds in which the whole call shall end; the learning rate is planned for it.
        progress: Whether to show progress on stderr.

    Raises:
        DataError: If there are too few readable images.
        ConfigError: If the settings are wrong, or differ from those of the interrupted run.
        TrainingError: If the loss becomes non-finite.
    """
    started = time.monotonic()
    if not isinstance(workspace, Workspace):
        workspace = find_workspace(workspace, create=True)
    inputs = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    listing = find_images(inputs)
    if len(listing.refs) < MIN_IMAGES:
        raise DataError(
            f"{len(listing.refs)} images in {', '.join(map(str, inputs))}: pretraining needs at least {MIN_IMAGES}, "
            "and some thousands to be of use"
        )
    resolved = _resolve_config(listing.refs, config, overrides, time_budget)
    run_dir = workspace.runs_dir / name
    model_dir = workspace.model_dir if name == "model" else workspace.dir / "models" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    with exclusive(run_dir / LOCK_FILE):
        return _run(resolved, listing, workspace, run_dir, model_dir, fresh=fresh, started=started, progress=progress)


def _run(
    config: PretrainConfig,
    listing: ImageListing,
    workspace: Workspace,
    run_dir: Path,
    model_dir: Path,
    *,
    fresh: bool,
    started: float,
    progress: bool,
) -> PretrainResult:
    """Train in a run folder that is ours alone."""
    resume = _prepare_run(run_dir, model_dir, config, listing.refs, fresh=fresh)
    if resume == "complete":
        log.info("run %s is complete already: its model is %s (--fresh trains anew)", run_dir.name, model_dir)
        state = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        return PretrainResult(
            model_dir=model_dir,
            run_dir=run_dir,
            num_images=state["num_images"],
            bad=listing.bad,
            num_steps=state["num_steps"],
            seconds=state["seconds"],
            completed=True,
            metrics=state["metrics"],
        )

    cache = _decode(listing.refs, config, workspace, progress)
    bad = sorted([*listing.bad, *cache.bad], key=lambda problem: os.fsencode(problem.path))
    if len(cache.refs) < MIN_IMAGES:
        raise DataError(
            f"only {len(cache.refs)} of {len(listing.refs)} images are readable, the first problem: {bad[0]}"
        )

    # Only now: torch and Lightning take seconds to import, which count towards the budget but delay no error above.
    from vitembed.model.checkpoint import save_model
    from vitembed.pretrain.fit import fit

    outcome = fit(config, cache, run_dir, resume=resume == "resume", started=started, show=progress)
    if outcome.completed:
        facts = {
            "made_by": f"vitembed {__version__} pretrain",
            "num_images": len(cache.refs),
            "num_steps": outcome.num_steps,
            "seconds": round(outcome.seconds, 1),
            "config": to_dict(config),
        }
        save_model(model_dir, outcome.vit, Preprocess(img_size=config.model.img_size), provenance=facts)
        state = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))
        ended = {"status": "complete", "num_images": len(cache.refs), "num_steps": outcome.num_steps}
        _write_state(run_dir, {**state, **ended, "seconds": outcome.seconds, "metrics": outcome.metrics})
    return PretrainResult(
        model_dir=model_dir,
        run_dir=run_dir,
        num_images=len(cache.refs),
        bad=bad,
        num_steps=outcome.num_steps,
        seconds=outcome.seconds,
        completed=outcome.completed,
        metrics=outcome.metrics,
    )


def _resolve_config(
    refs: Sequence[ImageRef], config: str | Path | None, overrides: Sequence[str], time_budget: float | None
) -> PretrainConfig:
    """The complete configuration of the run."""
    settings = list(overrides)
    if time_budget is not None:
        settings.append(f"time_budget_seconds={time_budget}")
    if config is not None:
        return load_config(PretrainConfig, config, settings)
    from vitembed.pretrain.auto import choose

    choice = choose(refs, overrides=overrides, has_length=time_budget is not None)
    for reason in choice.reasons:
        log.info("auto: %s", reason)
    return load_config(PretrainConfig, choice.recipe, [*choice.overrides, *settings])


def _prepare_run(
    run_dir: Path, model_dir: Path, config: PretrainConfig, refs: Sequence[ImageRef], *, fresh: bool
) -> str:
    """Make the run folder, or find out what an earlier call left in it: ``new``, ``resume`` or ``complete``."""
    settings, data_key = to_dict(config), _data_key(refs)
    path = run_dir / RUN_FILE
    if path.is_file() and not fresh:
        old = json.loads(path.read_text(encoding="utf-8"))
        changed = [line for line in differences(old["config"], settings) if not line.startswith(_FREE_SETTINGS)]
        if old["data_key"] != data_key:
            changed.append(f"images: {old['num_images']} then, {len(refs)} now, or their files changed")
        if not changed and old["status"] == "complete" and model_dir.is_dir():
            return "complete"
        if old["status"] == "running" and (run_dir / CHECKPOINT_FILE).is_file():
            if changed:
                raise ConfigError(
                    f"the interrupted run in {run_dir} had other settings ({'; '.join(changed)}): "
                    "repeat its command to go on, or start anew with --fresh"
                )
            return "resume"
    for leftover in (run_dir / CHECKPOINT_FILE, run_dir / METRICS_FILE, *run_dir.glob("pictures/*.png")):
        leftover.unlink(missing_ok=True)
    _write_state(run_dir, {"status": "running", "config": settings, "data_key": data_key, "num_images": len(refs)})
    return "new"


def _write_state(run_dir: Path, state: dict[str, Any]) -> None:
    with atomic_path(run_dir / RUN_FILE) as path:
        path.write_text(json.dumps({"vitembed_version": __version__, **state}, indent=2) + "\n", encoding="utf-8")


def _data_key(refs: Sequence[ImageRef]) -> str:
    """Changes when an image is added, removed, renamed or of another size."""
    digest = hashlib.sha256()
    for ref in refs:
        try:
            size = Path(ref.path).stat().st_size
        except OSError:  # it vanished; decoding says so
            size = -1
        digest.update(os.fsencode(ref.path) + b"\0" + str(size).encode() + b"\0")
    return digest.hexdigest()


def _decode(refs: Sequence[ImageRef], config: PretrainConfig, workspace: Workspace, progress: bool) -> ImageCache:
    """Decode every image once."""
    size = config.cache_size
    num_bytes = ImageCache.estimate_bytes(len(refs), size)
    in_ram = config.data.cache == "ram" or (config.data.cache == "auto" and num_bytes <= _RAM_CACHE_BYTES)
    place = "in memory" if in_ram else f"in {workspace.cache_dir}"
    log.info("decoding %d images once, to %d px: %.1f MB %s", len(refs), size, num_bytes / 1e6, place)
    with DecodeBar(len(refs), show=progress) as bar:
        if in_ram:
            return ImageCache.in_memory(refs, size=size, num_workers=config.data.num_workers, progress=bar.update)
        return ImageCache.build(
            refs, workspace.cache_dir, size=size, num_workers=config.data.num_workers, progress=bar.update
        )
