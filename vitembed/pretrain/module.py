"""The LightningModule: views on the device, the objective, AdamW."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vitembed.config import PretrainConfig
from vitembed.errors import TrainingError
from vitembed.images.augment import random_views
from vitembed.images.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.batches import ImageBatch
from vitembed.pretrain.objective import MaskedViews, ObjectiveOutput
from vitembed.pretrain.schedule import Clock, lr_factor


class PretrainModule(pl.LightningModule):
    """One training step of ``vitembed pretrain``.

    Args:
        config: The run.
        vit: The encoder to train.
        peak_lr: Highest learning rate.
        clock: Tells how far the run is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PretrainConfig, vit: VisionTransformer, *, peak_lr: float, clock: Clock) -> None:
        super().__init__()
        self.config = config
        self.vit = vit
        self.objective = MaskedViews(vit, config.objective)
        self.peak_lr = peak_lr
        self.clock = clock
        self.last_output: ObjectiveOutput | None = None
        # What the encoder's preprocessing will apply again when it embeds.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, -1, 1, 1), persistent=False)

    def views(self, batch: ImageBatch, generator: torch.Generator) -> Tensor:
        """Normalised random views of a batch, float32 [v, b, c, h, w], whatever the precision of the run."""
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            made = [
                random_views(
                    batch["images"],
                    batch["aspect"],
                    self.config.augment,
                    img_size=self.config.model.img_size,
                    generator=generator,
                )
                for _ in range(self.config.objective.num_views)
            ]
            return torch.stack([(view - self.mean) / self.std for view in made])

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Loss of a batch; all randomness follows from the seed, the step and the rank."""
        seed = hash((self.config.seed, self.global_step, self.global_rank)) % 2**63
        torch.manual_seed(seed)  # stochastic depth draws from the global generator
        generator = torch.Generator(device=self.device).manual_seed(seed)
        self.last_output = self.objective(self.views(batch, generator), generator)
        return self.last_output.loss

    def on_train_batch_start(self, batch: ImageBatch, batch_idx: int) -> None:
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
            group["lr"] = self.peak_lr * factor

    def shared_progress(self, step: int) -> float:
        """Progress of the run, the same on every process even where it follows a clock."""
        progress = self.clock.progress(step)
        if self.trainer.world_size > 1:
            progress = float(self.trainer.strategy.broadcast(progress))
        return progress

    def check_finite(self) -> None:
        """Stop a run whose loss is no number any more.

        Raises:
            TrainingError: With the step and the terms.
        """
        output = self.last_output
        if output is not None and not bool(torch.isfinite(output.loss)):
            terms = ", ".join(f"{name} {float(term):.4g}" for name, term in output.terms.items())
            loss = float(output.loss.detach())
            raise TrainingError(
                f"the loss is {loss} at step {self.global_step} ({terms}): the run stops and the last "
                "good state is kept. Lower optim.base_lr or optim.grad_clip"
                + (", or set trainer.precision=32-true" if "16" in str(self.trainer.precision) else "")
                + ", and start again with --fresh"
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on the matrices alone."""
        optim = self.config.optim
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        return torch.optim.AdamW(
            parameter_groups(self.objective, optim.weight_decay), lr=self.peak_lr, betas=optim.betas, fused=fused
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time already spent."""
        checkpoint["elapsed_seconds"] = self.clock.elapsed()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.clock.spent_before = float(checkpoint["elapsed_seconds"])


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay; norms, biases, tokens and positions without."""
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        token = name.split(".")[-1] in ("cls_token", "reg_token", "mask_token", "pos_embed")
        (no_decay if parameter.ndim < 2 or token else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
