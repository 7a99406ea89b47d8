"""Whether a continued run is better than the unchanged model, and what is kept if it is not."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from vitembed.config import AdaptConfig
from vitembed.model.checkpoint import SavedModel, save_model
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.watch.best import Best, Look, judged_by, merit
from vitembed.pretrain.watch.metrics_file import append_metrics

log = logging.getLogger("vitembed")


@dataclass(frozen=True)
class Decision:
    """What a continued run leaves: the trained encoder, an earlier state of it, or the model it started from."""

    kept: str
    """last, best or frozen."""
    words: str
    """Why, in one line."""
    frozen: Look
    """Scores of the unchanged model."""
    final: Look
    """Scores at the end."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {"kept": self.kept, "words": self.words, "frozen": self.frozen, "final": self.final}


class FrozenGuard(pl.Callback):
    """Compares every look of the monitors with the unchanged model, and ends a run that only gets worse.

    The first look, before any training, is that of the unchanged model. All that is remembered are the looks, which
    travel in the training checkpoint.

    Args:
        best: The looks of the monitors; they come before this callback.
        config: When to stop.
        directory: Run folder; the scores of the unchanged model become the first line of ``metrics.jsonl``.
    """

    def __init__(self, best: Best, config: AdaptConfig, directory: Path) -> None:
        self.best = best
        self.config = config
        self.directory = directory
        self.num_seen = 0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Say what is to be beaten, before the first step."""
        if trainer.global_step == 0 and trainer.is_global_zero and self.best.looks:
            frozen = self.best.looks[0]
            log.info("frozen model, before any training: %s", _in_words(frozen))
            append_metrics(self.directory, {**frozen, "monitor_step": 0, "elapsed_seconds": 0.0, "model": "frozen"})
        self.num_seen = len(self.best.looks)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Judge a new look; end the run on every process if this one was too much."""
        assert isinstance(module, PretrainModule)
        stop = False
        if trainer.is_global_zero and len(self.best.looks) > self.num_seen:
            self.num_seen = len(self.best.looks)
            stop = self.is_too_much(module.clock.progress(trainer.global_step))
        if trainer.world_size > 1:
            stop = bool(trainer.strategy.broadcast(stop))
        if stop:
            module.clock.ended = True  # saving and ending follow from it

    def is_too_much(self, progress: float) -> bool:
        """Whether the newest look is one too many that is worse; said in the log."""
        merits = [merit(look, self.best.max_rank) for look in self.best.looks]
        row = worse_in_a_row(merits, self.config.tolerance)
        if row == 0 or progress >= 1.0:
            return False
        log.warning(
            "check at step %d: worse than the frozen model (%s %.4g, frozen %.4g), %d of %d until the run stops",
            self.best.looks[-1]["step"],
            judged_by(self.best.looks[-1]),
            merits[-1],
            merits[0],
            row,
            self.config.patience,
        )
        return row >= self.config.patience


def parentage(parent: SavedModel) -> dict[str, Any]:
    """What the provenance of a continued model says of the one it came from."""
    facts = {"fingerprint": parent.fingerprint, "licence": parent.licence, "provenance": parent.provenance}
    return {"parent": facts}


def worse_in_a_row(merits: Sequence[float], tolerance: float) -> int:
    """How many of the newest checks in a row were worse than the frozen model by more than the tolerance.

    Args:
        merits: The frozen model's first, then those of the checks.
        tolerance: Share of the frozen model's.
    """
    floor = merits[0] * (1.0 - tolerance)
    row = 0
    for value in merits[:0:-1]:
        if value >= floor:
            break
        row += 1
    return row


def decide(best: Best, *, prefer_best: bool = False) -> Decision | None:
    """What to keep of a continued run that is over; none if nobody looked (on a process that does not).

    The end counts if it is as good as the frozen model; else the best check if it is better; else the frozen model.

    Args:
        best: All looks, the frozen model's first; a last one before the end means that the guard ended the run.
        prefer_best: Keep the best check even if the end is as good as the frozen model.
    """
    if len(best.looks) < 2:
        return None
    frozen, final = best.looks[0], best.looks[-1]
    before, after = merit(frozen, best.max_rank), merit(final, best.max_rank)
    measure = judged_by(final)
    scores = f"{measure} {after:.4g} at the end (step {final['step']}), {before:.4g} frozen"
    chosen = best.look() if best.step else None  # a best at step 0 is the frozen model itself
    early = "stopped early as it only got worse; " if final["progress"] < 1.0 else ""
    if after >= before and not (prefer_best and chosen is not None):
        return Decision("last", f"the trained model is kept: {scores}", frozen, final)
    if chosen is not None and merit(chosen, best.max_rank) > before:
        peak = f"{merit(chosen, best.max_rank):.4g} at step {chosen['step']}"
        words = f"{early}the best state of the run is kept ({measure} {peak}): {scores}"
        return Decision("best", words, frozen, final)
    return Decision("frozen", f"{early}the frozen model is kept unchanged: {scores}", frozen, final)


def conclude(module: PretrainModule, best: Best, *, completed: bool) -> tuple[VisionTransformer, Decision | None]:
    """The encoder of a run on the CPU, and for a continued run that is over the decision on it."""
    vit = module.export_vit().cpu().eval()
    if module.adaptation is None or not completed:
        return vit, None
    decision = decide(best, prefer_best=module.config.monitor.export == "best")
    if decision is not None and decision.kept == "best":
        chosen = best.vit(vit.config)
        assert chosen is not None
        vit = chosen
    return vit, decision


def _in_words(look: Look) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in look.items() if name not in ("step", "progress"))


def save_continued(
    directory: Path,
    vit: VisionTransformer,
    parent: SavedModel,
    decision: Decision | None,
    facts: Mapping[str, Any],
) -> Path:
    """Write the model folder of a continued run: its encoder, or the parent bit for bit where that is kept.

    Preprocessing, pooling and licence are the parent's; the provenance names it and says what was kept and why.

    Args:
        directory: Where the folder shall be.
        vit: The encoder of the run, or its best state.
        parent: The model that the run started from.
        decision: Which of them is kept; none: ``vit``.
        facts: Provenance of the run.
    """
    provenance = {**facts, **parentage(parent)}
    if decision is not None:
        provenance["decision"] = decision.to_dict()
    preprocess = dataclasses.replace(parent.preprocess, img_size=vit.config.img_size)
    if decision is not None and decision.kept == "frozen":
        vit, preprocess = parent.vit, parent.preprocess
    return save_model(directory, vit, preprocess, pool=parent.pool, provenance=provenance, licence=parent.licence)
