"""What a person can look at while the encoder learns: scores and pictures at a few points of the run.

Most of it needs no labels, and none of it changes the run: the monitors draw from generators of their own, put the
global ones back, and leave every module in the mode in which they found it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from vitembed.config import PretrainConfig
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import whitened, whitened_vectors
from vitembed.pretrain.finish import finished, same_weights
from vitembed.pretrain.keep.disk import spared
from vitembed.pretrain.keep.files import BEST_DIR, PICTURES_DIR
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.schedule import Clock
from vitembed.pretrain.watch.best import Best, Look
from vitembed.pretrain.watch.history import Context
from vitembed.pretrain.watch.labelled import LabelledPool
from vitembed.pretrain.watch.pool import Encode, Pool
from vitembed.pretrain.watch.scores import mean_cosine, rankme, view_retrieval
from vitembed.pretrain.watch.sheets import neighbour_sheet, reconstruction_sheet

_NUM_RECONSTRUCTED = 8
MAX_TIME_SHARE = 0.15
"""Of a run with a time budget, what looking may take: twenty looks of 7 s left a run of three minutes a third of it."""


class Monitors(pl.Callback):
    """Scores and pictures at the start of a run, before anything is learned, and at a few points of it up to the end.

    Args:
        config: The run.
        cache: Where the images come from.
        directory: Run folder; pictures go to ``pictures/`` in it, the best encoder to ``best/``.
        preprocess: How the exported encoder sees images.
        labelled: Images with labels to judge by; none: do without.
        facts: What is said of the run in the model folder of the best encoder.
        whiten: How far the exported cls vector is whitened; k-NN and neighbours are those of such vectors.
        kin: What else goes into the model folder of the best encoder: pool and licence.
    """

    def __init__(
        self,
        config: PretrainConfig,
        cache: ImageCache,
        directory: Path,
        *,
        preprocess: Preprocess,
        labelled: LabelledPool | None = None,
        facts: dict[str, Any] | None = None,
        whiten: float = 0.0,
        kin: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        self.kin = kin or {}
        self.cache = cache
        self.whiten = whiten
        self.directory = directory
        self.num_times = config.trainer.num_pictures
        self.preprocess = preprocess
        self.pool = Pool.held_out(cache, max(2, config.data.holdout), preprocess)
        self.labelled = labelled
        self.facts = facts or {}
        self.due = 1
        self.best = Best(max_rank=max(1, min(len(self.pool) - 1, config.model.vit().embed_dim)))
        """All points looked at so far, and the best encoder among them; kept on the first process only."""
        self.seconds = 0.0
        """Time that looking and reporting took, in this process."""

    @property
    def latest(self) -> Look:
        """Scores of the newest point; empty before there is one."""
        return self.best.looks[-1] if self.best.looks else {}

    def context(self) -> Context:
        """What the alarms must know of the run."""
        num_queries = self.labelled.num_queries if self.labelled is not None else 0
        return Context(self.config, len(self.pool), self.best.max_rank, num_queries)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip what an earlier part of the run has shown already."""
        assert isinstance(pl_module, PretrainModule)
        self.due = 1 + int(pl_module.clock.progress(trainer.global_step) * self.num_times)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Look at the encoder before it has learned anything: what all later points are compared with."""
        assert isinstance(pl_module, PretrainModule)
        if self.num_times and trainer.global_step == 0:
            self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        """Look when the next point of the run is reached."""
        assert isinstance(pl_module, PretrainModule)
        progress = pl_module.shared_progress(trainer.global_step)
        is_due = self.num_times and progress * self.num_times >= self.due
        if is_due and (progress >= 1.0 or not self.costs_too_much(pl_module.clock, trainer.world_size)):
            self.due = 1 + int(progress * self.num_times)
            pl_module.check_finite()
            self.look(trainer, pl_module)

    def costs_too_much(self, clock: Clock, world_size: int) -> bool:
        """Whether a run that has so much time and no more must first train on before it is looked at again.

        Not asked of several processes, which must agree on when to look.
        """
        limited = clock.budget_seconds is not None and world_size == 1
        return limited and self.seconds > MAX_TIME_SHARE * clock.elapsed()

    def look(self, trainer: pl.Trainer, module: PretrainModule) -> None:
        """Compute the scores, write the pictures, and keep the encoder if it is the best so far."""
        start = time.perf_counter()
        cuda = [module.device] if module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda), torch.no_grad():
            whole = gathered(trainer, module)
            if whole is not None:
                self.look_at(whole, trainer.global_step)
        self.seconds += time.perf_counter() - start

    def look_at(self, module: PretrainModule, step: int) -> None:
        """Do so on the first process.

        Args:
            module: With all its weights.
            step: Steps done.
        """
        vit = module.export_vit()
        with undisturbed(module, vit):
            encode = Encode(vit, module.mean, module.std)
            vectors = self.pool.vectors(encode)
            look: Look = {
                "step": step,
                "progress": round(module.clock.progress(step), 5),
                **self.scores(vectors, encode, module),
            }
            with spared(self.directory / PICTURES_DIR):
                self.draw(whitened_vectors(vectors, self.whiten), module, step)
        if self.best.add(look, vit, candidate=step > 0 or module.adaptation is not None):
            best = self.best.vit(vit.config)
            assert best is not None
            best = whitened(best, vectors, self.whiten)
            with spared(self.directory / BEST_DIR):  # its weights are in the training state too
                self.best.save(self.directory / BEST_DIR, best, self.preprocess, self.facts, **self.kin)

    def scores(self, vectors: torch.Tensor, encode: Encode, module: PretrainModule) -> dict[str, float]:
        """All scores of an encoder.

        Args:
            vectors: Its cls vectors of the pool, as it is trained, [n, d].
            encode: The encoder.
            module: Whose augmentation makes the views.
        """
        found = {
            "rankme": rankme(vectors - vectors.mean(dim=0)),
            "view_retrieval": view_retrieval(*self.pool.view_vectors(encode, module.config.augment)),
            "mean_cosine": mean_cosine(vectors),
        }
        return {**found, **(self.labelled.scores(encode, whiten=self.whiten) if self.labelled is not None else {})}

    def draw(self, vectors: torch.Tensor, module: PretrainModule, step: int) -> None:
        """Write the sheets of this point."""
        pictures = self.directory / PICTURES_DIR
        pictures.mkdir(parents=True, exist_ok=True)
        neighbour_sheet(self.pool.images(), vectors).save(pictures / f"neighbours-{step:07d}.png")
        if module.objective.decoder is None or module.config.objective.patch_target != "pixels":
            return
        chosen = slice(None, None, max(1, len(self.pool) // _NUM_RECONSTRUCTED))
        whole = self.pool.whole(chosen)[:_NUM_RECONSTRUCTED].to(module.device)
        generator = torch.Generator(device=module.device).manual_seed(0)
        sheet = reconstruction_sheet(module, (whole - module.mean) / module.std, generator)
        sheet.save(pictures / f"reconstruction-{step:07d}.png")

    def conclude(
        self, vit: VisionTransformer, kept: str | None
    ) -> tuple[VisionTransformer, tuple[dict[str, Any], dict[str, Any]]]:
        """The encoder to export; what was seen of the run, and where the encoder stands in it, as JSON.

        Args:
            vit: The last one, or what was chosen already.
            kept: What that is, if it was chosen (last, best, frozen); none: ``monitor.export`` decides.
        """
        if kept is None:
            kept, best = "last", self.best.vit(vit.config)
            if self.config.monitor.export == "best" and best is not None:
                kept, vit = "best", best
        seen = {
            "looks": self.best.looks,
            "best_step": self.best.step,
            "majority": self.labelled.majority if self.labelled is not None else None,
            "exported": kept,
        }
        return vit, (seen, self.best.provenance(kept))

    def finished(self, vit: VisionTransformer, device: torch.device) -> VisionTransformer:
        """The encoder to export, on the CPU, its cls vector whitened on the run's images; the best one alike.

        Args:
            vit: What was concluded on.
            device: Where it runs meanwhile.
        """
        done = finished(vit, self.cache, self.preprocess, share=self.whiten, device=device)
        best = self.best.vit(vit.config)
        if done is not vit and best is not None:  # so far whitened on the few images of the pool
            if not same_weights(best, vit):
                done_best = finished(best, self.cache, self.preprocess, share=self.whiten, device=device)
            else:
                done_best = done
            with spared(self.directory / BEST_DIR):
                self.best.save(self.directory / BEST_DIR, done_best, self.preprocess, self.facts, **self.kin)
        return done

    def state_dict(self) -> dict[str, Any]:
        """Points and best weights, for the training checkpoint."""
        return self.best.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.best.load_state_dict(state_dict)


def gathered(trainer: pl.Trainer, module: PretrainModule) -> PretrainModule | None:
    """The module with all its weights on the first process, none on the others; a copy where they are spread (FSDP)."""
    if module.config.trainer.strategy != "fsdp":
        return module if trainer.is_global_zero else None
    state = trainer.strategy.lightning_module_state_dict()  # every process takes part
    if not trainer.is_global_zero:
        return None
    start = VisionTransformer(module.config.model.vit()) if module.adaptation is None else module.adaptation.start()
    copy = PretrainModule(
        module.config,
        start,
        effective_batch_size=module.effective_batch_size,
        clock=module.clock,
        adaptation=module.adaptation,
    )
    copy.load_state_dict(state)
    return copy.to(module.device)


@contextlib.contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Modules in evaluation mode and not compiled; afterwards every part is in the mode that it had.

    Args:
        modules: All that will be called.
    """
    modes = {part: part.training for module in modules for part in module.modules()}
    for module in modules:
        module.eval()
    try:
        with torch.compiler.set_stance("force_eager"):  # other sizes and modes than in training would be compiled anew
            yield
    finally:
        for part, training in modes.items():
            part.training = training
