"""How a run goes on from a trained model without destroying it: heads first, slow layers, an anchor."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitembed.config import AdaptConfig, PretrainConfig
from vitembed.errors import ConfigError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel
from vitembed.model.patches import resample_pos_embed
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import without_whitening
from vitembed.pretrain.many.names import plain_name
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.objective import ObjectiveOutput
from vitembed.pretrain.onward.lora import add_lora

MIN_WARMUP_STEPS = 20
"""A head that is warmed for fewer steps is as good as random; half of the run at most."""


class Adaptation:
    """What a continued run knows of the model that it started from.

    The unchanged model is kept outside of every ``nn.Module``: it is neither trained nor saved, but read again from its
    folder when the run is resumed.

    Args:
        config: The run; its architecture is the parent's (``parent.py``).
        parent: The trained model; not changed.

    Raises:
        ConfigError: If it is not the model that the settings were made for.
    """

    def __init__(self, config: PretrainConfig, parent: SavedModel) -> None:
        if config.adapt.parent not in (None, parent.fingerprint):
            raise ConfigError(
                f"the model to start from has fingerprint {parent.fingerprint}, the run is for {config.adapt.parent}: "
                "it was changed"
            )
        self.config: AdaptConfig = config.adapt
        self.parent = parent
        self.img_size = config.model.img_size
        self.drop_path_rate = config.model.drop_path_rate
        self.frozen = started_from(parent.vit, img_size=self.img_size, drop_path_rate=0.0).requires_grad_(False).eval()
        """The unchanged model at the size of the run's views."""

    @property
    def preprocess(self) -> Preprocess:
        """The parent's, at the size of the run's views: what training normalises by and what is exported."""
        return dataclasses.replace(self.parent.preprocess, img_size=self.img_size)

    @property
    def kin(self) -> dict[str, Any]:
        """What else of the parent goes into a model folder."""
        return {"pool": self.parent.pool, "licence": self.parent.licence}

    def start(self) -> VisionTransformer:
        """The encoder to train: the parent's weights, in a copy, with what stays frozen marked as such."""
        vit = started_from(self.parent.vit, img_size=self.img_size, drop_path_rate=self.drop_path_rate)
        if self.config.mode == "lora":
            add_lora(vit, num_blocks=self.config.num_blocks, rank=self.config.lora_rank, alpha=self.config.lora_alpha)
        elif self.config.mode == "last_blocks":
            vit.requires_grad_(False)
            vit.norm.requires_grad_(True)
            for block in list(vit.blocks)[-self.config.num_blocks :]:
                block.requires_grad_(True)
        return vit

    def split_groups(self, groups: list[dict[str, Any]], vit: nn.Module) -> list[dict[str, Any]]:
        """Optimiser groups by depth: each gets ``full_lr_scale``, and ``backbone`` where it belongs to ``vit``.

        ``lr_scale`` is what is in force at a step; ``Adapting`` sets it.
        """
        depth = len(self.frozen.blocks)
        scales: dict[int, float] = {}
        for full_name, parameter in vit.named_parameters():
            name = plain_name(full_name)
            if ".lora_" in name:
                scales[id(parameter)] = self.config.lora_lr_scale
            else:
                distance = depth + 1 - layer_id(name, depth)
                scales[id(parameter)] = self.config.lr_scale * self.config.layer_decay**distance
        return split_by_scale(groups, scales)

    def with_anchor(self, output: ObjectiveOutput, views: Float[Tensor, "v b c h w"]) -> ObjectiveOutput:
        """Add the anchor to a loss.

        Args:
            output: Of the objective for ``views``.
            views: The global views; the unchanged model sees the whole of each, nothing hidden.
        """
        if self.config.anchor_weight == 0:
            return output._replace(cls=None)
        assert output.cls is not None
        anchor = anchor_loss(output.cls, self.frozen_cls(views.flatten(0, 1)))
        terms = {**output.terms, "anchor": anchor.detach()}
        return ObjectiveOutput(output.loss + self.config.anchor_weight * anchor, terms)

    @torch.no_grad()
    def frozen_cls(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """What the unchanged model gives for normalised images."""
        if next(self.frozen.parameters()).device != pixels.device:
            self.frozen.to(pixels.device)
        cls: Tensor = self.frozen(pixels).cls
        return cls


class Adapting(pl.Callback):
    """Leads a continued run through its phases: warm the heads, let the encoder follow, let the patch loss rise.

    Everything follows from the progress of the run, so that nothing has to be saved.

    Args:
        config: The run.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.warming = False
        """Whether the coming step leaves the encoder as it is."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Set what is in force at the coming step; the module then multiplies the rates."""
        assert isinstance(module, PretrainModule)
        progress = module.shared_progress(trainer.global_step + 1)
        end = warmup_end(self.config.adapt.head_warmup_share, module.clock.max_steps)
        ramp = backbone_ramp(progress, end, self.config.optim.warmup_share)
        self.warming = ramp == 0.0
        for part in module.vit.modules():  # a convolutional stem keeps the statistics that it was trained with
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        for group in trainer.optimizers[0].param_groups:
            group["lr_scale"] = group["full_lr_scale"] * (ramp if group["backbone"] else 1.0)
        share = self.config.adapt.patch_ramp_share
        module.objective.patch_scale.fill_(min(1.0, progress / share) if share > 0 else 1.0)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Forget the encoder's gradients while the heads warm up.

        Before clipping, which would otherwise shrink the heads' gradients by them, and before AdamW, whose averages
        would begin with what random heads ask for. The graph is the same at every step, as DDP wants it.
        """
        if self.warming:
            for group in optimizer.param_groups:
                if group["backbone"]:
                    for parameter in group["params"]:
                        parameter.grad = None


def started_from(source: VisionTransformer, *, img_size: int, drop_path_rate: float) -> VisionTransformer:
    """A copy of an encoder as it was trained, not whitened, for another native image size (positions interpolated).

    Raises:
        ConfigError: If the size is no multiple of the patch size.
    """
    source = without_whitening(source)
    config = dataclasses.replace(source.config, img_size=img_size, drop_path_rate=drop_path_rate)
    vit = VisionTransformer(config)
    weights = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
    if source.pos_embed is not None:
        weights["pos_embed"] = resample_pos_embed(
            weights["pos_embed"],
            source.native_grid,
            vit.native_grid,
            source.num_positioned_prefix,
            how=source.config.pos_interpolation,
        )
    vit.load_state_dict(weights)
    return vit


def split_by_scale(groups: list[dict[str, Any]], scales: dict[int, float]) -> list[dict[str, Any]]:
    """Optimiser groups split such that all parameters of one have the same rate.

    Args:
        groups: As ``parameter_groups`` gives them.
        scales: Rate of each parameter of the encoder over that of the heads, by its ``id``; heads are not in it.

    Returns:
        Groups with ``full_lr_scale``, ``lr_scale`` (what is in force at a step) and ``backbone``.
    """
    made = []
    for group in groups:
        by_scale: dict[float | None, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_scale.setdefault(scales.get(id(parameter)), []).append(parameter)
        for scale, parameters in by_scale.items():
            full = 1.0 if scale is None else scale
            ours = {"params": parameters, "backbone": scale is not None, "full_lr_scale": full, "lr_scale": full}
            made.append({**group, **ours})
    return made


def layer_id(name: str, depth: int) -> int:
    """Place of a parameter in the encoder: 0 before the blocks, 1 to ``depth`` in them, ``depth + 1`` after them.

    Source: Bao et al. 2021 (BEiT), arXiv:2106.08254, appendix, "layer-wise learning rate decay".
    """
    parts = [part for part in name.split(".") if not part.startswith("_")]  # wrappers of compilers and FSDP
    if parts[0] == "blocks":
        return int(parts[1]) + 1
    return depth + 1 if parts[0] in ("norm", "fc_norm", "attn_pool", "cls_proj") else 0


def warmup_end(share: float, max_steps: int | None) -> float:
    """Progress of the run up to which only the heads learn.

    Args:
        share: What the settings say; 0 means no such phase.
        max_steps: Steps of the run; none: only time limits it.
    """
    if share == 0 or max_steps is None:
        return share
    return max(share, min(MIN_WARMUP_STEPS / max_steps, 0.5))


def backbone_ramp(progress: float, end: float, ramp_share: float) -> float:
    """Factor on the encoder's learning rates: 0 until ``end``, then rising linearly to 1 over ``ramp_share``."""
    if end > 0 and progress <= end + 1e-9:
        return 0.0
    return min(1.0, (progress - end) / ramp_share) if ramp_share > 0 else 1.0


def anchor_loss(cls: Float[Tensor, "b d"], frozen_cls: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """1 minus the mean cosine between cls vectors and those of the unchanged model, in fp32; 0..2.

    Source: the Gram anchor of DINOv3 (Simeoni et al. 2025, arXiv:2508.10104, section 4) holds the similarities of
    patches to those of an earlier model; here it is the cls vector itself.
    """
    with torch.autocast(cls.device.type, enabled=False):
        return 1.0 - F.cosine_similarity(cls.float(), frozen_cls.float(), dim=-1).mean()
