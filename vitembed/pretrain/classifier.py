"""The supervised ViT of the textbook: patches, cls token, transformer, an MLP head on the cls vector, in Lightning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vitembed._torchvision import import_torchvision

import_torchvision()  # Lightning imports it by way of torchmetrics

import pytorch_lightning as pl  # noqa: E402 - after the line above on purpose
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from jaxtyping import Float, Int  # noqa: E402
from pytorch_lightning.callbacks import Timer  # noqa: E402
from pytorch_lightning.utilities.types import OptimizerLRScheduler  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from vitembed.config import ViTConfig, to_dict  # noqa: E402
from vitembed.errors import ModelError  # noqa: E402
from vitembed.model.encoder import Encoder  # noqa: E402
from vitembed.model.timm_encoder import NOT_TRAINED  # noqa: E402
from vitembed.model.vit import ClassHead, VisionTransformer  # noqa: E402
from vitembed.pretrain.module import parameter_groups  # noqa: E402
from vitembed.pretrain.schedule import lr_factor  # noqa: E402


class ViTClassifier(pl.LightningModule):
    """An image classifier: a ViT and a head on its cls vector, trained by cross-entropy.

    Works on batches ``(pixels [b, c, h, w] normalised, labels [b])`` from any data loader::

        model = vitembed.ViTClassifier(preset("tiny", img_size=32, patch_size=4), num_classes=10)
        pytorch_lightning.Trainer(max_epochs=5).fit(model, train_loader, val_loader)

    Args:
        config: Architecture of the encoder; its fields in a mapping will do.
        num_classes: Classes.
        hidden_dim: Width of the MLP head's hidden layer; none: one linear layer.
        lr: Peak learning rate; it rises over ``warmup_share`` of the run and falls as a cosine.
        weight_decay: On weight matrices only.
        label_smoothing: 0..1, as in ``torch.nn.functional.cross_entropy``.
        warmup_share: 0..1.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1.
    """

    def __init__(
        self,
        config: ViTConfig | Mapping[str, Any],
        num_classes: int,
        *,
        hidden_dim: int | None = None,
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.0,
        warmup_share: float = 0.05,
    ) -> None:
        super().__init__()
        if isinstance(config, Mapping):  # as a checkpoint holds it
            config = ViTConfig(**config)
        values = {"num_classes": num_classes, "hidden_dim": hidden_dim, "lr": lr, "weight_decay": weight_decay}
        values |= {"label_smoothing": label_smoothing, "warmup_share": warmup_share}
        # Plain data: what a checkpoint holds beside tensors is read with ``weights_only``.
        self.save_hyperparameters({"config": to_dict(config), **values})
        self.vit = VisionTransformer(config)
        self.head = ClassHead(config.embed_dim, num_classes, hidden_dim)
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.warmup_share = warmup_share

    @classmethod
    def from_encoder(cls, encoder: Encoder, num_classes: int, *, hidden_dim: int | None = None) -> ViTClassifier:
        """Start from a trained encoder: its weights, copied, and a fresh head.

        Raises:
            ModelError: If it is another library's model and no vision transformer of ours.
        """
        vit: nn.Module = encoder.vit
        if not isinstance(vit, VisionTransformer):
            raise ModelError(f"{encoder.name} is no vision transformer: {NOT_TRAINED}")
        model = cls(encoder.vit.config, num_classes, hidden_dim=hidden_dim)
        model.vit.load_state_dict(encoder.vit.state_dict())
        return model

    @classmethod
    def of(cls, vit: VisionTransformer, head: ClassHead) -> ViTClassifier:
        """The two put together, as they are; no weight is copied."""
        layers = list(head.layers) if isinstance(head.layers, nn.Sequential) else [head.layers]
        first, last = layers[0], layers[-1]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        model = cls(vit.config, last.out_features, hidden_dim=first.out_features if len(layers) > 1 else None)
        model.vit, model.head = vit, head
        return model

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes"]:
        """Unnormalised class scores (logits)."""
        logits: Tensor = self.head(self.vit(pixels).cls)
        return logits

    def training_step(
        self, batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]] | list[Tensor], batch_idx: int
    ) -> Float[Tensor, ""]:
        """Cross-entropy of a batch."""
        pixels, labels = batch
        loss = F.cross_entropy(self(pixels).float(), labels, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(labels))
        return loss

    def validation_step(
        self, batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]] | list[Tensor], batch_idx: int
    ) -> None:
        """Loss and accuracy on held-out images."""
        self._judge("val", batch)

    def test_step(
        self, batch: tuple[Float[Tensor, "b c h w"], Int[Tensor, "b"]] | list[Tensor], batch_idx: int
    ) -> None:
        """The same on test images."""
        self._judge("test", batch)

    def predict_step(
        self, batch: Float[Tensor, "b c h w"] | tuple[Tensor, ...] | list[Tensor], batch_idx: int
    ) -> Float[Tensor, "b classes"]:
        """Class scores (logits) of a batch, with or without labels."""
        logits: Tensor = self(batch if isinstance(batch, Tensor) else batch[0])
        return logits

    def _judge(self, stage: str, batch: tuple[Tensor, Tensor] | list[Tensor]) -> None:
        pixels, labels = batch
        logits = self(pixels).float()
        self.log(f"{stage}_loss", F.cross_entropy(logits, labels), prog_bar=True, batch_size=len(labels))
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine over the length of the run: its steps, epochs or time, whichever ends it.

        A run without an end keeps the peak rate.
        """
        optimizer = torch.optim.AdamW(parameter_groups(self, self.weight_decay), lr=self.lr)
        total = float(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            progress = self._progress(step, total)
            return 1.0 if progress is None else lr_factor(progress, warmup_share=self.warmup_share, min_ratio=0.0)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _progress(self, step: int, total: float) -> float | None:
        """Share of the run that is done after ``step`` steps, 0..1; none where nothing ends it.

        Args:
            step: Steps done; the coming one counts.
            total: Steps of the run; infinite or below 1 where their number is not known.
        """
        shares = []
        if 1 <= total < math.inf:
            shares.append((step + 1) / total)
        elif (self.trainer.max_epochs or 0) > 0:  # of unknown length
            shares.append(self.trainer.current_epoch / self.trainer.max_epochs)  # type: ignore[operator]  # not None
        for timer in (callback for callback in self.trainer.callbacks if isinstance(callback, Timer)):  # type: ignore[attr-defined]  # set in Trainer's connector
            left = timer.time_remaining()
            if left is not None:
                shares.append(timer.time_elapsed() / max(1e-9, timer.time_elapsed() + left))
        return min(1.0, max(shares)) if shares else None
