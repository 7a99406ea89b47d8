"""Our own recipes: the product's training module under a budget of CPU time instead of the wall clock's."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import pytorch_lightning as pl
import torch

from vitembed.config import PretrainConfig
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.batches import BatchStream
from vitembed.pretrain.finish import finished, num_looked_at, whiten_share
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.schedule import Clock

# A term taken away, as in ``ours:nano~no-patch``.
ABLATIONS: dict[str, list[str]] = {
    "no-patch": ["objective.patch_weight=0"],
    "no-mask": ["objective.mask_ratio=0", "objective.local_mask_ratio=0", "objective.patch_weight=0"],
    "no-spread": ["objective.spread=info_nce", "objective.contrast_weight=0"],
    "no-cls": ["objective.spread=none", "objective.contrast_weight=0", "objective.num_local_views=0"],
}


class CpuClock(Clock):
    """The run's clock by the CPU time of this process."""

    def start(self) -> None:
        """Begin to count."""
        self.started = time.process_time()

    def elapsed(self) -> float:
        """CPU-seconds spent in training."""
        return time.process_time() - self.started if self.started else 0.0


class EndOfBudget(pl.Callback):
    """Starts the clock with the first step and stops when it has run out."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.clock.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        if self.clock.progress(trainer.global_step) >= 1.0:
            trainer.should_stop = True


def train_ours(
    config: PretrainConfig, cache: ImageCache, seconds: float, *, lr_scale: float = 1.0, max_steps: int | None = None
) -> tuple[dict[str, VisionTransformer], dict[str, Any]]:
    """Train for ``seconds`` of this process's CPU time; the encoders to score, and facts about the run.

    Raises:
        FloatingPointError: If the loss is no number at the end.
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    pl.seed_everything(config.seed, verbose=False)
    stream = BatchStream(cache, batch_size=config.optim.batch_size, seed=config.seed)
    preprocess, share = Preprocess(img_size=config.model.img_size), whiten_share(config, None)
    vit = VisionTransformer(config.model.vit())
    begun = time.process_time()
    finished(vit.eval(), cache, preprocess, share=share, num_images=256)
    num = num_looked_at(vit.config, cache, torch.device("cpu"))
    seconds -= (time.process_time() - begun) * min(num, len(cache)) / min(256, len(cache))  # paid for at the end
    clock = CpuClock(max_steps=max_steps, budget_seconds=seconds)
    module = PretrainModule(config, vit.train(), effective_batch_size=stream.batch_size, clock=clock)
    module.peak_lr *= lr_scale
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=-1,
        max_epochs=-1,
        gradient_clip_val=config.optim.grad_clip,
        callbacks=[EndOfBudget(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, stream)
    spent, output = clock.elapsed(), module.last_output
    if output is None or not bool(torch.isfinite(output.loss)):
        raise FloatingPointError(f"the loss is not finite after {trainer.global_step} steps")
    facts: dict[str, Any] = {
        "steps": trainer.global_step,
        "images": trainer.global_step * stream.batch_size,
        "cpu_seconds": spent,
        "loss": float(output.loss.detach()),
    }
    terms = {f"loss_{name}": float(term) for name, term in output.terms.items()}
    vit = finished(module.export_vit().eval(), cache, preprocess, share=share)
    return {"vit": vit}, {**facts, **terms}
