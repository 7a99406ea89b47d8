"""What every training run here has in common: a clock, a guard against steps that are no number, rates by progress.

``keep/`` and ``watch/`` know a run by this class alone, whatever it learns.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from vitembed.config import FinetuneConfig, PretrainConfig
from vitembed.pretrain.keep.nonfinite import Guard
from vitembed.pretrain.objective import ObjectiveOutput
from vitembed.pretrain.schedule import Clock, lr_factor, scaled_lr
from vitembed.pretrain.seeding import seed_step

RunConfig = PretrainConfig | FinetuneConfig
"""Settings of any run: all have ``optim``, ``trainer``, ``seed`` and ``time_budget_seconds``."""


class TrainingModule(pl.LightningModule):
    """The part of a training step that does not depend on what is learned.

    Args:
        config: The run.
        effective_batch_size: Images per step over all processes; rates and momenta follow it.
        clock: Tells how far the run is.
    """

    config: RunConfig

    def __init__(self, config: RunConfig, *, effective_batch_size: int, clock: Clock) -> None:
        super().__init__()
        self.config = config
        self.effective_batch_size = effective_batch_size
        self.peak_lr = scaled_lr(config.optim, effective_batch_size)
        self.clock = clock
        self.last_output: ObjectiveOutput | None = None
        self.guard = Guard()

    def step_generator(self) -> torch.Generator:
        """Seed the coming step: all its randomness follows from the seed, the step and the rank.

        Returns:
            A generator on this device; stochastic depth draws from the global one, which is seeded alike.
        """
        return seed_step(hash((self.config.seed, self.global_step, self.global_rank)) % 2**63, self.device)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate of the coming step."""
        # The first step must move too: progress is that after the step.
        factor = lr_factor(
            self.shared_progress(self.global_step + 1),
            warmup_share=self.config.optim.warmup_share,
            min_ratio=self.config.optim.min_lr_ratio,
        )
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.peak_lr * factor * group.get("lr_scale", 1.0)

    def shared_progress(self, step: int) -> float:
        """Progress of the run, the same on every process even where it follows a clock (``agree.py``)."""
        return self.clock.progress(step)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Clip the gradient; one that is no number never reaches the weights."""
        self.guard.clip(self, optimizer)

    def check_finite(self) -> None:
        """Stop a run whose loss is no number any more.

        Raises:
            TrainingError: With the step and the terms.
        """
        self.guard.check(self)

    def adamw(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW over parameter groups, fused where that works."""
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        return torch.optim.AdamW(groups, lr=self.peak_lr, betas=self.config.optim.betas, fused=fused)

    def replay_facts(self) -> dict[str, Any]:
        """What ``replay`` must know beside settings and weights to make a step again; JSON-safe."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time already spent."""
        checkpoint["elapsed_seconds"] = self.clock.elapsed()
        checkpoint["ended"] = self.clock.ended

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.clock.spent_before = float(checkpoint["elapsed_seconds"])
        self.clock.ended = bool(checkpoint.get("ended", False))
