"""The LightningModule: views on the device, the objective, AdamW."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from vitembed.config import PretrainConfig
from vitembed.images.augment import random_views
from vitembed.images.preprocess import Preprocess
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.batches import ImageBatch
from vitembed.pretrain.keep.nonfinite import Guard
from vitembed.pretrain.objective import MaskedViews, ObjectiveOutput
from vitembed.pretrain.onward.lora import merge_lora
from vitembed.pretrain.schedule import Clock, lr_factor, scaled_lr, scaled_weight_decay
from vitembed.pretrain.seeding import seed_step
from vitembed.pretrain.teacher import Ema, average_momentum, teacher_momentum

if TYPE_CHECKING:
    from vitembed.pretrain.onward.adapt import Adaptation


class PretrainModule(pl.LightningModule):
    """One training step of ``vitembed pretrain``.

    Args:
        config: The run.
        vit: The encoder to train.
        effective_batch_size: Images per step over all processes; rates and momenta follow it.
        clock: Tells how far the run is.
        adaptation: The model that the run goes on from, if it does.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: PretrainConfig,
        vit: VisionTransformer,
        *,
        effective_batch_size: int,
        clock: Clock,
        adaptation: Adaptation | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vit = vit
        self.objective = MaskedViews(vit, config.objective)
        self.average = Ema(vit) if config.optim.export_ema > 0 else None
        self.effective_batch_size = effective_batch_size
        self.peak_lr = scaled_lr(config.optim, effective_batch_size)
        self.clock = clock
        self.adaptation = adaptation
        self.last_output: ObjectiveOutput | None = None
        self.guard = Guard()
        # What the encoder's preprocessing will apply again when it embeds.
        preprocess = adaptation.preprocess if adaptation else Preprocess(img_size=config.model.img_size)
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, -1, 1, 1), persistent=False)

    def export_vit(self) -> VisionTransformer:
        """The encoder that is judged and exported: the average of its weights where one is kept."""
        if self.average is None:
            return merge_lora(self.vit)
        averaged = self.average.module
        assert isinstance(averaged, VisionTransformer)
        return merge_lora(averaged)

    def views(
        self, batch: ImageBatch, generator: torch.Generator, *, img_size: int | None = None, local: bool = False
    ) -> Tensor:
        """Normalised random views of a batch, float32 [v, b, c, h, w], whatever the precision of the run.

        Args:
            batch: Whole images on this device.
            generator: Source of randomness there.
            img_size: Side of a view; none: that of the model, or of a local view.
            local: Make the local views of multi-crop instead of the global ones.
        """
        objective, augment = self.config.objective, self.config.augment
        count = objective.num_local_views if local else objective.num_views
        if local:
            augment = dataclasses.replace(augment, crop_scale=augment.local_crop_scale)
        side = img_size or (self.config.local_img_size if local else self.config.model.img_size)
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            made = [
                random_views(batch["images"], batch["aspect"], augment, img_size=side, generator=generator)
                for _ in range(count)
            ]
            return torch.stack([view.sub_(self.mean).div_(self.std) for view in made])

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Loss of a batch; all randomness follows from the seed, the step and the rank."""
        seed = hash((self.config.seed, self.global_step, self.global_rank)) % 2**63
        generator = seed_step(seed, self.device)  # stochastic depth draws from the global generator
        side = self.config.model.img_size
        if self.shared_progress(self.global_step) < self.config.optim.low_res_share:
            side = self.config.low_res_img_size
        views = self.views(batch, generator, img_size=side)
        local_views = self.views(batch, generator, local=True) if self.config.objective.num_local_views else None
        self.last_output = self.objective(views, generator, local_views)
        if self.adaptation is not None:
            self.last_output = self.adaptation.with_anchor(self.last_output, views)
        return self.last_output.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step, then let the slow copies follow: before any callback looks or saves."""
        super().optimizer_step(*args, **kwargs)
        step, size = self.global_step + 1, self.effective_batch_size  # Lightning counts the step only afterwards
        if self.config.objective.teacher:
            start, progress = self.config.objective.teacher_momentum, self.shared_progress(step)
            self.objective.update_teacher(teacher_momentum(start, progress, effective_batch_size=size))
        if self.average is not None:
            momentum = average_momentum(self.config.optim.export_ema, step, effective_batch_size=size)
            self.average.update(self.vit, momentum)

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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on the matrices alone."""
        optim = self.config.optim
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        groups = parameter_groups(self.objective, scaled_weight_decay(optim, self.effective_batch_size))
        if self.adaptation is not None:
            groups = self.adaptation.split_groups(groups, self.vit)
        return torch.optim.AdamW(groups, lr=self.peak_lr, betas=optim.betas, fused=fused)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the time already spent."""
        checkpoint["elapsed_seconds"] = self.clock.elapsed()
        checkpoint["ended"] = self.clock.ended

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting from there."""
        self.clock.spent_before = float(checkpoint["elapsed_seconds"])
        self.clock.ended = bool(checkpoint.get("ended", False))


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
