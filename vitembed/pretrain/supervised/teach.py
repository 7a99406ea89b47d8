"""From a probed encoder to a taught one: who learns, what it starts from, and what it says of the test images."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int

from vitembed.config import FinetuneConfig
from vitembed.device import resolve_device
from vitembed.errors import DataError
from vitembed.images.source import ImageRef
from vitembed.model.checkpoint import SavedModel
from vitembed.model.encoder import Encoder
from vitembed.pretrain.decoding import decode_once
from vitembed.pretrain.supervised.fit import FitOutcome, Lesson, fit
from vitembed.pretrain.supervised.head import StandardHead, as_arrays
from vitembed.pretrain.supervised.module import preprocess_at, start_vit
from vitembed.pretrain.supervised.stream import sides_of
from vitembed.probe.linear import LinearProbe
from vitembed.probe.report import ProbeReport
from vitembed.probe.saving import SavedProbe
from vitembed.workspace import Workspace

log = logging.getLogger("vitembed")


def teach(
    config: FinetuneConfig,
    report: ProbeReport,
    refs: Sequence[ImageRef],
    parent: SavedModel,
    workspace: Workspace,
    run_dir: Path,
    *,
    checkpoint: Path | None,
    started: float,
    reserved: float,
    progress: bool,
) -> tuple[FitOutcome, Lesson]:
    """Train on the training images of a report.

    Args:
        config: The run.
        report: Of the frozen encoder; its split holds, its linear probe is where a linear head starts.
        refs: The report's images.
        parent: The encoder to start from.
        workspace: Whose cache keeps decoded images.
        run_dir: Where training state and metrics go.
        checkpoint: Training state to go on from.
        started: ``time.monotonic`` at which the time budget began.
        reserved: Seconds of it that are needed after training.
        progress: Whether to show progress on stderr.

    Raises:
        DataError: If an image that could be embedded cannot be read any more.
    """
    fitted = report.fitted
    sides = sides_of(
        fitted.targets,
        fitted.is_test,
        fitted.groups,
        validation_share=config.split.validation_share,
        seed=config.seed,
    )
    known = np.flatnonzero(np.bincount(fitted.targets[sides.train], minlength=len(fitted.names)))
    number_of = np.full(len(fitted.names), -1, dtype=np.int64)
    number_of[known] = np.arange(len(known))
    rows = np.concatenate([sides.train, sides.validation])
    cache, _ = decode_once(
        [refs[row] for row in rows.tolist()],
        config.data,
        workspace,
        progress,
        size=config.cache_size,
        alone=True,
        preprocess=parent.preprocess,
    )
    if cache.bad:
        raise DataError(f"{cache.bad[0]}: it could be read a moment ago; repeat the command")
    targets = number_of[fitted.targets[rows]]
    places = np.arange(len(rows))
    lesson = Lesson(cache, targets, places[: len(sides.train)], places[len(sides.train) :])
    torch.manual_seed(config.seed)
    vit = start_vit(parent, img_size=config.img_size, drop_path_rate=config.model.drop_path_rate)
    outcome = fit(
        config,
        lesson,
        run_dir,
        vit=vit,
        head=start_head(config, report, parent, sides.train, vit.config.embed_dim),
        preprocess=preprocess_at(parent, config.img_size),
        class_weights=balanced(targets[: len(sides.train)]) if config.labels.class_weight == "balanced" else None,
        checkpoint=checkpoint,
        started=started,
        reserved=reserved,
        show=progress,
    )
    return outcome, lesson


def start_head(
    config: FinetuneConfig,
    report: ProbeReport,
    parent: SavedModel,
    train: Int[np.ndarray, " t"],
    embed_dim: int,
) -> StandardHead:
    """The head before training: a linear one answers as a linear probe does, an MLP is random.

    The probe is fitted anew, with the penalty that the report's found: that one has seen the validation images, which
    would then praise the very first epoch.

    Args:
        config: The run.
        report: Of the frozen encoder.
        parent: The encoder; vectors that are not its cls vectors (another pool) say nothing of the head's input.
        train: Rows of the report that are learned from.
        embed_dim: Width of a cls vector.
    """
    vectors, targets = report.fitted.vectors[train], report.fitted.targets[train]
    num_classes = len(np.unique(targets))
    hidden_dim = (config.model.head_hidden_dim or embed_dim) if config.model.head == "mlp" else None
    if parent.pool != "cls":
        return StandardHead(torch.zeros(embed_dim), torch.ones(embed_dim), num_classes, hidden_dim)
    scale = vectors.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6] = 1.0
    mean = vectors.mean(axis=0, dtype=np.float64)
    head = StandardHead(torch.from_numpy(mean), torch.from_numpy(scale), num_classes, hidden_dim)
    if hidden_dim is None:
        head.start_from(LinearProbe(C=report.C).fit(vectors, targets))
    return head


def balanced(targets: np.ndarray) -> Float[torch.Tensor, " c"]:
    """Weights by which every class counts the same: n / (classes x images of the class), as scikit-learn's."""
    counts = np.bincount(targets)
    return torch.from_numpy(len(targets) / (len(counts) * counts)).float()


def tested(
    config: FinetuneConfig, outcome: FitOutcome, report: ProbeReport, refs: Sequence[ImageRef], parent: SavedModel
) -> tuple[Encoder, SavedProbe, Float[np.ndarray, "m c"]]:
    """The fine-tuned encoder, the classifier on its vectors, and what it says of the test images.

    The test images go the way that ``vitembed classify`` sends images: decoded anew, embedded, through the saved head.

    Args:
        config: The run.
        outcome: How training ended.
        report: Of the frozen encoder.
        refs: The report's images.
        parent: The encoder that the run started from.

    Returns:
        The encoder; the classifier, without threshold yet; probabilities of all classes, 0 for those not learned.

    Raises:
        DataError: If a test image cannot be read any more.
    """
    fitted = report.fitted
    encoder = Encoder(
        outcome.classifier.vit, preprocess_at(parent, config.img_size), name="fine-tuned", device=device_of(config)
    )
    embeddings = encoder.embed([refs[row].path for row in fitted.test.tolist()])
    coef, intercept, hidden = as_arrays(outcome.classifier.head)
    known = np.unique(fitted.targets[~fitted.is_test])
    probe = SavedProbe(
        classes=[fitted.names[number] for number in known.tolist()],
        coef=coef,
        intercept=intercept,
        hidden=hidden,
        fingerprint=encoder.fingerprint,
        threshold=None,
    )
    probabilities = np.zeros((len(fitted.test), len(fitted.names)))
    probabilities[:, known] = probe.predict_proba(embeddings.vectors)
    return encoder, probe, probabilities


def device_of(config: FinetuneConfig) -> torch.device:
    """Where vectors are made: where the run trains."""
    accelerator = config.trainer.accelerator
    return resolve_device({"gpu": "cuda"}.get(accelerator, accelerator))
