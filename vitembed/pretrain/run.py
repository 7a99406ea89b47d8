"""``vitembed pretrain`` from Python: a folder of images in, a model folder out, resumable in between."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.atomic import make_folders
from vitembed.config import PretrainConfig, to_dict
from vitembed.errors import BadImage, ConfigError, DataError, counted
from vitembed.images.ignored import log_passed_over
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageListing, ImageRef, find_images
from vitembed.lock import exclusive
from vitembed.model.folder import check_model_folder
from vitembed.model.kept import keep_finished
from vitembed.model.late import stated_fingerprint
from vitembed.pretrain.decoding import decode_once, refuse_one_picture
from vitembed.pretrain.keep.files import BEST_DIR, LOCK_FILE, REPORT_FILE
from vitembed.pretrain.keep.run_folder import (
    RESUME_ON,
    batch_of_earlier,
    data_key,
    export_to,
    note_threads,
    one_line_when_full,
    prepare_run,
    read_state,
    recorded_images,
    recorded_settings,
    sweep,
    write_state,
)
from vitembed.pretrain.left_out import left_out
from vitembed.pretrain.many.follow import train_by_plan
from vitembed.pretrain.many.processes import Follower, Process, Share, Team, current_process, num_processes, team_of
from vitembed.pretrain.onward.parent import continued_config, read_parent, refuse_own_place, refuse_without_parent
from vitembed.pretrain.watch.event_files import refuse_without_tensorboard
from vitembed.recipes import given, load_config
from vitembed.workspace import Workspace, check_name, find_workspace

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
    """False when interrupted: the same call resumes it."""
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
    resume_on: str | None = None,
    time_budget: float | None = None,
    progress: bool = True,
) -> PretrainResult:
    """Train a ViT encoder on unlabelled images.

    Call it again with the same arguments to resume an interrupted run (Ctrl-C, SIGTERM, crash). A finished model is
    never overwritten: where ``fresh`` trains another one in its place, it is kept as ``models/NAME@FINGERPRINT``.

    Args:
        images: Folders, files and ``@list.txt``.
        config: A packaged recipe or a YAML file; none: chosen from the images and the machine, with the reasons logged.
        overrides: Settings such as ``optim.max_steps=60``.
        model: A trained model to go on from: a model folder, or a name in the workspace. Its architecture and
            preprocessing hold; where training makes it worse, it is kept as it is.
        workspace: Where model and run go; none: the workspace around the current folder, made if there is none.
        name: ``model`` for the workspace's own model, or another name to keep beside it.
        fresh: Train again where a run was interrupted or has finished; what it left is kept under another name.
        resume_on: Where the images of an interrupted run have changed: ``recorded`` finishes it on those that it began
            with, ``new`` continues from its weights with the current ones. None: such a run is refused.
        time_budget: Seconds in which the whole call shall end; the learning rate is planned for it.
        progress: Whether to show progress on stderr.

    Raises:
        DataError: If there are too few readable images.
        ConfigError: If the settings are wrong, or differ from those of the interrupted or finished run.
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
            resume_on=resume_on,
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
    resume_on: str | None,
    time_budget: float | None,
    progress: bool,
) -> PretrainResult:
    """What the first process does."""
    started = time.monotonic()
    check_name(name)
    if not isinstance(workspace, Workspace):
        workspace = find_workspace(workspace, create=True)
    run_dir, model_dir = workspace.run_named(name), workspace.model_named(name)
    check_model_folder(model_dir)
    inputs = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    if resume_on not in (None, *RESUME_ON):
        raise ConfigError(f"--resume-on must be one of {', '.join(RESUME_ON)}, got {resume_on!r}")
    listing = find_images(inputs)
    log_passed_over(listing.passed_over, listing.unfinished)
    if resume_on == "recorded":
        listing = replace(listing, refs=[ImageRef(image.path) for image in recorded_images(run_dir)])
    if len(listing.refs) < MIN_IMAGES:
        raise DataError(
            f"{counted(len(listing.refs), 'image')} in {', '.join(map(str, inputs))}: pretraining needs at least "
            f"{MIN_IMAGES}, and some thousands to be of use{left_out(listing)}"
        )
    parent: SavedModel | None = None
    if model is None:
        refuse_without_parent(config, overrides)
        going_on = None if fresh else batch_of_earlier(run_dir)
        recorded = recorded_settings(run_dir) if resume_on == "new" and config is None else None
        resolved = _resolve_config(listing.refs, config, overrides, time_budget, going_on, recorded)
    else:
        refuse_own_place(model, model_dir, workspace)
        parent = read_parent(model, workspace)
        settings = [*overrides, *given("time_budget_seconds", time_budget, overrides, "--time-budget")]
        resolved = continued_config(parent, config, settings)
    refuse_without_tensorboard(resolved.monitor)
    make_folders(run_dir)
    # What another process has to know to train along (``train_by_plan``); the rest is added when it is known.
    plan: dict[str, Any] = {"inputs": [os.fspath(path) for path in inputs], "workspace": os.fspath(workspace.root)}
    plan |= {"model": None if model is None else os.fspath(model), "run_dir": os.fspath(run_dir.absolute())}
    plan["recorded"] = resume_on == "recorded"
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
            resume_on=resume_on,
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
    resume_on: str | None,
    started: float,
    progress: bool,
    parent: SavedModel | None,
) -> PretrainResult:
    """Train in a run folder that is ours alone."""
    sweep(model_dir, run_dir / BEST_DIR)
    devices, num_nodes = num_processes(config.trainer, team.process)
    resume = prepare_run(
        run_dir,
        model_dir,
        config,
        listing.refs,
        fresh=fresh,
        world_size=devices * num_nodes,
        resume_on="new" if resume_on == "new" else None,
    )
    check_model_folder(run_dir / BEST_DIR)
    if resume == "complete":
        log.info("run %s has finished already: its model is %s (--fresh trains again)", run_dir.name, model_dir)
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
    decode = partial(
        decode_once,
        config=config.data,
        workspace=workspace,
        progress=progress,
        size=config.cache_size,
        preprocess=None if parent is None else parent.preprocess,
    )
    cache, place = decode(listing.refs, alone=devices * num_nodes == 1)
    bad = sorted([*listing.bad, *cache.bad], key=lambda problem: os.fsencode(problem.path))
    if len(cache.refs) < MIN_IMAGES:
        raise DataError(
            f"only {len(cache.refs)} of {len(listing.refs)} images are readable, pretraining needs at least "
            f"{MIN_IMAGES}{left_out(replace(listing, bad=bad))}"
        )
    if len(cache.refs) < 2 * devices * num_nodes:
        raise ConfigError(
            f"{len(cache.refs)} images are too few for {devices * num_nodes} devices: lower trainer.devices"
        )

    refuse_one_picture(cache)

    # Only now: torch and Lightning take seconds to import, which count towards the budget but delay no error above.
    import torch

    from vitembed.device import resolve_device
    from vitembed.model.checkpoint import save_model
    from vitembed.pretrain.fit import fit
    from vitembed.pretrain.onward.frozen import save_continued
    from vitembed.pretrain.watch.facts import gather_facts

    if resolve_device().type == "cpu":
        note_threads(run_dir, torch.get_num_threads())
    plan |= {"config": to_dict(config), "data_key": data_key(listing.refs), "cache": place}
    plan |= {"checkpoint": None if checkpoint is None else checkpoint.name, "devices": devices, "num_nodes": num_nodes}

    def others(facts: dict[str, Any]) -> AbstractContextManager[None]:
        return team.training({**plan, **facts}, run_dir, local_world_size=devices)

    share = Share(0, devices, num_nodes, team.process.launcher, others)
    preprocess = Preprocess(img_size=config.model.img_size, depth=config.data.depth)
    about = gather_facts(
        config,
        cache,
        name=run_dir.name,
        inputs=list(plan["inputs"]),
        bad=bad,
        model_dir=model_dir,
        preprocess=preprocess if parent is None else replace(parent.preprocess, img_size=config.model.img_size),
        decode=lambda refs: decode(refs, alone=True)[0],
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
        with export_to(model_dir), keep_finished(model_dir, workspace):
            if parent is None:
                save_model(model_dir, outcome.vit, preprocess, provenance=facts)
            else:
                save_continued(model_dir, outcome.vit, parent, outcome.decision, facts)
        state = read_state(run_dir)
        ended = {"status": "complete", "num_images": len(cache.refs), "num_steps": outcome.num_steps}
        ended |= {"monitor": outcome.monitor, "fingerprint": stated_fingerprint(model_dir)}
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
    recorded: Sequence[str] | None,
) -> PretrainConfig:
    """The complete configuration of the run."""
    settings = [*overrides, *given("time_budget_seconds", time_budget, overrides, "--time-budget")]
    if config is not None:
        return load_config(PretrainConfig, config, settings)
    if recorded is not None:
        return load_config(PretrainConfig, None, settings, chosen=recorded)
    from vitembed.pretrain.auto import choose

    choice = choose(refs, overrides=overrides, has_length=time_budget is not None, batch_size=batch_size)
    for reason in choice.reasons:
        log.info("auto: %s", reason)
    return load_config(PretrainConfig, choice.recipe, settings, chosen=choice.overrides)
