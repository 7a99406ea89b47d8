"""``vitembed finetune`` from Python: labelled images and an encoder in, a better encoder and a classifier out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitembed import __version__
from vitembed.atomic import make_folders
from vitembed.config import FinetuneConfig, to_dict
from vitembed.errors import BadImage, ConfigError, DataError, ModelError, printable
from vitembed.images.source import ImageRef
from vitembed.lock import exclusive
from vitembed.model.folder import check_model_folder
from vitembed.model.kept import keep_finished
from vitembed.model.late import stated_fingerprint
from vitembed.pretrain.keep.files import FROZEN_FILE, LOCK_FILE
from vitembed.pretrain.keep.run_folder import (
    RESUME_ON,
    export_to,
    note_threads,
    one_line_when_full,
    prepare_run,
    read_state,
    recorded_images,
    sweep,
    write_state,
)
from vitembed.pretrain.left_out import naming_left_out
from vitembed.pretrain.many.processes import current_process
from vitembed.pretrain.onward.parent import read_parent, refuse_own_place
from vitembed.pretrain.supervised.result import FinetuneResult
from vitembed.probe.evaluation.inputs import checked_labels
from vitembed.probe.labels import LabelledImages, read_labelled
from vitembed.probe.split import given_split
from vitembed.recipes import given, load_config
from vitembed.workspace import Workspace, check_name, find_workspace

if TYPE_CHECKING:  # torch takes seconds to import, and wrong settings are to be refused before
    from vitembed.model.checkpoint import SavedModel
    from vitembed.pretrain.supervised.compare import Comparison
    from vitembed.pretrain.supervised.fit import FitOutcome
    from vitembed.probe.labelled_vectors import LabelledVectors
    from vitembed.probe.report import ProbeReport

log = logging.getLogger("vitembed")

DEFAULT_NAME = "finetuned"
PROBE_FILE = "probe.safetensors"
"""The classifier, in the model folder."""


def finetune(
    labelled: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    config: str | None = None,
    overrides: Sequence[str] = (),
    workspace: Workspace | Path | None = None,
    name: str = DEFAULT_NAME,
    fresh: bool = False,
    resume_on: str | None = None,
    time_budget: float | None = None,
    seed: int | None = None,
    test_share: float | None = None,
    progress: bool = True,
) -> FinetuneResult:
    """Train a whole encoder and a head on labelled images, and compare with probes on the frozen one.

    The test images are those of ``vitembed probe`` with the same seed and share. An interrupted run (Ctrl-C, SIGTERM,
    crash) goes on when called again with the same arguments.

    Args:
        labelled: What ``vitembed probe`` takes: a folder of class folders, or a CSV file.
        model: The encoder to start from, as for ``vitembed.pretrain``; none: the workspace's own.
        config: A YAML file; none: chosen from the images and the machine, with the reasons logged.
        overrides: Settings such as ``optim.max_epochs=10``.
        workspace: Where model and run go; none: the workspace around the current folder, made if there is none.
        name: What to call the model in the workspace.
        fresh: Train again where a run was interrupted or has finished; what it left is kept under another name.
        resume_on: ``recorded``: finish an interrupted run on the images and labels that it began with, though the
            folder or CSV file has others now. None: such a run is refused.
        time_budget: Seconds in which the whole call shall end at the latest; the learning rate is planned for it.
        seed: Decides the split and all that is random.
        test_share: How much of each class is tested.
        progress: Whether to show progress on stderr.

    Raises:
        DataError: If the images, labels or split cannot be used.
        ConfigError: If the settings are wrong, or differ from those of the interrupted or finished run.
        ModelError: If there is no such encoder, or none that can be trained.
        TrainingError: If the loss becomes non-finite, or the disk is full.
    """
    started = time.monotonic()
    if current_process().world_size > 1:
        raise ConfigError("fine-tuning runs in one process: start it without torchrun or srun")
    check_name(name)
    if not isinstance(workspace, Workspace):
        workspace = find_workspace(workspace, create=True)
    run_dir, model_dir = workspace.run_named(name), workspace.model_named(name)
    check_model_folder(model_dir)
    settings = [
        *overrides,
        *given("time_budget_seconds", time_budget, overrides, "--time-budget"),
        *given("seed", seed, overrides, "--seed"),
        *given("split.test_share", test_share, overrides, "--test-share"),
    ]
    wanted = load_config(FinetuneConfig, config, settings)  # what is wrong is said before any work
    if resume_on not in (None, *RESUME_ON):
        raise ConfigError(f"--resume-on must be one of {', '.join(RESUME_ON)}, got {resume_on!r}")
    images = read_labelled(labelled)
    if resume_on == "recorded":
        images = _recorded(run_dir, images.bad)
    with naming_left_out(images.bad):
        checked_labels(images.labels)
    source = _source(model, workspace)
    refuse_own_place(source, model_dir, workspace)
    parent = read_parent(source, workspace)
    from vitembed.pretrain.supervised.auto import resolve

    resolved = resolve(parent, images.refs, _num_train(images, wanted), config, settings)
    if resolved.parent != parent.fingerprint:
        raise ConfigError(f"parent asks for the model {resolved.parent}, this one has fingerprint {parent.fingerprint}")
    make_folders(run_dir)
    with exclusive(run_dir / LOCK_FILE), one_line_when_full(run_dir):
        return _run(
            resolved,
            images,
            parent,
            workspace,
            run_dir,
            model_dir,
            facts={"labelled": os.fspath(labelled), "model": os.fspath(source)},
            fresh=fresh,
            resume_on="new" if resume_on == "new" else None,
            started=started,
            progress=progress,
        )


def _run(
    config: FinetuneConfig,
    images: LabelledImages,
    parent: SavedModel,
    workspace: Workspace,
    run_dir: Path,
    model_dir: Path,
    *,
    facts: dict[str, Any],
    fresh: bool,
    resume_on: str | None,
    started: float,
    progress: bool,
) -> FinetuneResult:
    """Train in a run folder that is ours alone."""
    sweep(model_dir)
    words = [*images.labels.tolist()]
    for part in (images.split, images.groups):
        words += ["|", *(part.tolist() if part is not None else [])]
    resume = prepare_run(
        run_dir,
        model_dir,
        config,
        images.refs,
        fresh=fresh,
        world_size=1,
        labels=words,
        facts=_facts_of(images),
        resume_on=resume_on,
    )
    probe_file = model_dir / PROBE_FILE
    if resume == "complete":
        log.info("run %s has finished already: its model is %s (--fresh trains again)", run_dir.name, model_dir)
        state = read_state(run_dir, report=dict, bad=list)
        bad = [BadImage(each["path"], each["reason"]) for each in state["bad"]]
        counts = (state["num_steps"], state["seconds"])
        return FinetuneResult(model_dir, probe_file, run_dir, bad, *counts, True, state["report"])
    import torch

    from vitembed.pretrain.keep.checkpoint_io import find_checkpoint
    from vitembed.pretrain.supervised.compare import compare
    from vitembed.pretrain.supervised.teach import device_of, teach, tested
    from vitembed.probe.evaluation.abstain import DEFAULT_PRECISION
    from vitembed.probe.report import evaluate

    checkpoint = find_checkpoint(run_dir) if resume == "resume" else None
    if device_of(config).type == "cpu":
        note_threads(run_dir, torch.get_num_threads())
    begun = time.monotonic()
    found = _frozen_vectors(images, parent, config, run_dir, progress, facts["model"])
    embedding_seconds = time.monotonic() - begun
    with naming_left_out(found.bad):
        report = evaluate(
            found.embeddings[0],
            split=found.images.split,
            groups=found.images.groups,
            test_share=config.split.test_share,
            seed=config.seed,
            group_copies=config.split.group_copies,
        )
    _say_frozen(report)
    outcome, lesson = teach(
        config,
        report,
        found.images.refs,
        parent,
        workspace,
        run_dir,
        checkpoint=checkpoint,
        started=started,
        reserved=embedding_seconds * report.num_test / report.num_images,
        progress=progress,
    )
    if not outcome.completed:
        return FinetuneResult(model_dir, probe_file, run_dir, found.bad, outcome.num_steps, outcome.seconds, False)
    encoder, probe, probabilities = tested(config, outcome, report, found.images.refs, parent)
    comparison = compare(report, probabilities, seed=config.seed, target_precision=DEFAULT_PRECISION)
    document = {
        **comparison.to_dict(),
        "num_learned_from": len(lesson.train),
        "validation": {"num_images": len(lesson.validation), "looks": outcome.looks, "chosen": outcome.chosen},
    }
    facts |= {
        "made_by": f"vitembed {__version__} finetune",
        "config": to_dict(config),
        "num_images": report.num_images,
        "num_steps": outcome.num_steps,
        "seconds": round(outcome.seconds, 1),
        "classes": list(probe.classes),
        "scores": {key: document[key]["accuracy"] for key in ("majority", "knn", "linear", "finetuned")},
        "verdict": document["verdict"],
    }
    with export_to(model_dir), keep_finished(model_dir, workspace):
        _export(model_dir, outcome, comparison, parent, config, facts, encoder_speed=str(encoder.speed), probe=probe)
    state = read_state(run_dir)
    state |= {"status": "complete", "num_images": report.num_images, "num_steps": outcome.num_steps}
    state["fingerprint"] = stated_fingerprint(model_dir)
    state["bad"] = [{"path": problem.path, "reason": problem.reason} for problem in found.bad]
    write_state(run_dir, {**state, "seconds": outcome.seconds, "report": document})
    return FinetuneResult(model_dir, probe_file, run_dir, found.bad, outcome.num_steps, outcome.seconds, True, document)


def _facts_of(images: LabelledImages) -> list[list[str | None]]:
    """Label, part of the split and group of each image, for the run's list of images."""
    columns = [images.labels, images.split, images.groups]
    rows = [[None] * len(images) if column is None else column.tolist() for column in columns]
    return [list(row) for row in zip(*rows, strict=True)]


def _recorded(run_dir: Path, bad: list[BadImage]) -> LabelledImages:
    """The labelled images that an interrupted run began with."""
    listed = recorded_images(run_dir)
    facts = [image.facts for image in listed]
    if any(len(each) != 3 for each in facts):
        raise ConfigError(f"--resume-on recorded: the run in {printable(run_dir)} is no fine-tuning")
    labels, split, groups = (list(column) for column in zip(*facts, strict=True))
    return LabelledImages(
        [ImageRef(image.path) for image in listed],
        np.array(labels, dtype=np.str_),
        None if None in split else np.array(split),
        bad,
        None if None in groups else np.array(groups, dtype=np.str_),
    )


def _export(
    model_dir: Path,
    outcome: FitOutcome,
    comparison: Comparison,
    parent: SavedModel,
    config: FinetuneConfig,
    facts: dict[str, Any],
    *,
    encoder_speed: str,
    probe: Any,
) -> None:
    """Write the model folder and the classifier in it."""
    from dataclasses import replace

    from vitembed.model.checkpoint import save_model
    from vitembed.pretrain.onward.frozen import parentage
    from vitembed.pretrain.supervised.module import preprocess_at

    save_model(
        model_dir,
        outcome.classifier.vit,
        preprocess_at(parent, config.img_size),
        pool="cls",
        provenance={**facts, **parentage(parent)},
        licence=parent.licence,
    )
    meta = {
        "model": os.path.abspath(model_dir),  # noqa: PTH100  # links are kept
        "pool": "cls",
        "speed": encoder_speed,
        "version": __version__,
        "learned": "vitembed finetune",
        "num_train": comparison.frozen.num_train,
        "num_test": comparison.frozen.num_test,
        "scores": comparison.tuned.to_dict(),
        "abstain": comparison.abstain.to_dict(),
        "seed": config.seed,
    }
    replace(probe, threshold=comparison.abstain.threshold, meta=meta).save(model_dir / PROBE_FILE)


def _source(model: str | os.PathLike[str] | None, workspace: Workspace) -> str | os.PathLike[str]:
    """The encoder to start from: what was named, else the workspace's own."""
    if model is not None:
        return model
    if not workspace.model_dir.is_dir():
        raise ModelError(
            f"the workspace {workspace.dir} has no model yet: run vitembed pretrain first, or name one with --model, "
            "such as a public one that vitembed models lists"
        )
    return workspace.model_dir


def _num_train(images: LabelledImages, config: FinetuneConfig) -> int:
    """About how many images will be learned from; decides nothing but the choice of settings."""
    if images.split is not None:
        return max(1, int((~given_split(images.split, len(images))[0]).sum()))
    return max(1, round(len(images) * (1 - config.split.test_share)))


def _frozen_vectors(
    images: LabelledImages, parent: SavedModel, config: FinetuneConfig, run_dir: Path, progress: bool, name: str
) -> LabelledVectors:
    """Vectors of the unchanged encoder; those of the interrupted run where there are any."""
    from vitembed.embeddings import Embeddings
    from vitembed.model.encoder import Encoder
    from vitembed.pretrain.keep.disk import spared
    from vitembed.pretrain.supervised.teach import device_of
    from vitembed.pretrain.watch.status import DecodeBar
    from vitembed.probe.labelled_vectors import LabelledVectors, embed_labelled

    path = run_dir / FROZEN_FILE
    if path.is_file():
        try:
            kept = Embeddings.load(path)
        except DataError:  # half a file, of a full disk: made again
            kept = None
            path.unlink()  # ``save`` replaces only what it can read
        if kept is not None and kept.fingerprint == parent.fingerprint and set(kept.ids) <= set(images.paths):
            bad = [BadImage(each["path"], each["reason"]) for each in kept.meta["all_bad"]]
            return LabelledVectors([kept], [None], images.of(kept.ids), bad)
    encoder = Encoder(
        parent.vit, parent.preprocess, pool=parent.pool, name=name, device=device_of(config), licence=parent.licence
    )
    log.info("embedding %d labelled images by the frozen encoder", len(images))
    with DecodeBar(len(images), show=progress) as bar:
        found = embed_labelled(images, [encoder], progress=bar.update)
    parent.vit.cpu()
    embeddings = found.embeddings[0]
    embeddings.meta["all_bad"] = [{"path": problem.path, "reason": problem.reason} for problem in found.bad]
    with spared(path):
        embeddings.save(path)
    return found


def _say_frozen(report: ProbeReport) -> None:
    log.info(
        "frozen encoder on %d test images: linear probe %.1f %%, %d-NN %.1f %%, majority %.1f %%",
        report.num_test,
        100 * report.linear.accuracy,
        report.k,
        100 * report.knn.accuracy,
        100 * report.majority.accuracy,
    )
