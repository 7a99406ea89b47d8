"""The LightningModule: views on the device, the objective, AdamW."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitembed.config import PretrainConfig
from vitembed.images.augment import random_views
from vitembed.images.preprocess import Preprocess
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.batches import ImageBatch
from vitembed.pretrain.many.names import num_axes, plain_name
from vitembed.pretrain.objective import MaskedViews
from vitembed.pretrain.onward.lora import merge_lora
from vitembed.pretrain.schedule import Clock, scaled_weight_decay
from vitembed.pretrain.teacher import Ema, average_momentum, teacher_momentum
from vitembed.pretrain.training_module import TrainingModule

if TYPE_CHECKING:
    from vitembed.pretrain.onward.adapt import Adaptation


class PretrainModule(TrainingModule):
    """One training step of ``vitembed pretrain``.

    Args:
        config: The run.
        vit: The encoder to train.
        effective_batch_size: Images per step over all processes; rates and momenta follow it.
        clock: Tells how far the run is.
        adaptation: The model that the run goes on from, if it does.
    """

    config: PretrainConfig
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
        super().__init__(config, effective_batch_size=effective_batch_size, clock=clock)
        self.objective = MaskedViews(vit, config.objective)
        self.num_axes = num_axes(self.objective)
        self.average = Ema(vit) if config.optim.export_ema > 0 else None
        self.adaptation = adaptation
        # What the encoder's preprocessing will apply again when it embeds.
        preprocess = (
            adaptation.preprocess if adaptation else Preprocess(img_size=config.model.img_size, depth=config.data.depth)
        )
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, -1, 1, 1), persistent=False)

    @property
    def vit(self) -> VisionTransformer:
        """The encoder that learns. A part of ``objective`` alone: FSDP wraps a module in one place only."""
        return self.objective.vit

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there; states of before version 0.1 hold the encoder twice."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("state_dict", {})
        for name in [name for name in state if name.startswith("vit.")]:
            del state[name]

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
        generator = self.step_generator()
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

    def replay_facts(self) -> dict[str, Any]:
        """How far the patch loss had risen."""
        return {"patch_scale": float(self.objective.patch_scale)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on the matrices alone."""
        optim = self.config.optim
        weight_decay = scaled_weight_decay(optim, self.effective_batch_size)
        groups = parameter_groups(self.objective, weight_decay, self.num_axes)
        if self.adaptation is not None:
            groups = self.adaptation.split_groups(groups, self.vit)
        return self.adamw(groups)


def parameter_groups(
    module: nn.Module, weight_decay: float, axes: Mapping[str, int] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay; norms, biases, tokens and positions without.

    Args:
        module: Whose parameters.
        weight_decay: Of the first group.
        axes: How many each parameter has, where it may be kept as a flat part by now; none: as it is.
    """
    axes = num_axes(module) if axes is None else axes
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for full_name, parameter in module.named_parameters():
        name = plain_name(full_name)
        if not parameter.requires_grad:
            continue
        token = name.split(".")[-1] in ("cls_token", "reg_token", "mask_token", "pos_embed")
        (no_decay if axes[name] < 2 or token else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
