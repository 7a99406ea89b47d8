"""The training step of fine-tuning: a view of each image, mixed with another, through encoder and head."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitembed.config import FinetuneConfig
from vitembed.images.augment import random_views
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import with_cls_proj
from vitembed.pretrain.module import parameter_groups
from vitembed.pretrain.objective import ObjectiveOutput
from vitembed.pretrain.onward.adapt import backbone_ramp, layer_id, split_by_scale, started_from, warmup_end
from vitembed.pretrain.schedule import Clock, scaled_weight_decay
from vitembed.pretrain.supervised.head import StandardHead
from vitembed.pretrain.supervised.mixing import draw_mix, mix_images, mix_targets
from vitembed.pretrain.supervised.stream import LabelledBatch
from vitembed.pretrain.teacher import Ema, average_momentum
from vitembed.pretrain.training_module import TrainingModule


class Network(nn.Module):
    """Encoder and head together.

    Args:
        vit: The encoder.
        head: What reads its cls vector.
    """

    def __init__(self, vit: VisionTransformer, head: StandardHead) -> None:
        super().__init__()
        self.vit = vit
        self.head = head

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Class scores of normalised images."""
        logits: Tensor = self.head(self.vit(pixels).cls)
        return logits


class FinetuneModule(TrainingModule):
    """One training step of ``vitembed finetune``.

    Args:
        config: The run.
        network: What is trained.
        preprocess: Whose mean and std normalise pixels: the encoder's own.
        class_weights: Weight of each class in the loss; none: all 1.
        effective_batch_size: Images per step.
        clock: Tells how far the run is.
    """

    config: FinetuneConfig
    mean: Tensor
    std: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        config: FinetuneConfig,
        network: Network,
        *,
        preprocess: Preprocess,
        class_weights: Float[Tensor, " c"] | None,
        effective_batch_size: int,
        clock: Clock,
    ) -> None:
        super().__init__(config, effective_batch_size=effective_batch_size, clock=clock)
        self.network = network
        self.average = Ema(network) if config.optim.export_ema > 0 else None
        self.warming = False
        """Whether the coming step leaves the encoder as it is."""
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def export_network(self) -> Network:
        """What is judged and exported: the average of the weights where one is kept."""
        if self.average is None:
            return self.network
        averaged = self.average.module
        assert isinstance(averaged, Network)
        return averaged

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the rates of the coming step: those of the encoder are 0 until the head has learned something."""
        optim = self.config.optim
        progress = self.shared_progress(self.global_step + 1)
        ramp = backbone_ramp(progress, warmup_end(optim.head_warmup_share, self.clock.max_steps), optim.warmup_share)
        self.warming = ramp == 0.0
        keep_statistics(self.network.vit)
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:
            group["lr_scale"] = group["full_lr_scale"] * (ramp if group["backbone"] else 1.0)
        super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch; all randomness follows from the seed and the step."""
        config = self.config
        generator = self.step_generator()
        rng = np.random.default_rng([config.seed, self.global_step])
        mix = draw_mix(len(batch["labels"]), config.img_size, config.labels, rng).to(self.device)
        with torch.autocast(self.device.type, enabled=False), torch.no_grad():
            views = random_views(
                batch["images"], batch["aspect"], config.augment, img_size=config.img_size, generator=generator
            )
            pixels = mix_images(views.sub_(self.mean).div_(self.std), mix)
        with torch.set_grad_enabled(not self.warming):
            cls = self.network.vit(pixels).cls
        logits = self.network.head(cls)
        targets = mix_targets(batch["labels"], logits.shape[1], mix)
        loss = soft_cross_entropy(logits, targets, smoothing=config.labels.smoothing, class_weights=self.class_weights)
        self.last_output = ObjectiveOutput(loss, {"cross_entropy": loss.detach()})
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the step, then let the average follow: before any callback looks or saves."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            momentum = average_momentum(
                self.config.optim.export_ema, self.global_step + 1, effective_batch_size=self.effective_batch_size
            )
            self.average.update(self.network, momentum)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; weight decay on the matrices alone, lower layers slower."""
        optim = self.config.optim
        groups = parameter_groups(self.network, scaled_weight_decay(optim, self.effective_batch_size))
        scales = layer_scales(self.network.vit, scale=optim.encoder_lr_scale, decay=optim.layer_decay)
        return self.adamw(split_by_scale(groups, scales))


def layer_scales(vit: VisionTransformer, *, scale: float, decay: float) -> dict[int, float]:
    """Learning rate of each parameter of the encoder over that of the head, by its ``id``.

    Args:
        vit: The encoder.
        scale: Of its last norm.
        decay: Of each layer over that of the next one.

    Source: Bao et al. 2021 (BEiT), arXiv:2106.08254, appendix.
    """
    depth = len(vit.blocks)
    return {
        id(parameter): scale * decay ** (depth + 1 - layer_id(name, depth))
        for name, parameter in vit.named_parameters()
    }


def soft_cross_entropy(
    logits: Float[Tensor, "b c"],
    targets: Float[Tensor, "b c"],
    *,
    smoothing: float,
    class_weights: Float[Tensor, " c"] | None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy with soft targets, in fp32 whatever the precision of the run.

    Args:
        logits: Class scores.
        targets: Rows of sum 1.
        smoothing: Share of each target that is spread over all classes (Szegedy et al. 2015, arXiv:1512.00567).
        class_weights: Of each class's part of the loss; none: all 1.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(logits.float(), targets, weight=class_weights, label_smoothing=smoothing)


def start_vit(parent: SavedModel, *, img_size: int, drop_path_rate: float) -> VisionTransformer:
    """The encoder to train: the parent's weights in a copy, its whitening kept as a layer that does not learn.

    Vectors of different images often differ little beside what all have in common. A step on the weights of that last
    map moves the common part, and by more than what tells images apart: training diverges at rates that suit the rest.

    Raises:
        ConfigError: If the size is no multiple of the patch size.
    """
    vit = started_from(parent.vit, img_size=img_size, drop_path_rate=drop_path_rate)
    projection = parent.vit.cls_proj
    if projection is None:
        return vit
    vit = with_cls_proj(vit, projection.weight.detach().clone(), projection.bias.detach().clone())
    assert vit.cls_proj is not None
    vit.cls_proj.requires_grad_(False)
    return vit


def preprocess_at(parent: SavedModel, img_size: int) -> Preprocess:
    """The parent's preprocessing at the size of the run's views."""
    return dataclasses.replace(parent.preprocess, img_size=img_size)


def keep_statistics(vit: VisionTransformer) -> None:
    """Leave the batch statistics of a convolutional stem as they were trained."""
    for part in vit.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
