"""``vitembed pretrain`` from Python: a folder of images in, a model folder out, resumable in between."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.config import PretrainConfig, to_dict
from vitembed.errors import BadImage, ConfigError, DataError
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageListing, ImageRef, find_images
from vitembed.lock import exclusive
from vitembed.pretrain.decoding import decode_once
from vitembed.pretrain.keep.files import BEST_DIR, LOCK_FILE, REPORT_FILE
from vitembed.pretrain.keep.run_folder import (
    batch_of_interrupted,
    data_key,
    export_to,
    one_line_when_full,
    prepare_run,
    read_state,
    sweep,
    write_state,
)
from vitembed.pretrain.many.follow import train_by_plan
from vitembed.pretrain.many.processes import Follower, Process, Share, Team, current_process, num_processes, team_of
from vitembed.pretrain.onward.parent import continued_config, read_parent, refuse_own_place, refuse_without_parent
from vitembed.pretrain.watch.event_files import refuse_without_tensorboard
from vitembed.recipes import load_config
from vitembed.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    from vitembed.model.checkpoint import SavedModel

log = logging.getLogger("vitembed")

MIN_IMAGES = 8


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
    decision: dict[str, Any] | None = None
    """Of a run that went on from a model: what was ``kept`` (last, best, frozen), and why in ``words``."""
    monitor: dict[str, Any] = field(default_factory=dict)
    """What was seen while it grew: ``looks`` (the start first), ``best_step``, ``judged_by``, ``majority``."""

    @property
    def report(self) -> Path:
        """The run on one page."""
        return self.run_dir / REPORT_FILE


def pretrain(
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    model: str | os.PathLike[str] | None = None,
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
        model: A trained model to go on from: a model folder, or a name in the workspace. Its architecture and
            preprocessing hold; where training makes it worse, it is kept as it is.
        workspace: Where model and run go; none: the workspace around the current folder, made if there is none.
        name: ``model`` for the workspace's own model, or another name to keep beside it.
        fresh: Start anew where a run was interrupted.
        time_budget: Seconds in which the whole call shall end; the learning rate is planned for it.
        progress: Whether to show progress on stderr.

    Raises:
        DataError: If there are too few readable images.
        ConfigError: If the settings are wrong, or differ from those of the interrupted run.
        TrainingError: If the loss becomes non-finite, the disk is full, or another process of the run failed.
        FailedElsewhere: In a process that is not the first, if the first failed.
    """
    process = current_process()
    if process.rank > 0:
        return _follow(process)
    with team_of(process) as team:
        return _pretrain(
            team,
            images,
            config=config,
            overrides=overrides,
            model=model,
            workspace=workspace,
            name=name,
            fresh=fresh,
            time_budget=time_budget,
            progress=progress,
        )


def _pretrain(
    team: Team,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    config: str | Path | None,
    overrides: Sequence[str],
    model: str | os.PathLike[str] | None,
    workspace: Workspace | Path | None,
    name: str,
    fresh: bool,
    time_budget: float | None,
    progress: bool,
) -> PretrainResult:
    """What the first process does."""
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
    run_dir = workspace.runs_dir / name
    model_dir = workspace.model_dir if name == "model" else workspace.dir / "models" / name
    parent: SavedModel | None = None
    if model is None:
        refuse_without_parent(config, overrides)
        going_on = None if fresh else batch_of_interrupted(run_dir)
        resolved = _resolve_config(listing.refs, config, overrides, time_budget, going_on)
    else:
        refuse_own_place(model, model_dir, workspace)
        parent = read_parent(model, workspace)
        settings = [*overrides, *([f"time_budget_seconds={time_budget}"] if time_budget is not None else [])]
        resolved = continued_config(parent, config, settings)
    refuse_without_tensorboard(resolved.monitor)
    run_dir.mkdir(parents=True, exist_ok=True)
    # What another process has to know to train along (``train_by_plan``); the rest is added when it is known.
    plan: dict[str, Any] = {"inputs": [os.fspath(path) for path in inputs], "workspace": os.fspath(workspace.root)}
    plan |= {"model": None if model is None else os.fspath(model), "run_dir": os.fspath(run_dir.absolute())}
    with exclusive(run_dir / LOCK_FILE), one_line_when_full(run_dir):
        result = _run(
            team,
            resolved,
            listing,
            workspace,
            run_dir,
            model_dir,
            plan=plan,
            fresh=fresh,
            started=started,
            progress=progress,
            parent=parent,
        )
    team.result = _to_json(result)
    return result


def _run(
    team: Team,
    config: PretrainConfig,
    listing: ImageListing,
    workspace: Workspace,
    run_dir: Path,
    model_dir: Path,
    *,
    plan: dict[str, Any],
    fresh: bool,
    started: float,
    progress: bool,
    parent: SavedModel | None,
) -> PretrainResult:
    """Train in a run folder that is ours alone."""
    sweep(model_dir, run_dir / BEST_DIR)
    devices, num_nodes = num_processes(config.trainer, team.process)
    resume = prepare_run(run_dir, model_dir, config, listing.refs, fresh=fresh, world_size=devices * num_nodes)
    if resume == "complete":
        log.info("run %s is complete already: its model is %s (--fresh trains anew)", run_dir.name, model_dir)
        state = read_state(run_dir, metrics=dict)
        return PretrainResult(
            model_dir=model_dir,
            run_dir=run_dir,
            num_images=state["num_images"],
            bad=listing.bad,
            num_steps=state["num_steps"],
            seconds=state["seconds"],
            completed=True,
            metrics=state["metrics"],
            decision=state.get("decision"),
            monitor=state.get("monitor", {}),
        )

    checkpoint: Path | None = None
    if resume == "resume":
        from vitembed.pretrain.keep.checkpoint_io import find_checkpoint

        checkpoint = find_checkpoint(run_dir)
    cache, place = _decode(listing.refs, config, workspace, progress, alone=devices * num_nodes == 1)
    bad = sorted([*listing.bad, *cache.bad], key=lambda problem: os.fsencode(problem.path))
    if len(cache.refs) < MIN_IMAGES:
        raise DataError(
            f"only {len(cache.refs)} of {len(listing.refs)} images are readable, the first problem: {bad[0]}"
        )
    if len(cache.refs) < 2 * devices * num_nodes:
        raise ConfigError(
            f"{len(cache.refs)} images are too few for {devices * num_nodes} devices: lower trainer.devices"
        )

    # Only now: torch and Lightning take seconds to import, which count towards the budget but delay no error above.
    from vitembed.model.checkpoint import save_model
    from vitembed.pretrain.fit import fit
    from vitembed.pretrain.onward.frozen import save_continued
    from vitembed.pretrain.watch.facts import gather_facts

    plan |= {"config": to_dict(config), "data_key": data_key(listing.refs), "cache": place}
    plan |= {"checkpoint": None if checkpoint is None else checkpoint.name, "devices": devices, "num_nodes": num_nodes}

    def others(facts: dict[str, Any]) -> AbstractContextManager[None]:
        return team.training({**plan, **facts}, run_dir, local_world_size=devices)

    share = Share(0, devices, num_nodes, team.process.launcher, others)
    preprocess = Preprocess(img_size=config.model.img_size)
    about = gather_facts(
        config,
        cache,
        name=run_dir.name,
        inputs=list(plan["inputs"]),
        bad=bad,
        model_dir=model_dir,
        preprocess=preprocess if parent is None else replace(parent.preprocess, img_size=config.model.img_size),
        decode=lambda refs: _decode(refs, config, workspace, progress, alone=True)[0],
    )
    outcome = fit(
        config,
        cache,
        run_dir,
        checkpoint=checkpoint,
        started=started,
        show=progress,
        parent=parent,
        share=share,
        facts=about,
    )
    if outcome.completed:
        facts = {
            **about.provenance,
            "num_steps": outcome.num_steps,
            "seconds": round(outcome.seconds, 1),
            **outcome.standing,
        }
        with export_to(model_dir):
            if parent is None:
                save_model(model_dir, outcome.vit, preprocess, provenance=facts)
            else:
                save_continued(model_dir, outcome.vit, parent, outcome.decision, facts)
        state = read_state(run_dir)
        ended = {"status": "complete", "num_images": len(cache.refs), "num_steps": outcome.num_steps}
        ended["monitor"] = outcome.monitor
        if outcome.decision is not None:
            ended["decision"] = outcome.decision.to_dict()
            log.info("%s", outcome.decision.words)
        write_state(run_dir, {**state, **ended, "seconds": outcome.seconds, "metrics": outcome.metrics})
    return PretrainResult(
        model_dir=model_dir,
        run_dir=run_dir,
        num_images=len(cache.refs),
        bad=bad,
        num_steps=outcome.num_steps,
        seconds=outcome.seconds,
        completed=outcome.completed,
        metrics=outcome.metrics,
        decision=outcome.decision.to_dict() if outcome.decision is not None else None,
        monitor=outcome.monitor,
    )


def _follow(process: Process) -> PretrainResult:
    """What a process that torchrun or SLURM started does if it is not the first: train along, and wait for the end."""
    logging.getLogger("vitembed").setLevel(logging.ERROR)  # the first process speaks for all
    follower = Follower(process)
    plan = follower.plan()
    if "config" in plan:  # else there was nothing left to train
        try:
            train_by_plan(plan, process)
        except Exception as error:
            follower.blame_first(error)
            raise
    result = follower.end()["result"]
    paths = {name: Path(result[name]) for name in ("model_dir", "run_dir")}
    return PretrainResult(**{**result, **paths}, bad=[])


def _to_json(result: PretrainResult) -> dict[str, Any]:
    """What the other processes give back too."""
    values = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "bad"}
    return {name: os.fspath(value) if isinstance(value, Path) else value for name, value in values.items()}


def _resolve_config(
    refs: Sequence[ImageRef],
    config: str | Path | None,
    overrides: Sequence[str],
    time_budget: float | None,
    batch_size: int | None,
) -> PretrainConfig:
    """The complete configuration of the run."""
    settings = list(overrides)
    if time_budget is not None:
        settings.append(f"time_budget_seconds={time_budget}")
    if config is not None:
        return load_config(PretrainConfig, config, settings)
    from vitembed.pretrain.auto import choose

    choice = choose(refs, overrides=overrides, has_length=time_budget is not None, batch_size=batch_size)
    for reason in choice.reasons:
        log.info("auto: %s", reason)
    return load_config(PretrainConfig, choice.recipe, [*choice.overrides, *settings])


def _decode(
    refs: Sequence[ImageRef], config: PretrainConfig, workspace: Workspace, progress: bool, *, alone: bool
) -> tuple[ImageCache, str]:
    return decode_once(refs, config.data, workspace, progress, size=config.cache_size, alone=alone)
