"""Which epoch is the best: accuracy on training images that are kept from learning, never on the test images."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from vitembed.pretrain.supervised.module import FinetuneModule, Network
from vitembed.pretrain.watch.best import Look
from vitembed.pretrain.watch.monitors import undisturbed
from vitembed.pretrain.watch.pool import Pool

log = logging.getLogger("vitembed")

MOST_CHECKS = 40
"""In a run whose passes are many and short."""


class Validation(pl.Callback):
    """Looks at the classifier after each pass over the images (40 times at most) and remembers the best.

    The last one is taken all the same where the best is ahead of it by no more than its standard error: the learning
    rate falls to 0, so the last epoch is the likelier one, and among many epochs one is always lucky.

    Looks and weights travel in the training state, so that a run which was killed decides as if nothing had happened.

    Args:
        pool: Images that are not learned from; none: no look is made and the last state is taken.
        labels: Their class numbers, [n].
        steps_per_epoch: Steps of a pass.
        max_steps: Steps of the run; none when only time limits it.
    """

    def __init__(self, pool: Pool | None, labels: Tensor, *, steps_per_epoch: int, max_steps: int | None) -> None:
        self.pool = pool
        self.labels = labels
        self.every_steps = max(steps_per_epoch, -(-(max_steps or 0) // MOST_CHECKS))
        self.looks: list[Look] = []
        """In the order of their steps."""
        self.best: Look | None = None
        self.weights: dict[str, Tensor] | None = None
        """Of the best, on the CPU."""
        self.seconds = 0.0
        """Time that looking took, in this process."""

    @property
    def latest(self) -> Look:
        """The newest look; empty before there is one."""
        return self.looks[-1] if self.looks else {}

    @property
    def chosen(self) -> Look | None:
        """The look whose weights are taken; none where no look was made."""
        if self.best is None or self.pool is None:
            return None
        accuracy, last = float(self.best["val_accuracy"]), self.looks[-1]
        error = math.sqrt(accuracy * (1 - accuracy) / len(self.pool))
        return last if last["val_accuracy"] >= accuracy - error else self.best

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: object) -> None:
        """Look when a pass is over, and at the end."""
        assert isinstance(module, FinetuneModule)
        step = trainer.global_step
        over = module.shared_progress(step) >= 1.0
        if self.pool is None or not (over or step % self.every_steps == 0):
            return
        start = time.perf_counter()
        module.check_finite()
        self.note(module, step)
        self.seconds += time.perf_counter() - start

    def note(self, module: FinetuneModule, step: int) -> None:
        """Judge the classifier; keep its weights if it is the best so far, of equally accurate ones the surer."""
        network = module.export_network()
        logits = self.logits(network, module)
        labels = self.labels.to(logits.device)
        accuracy = float((logits.argmax(dim=1) == labels).float().mean())
        loss = float(F.cross_entropy(logits, labels))
        progress = round(module.clock.progress(step), 5)
        look: Look = {"step": step, "progress": progress, "val_accuracy": accuracy, "val_loss": loss}
        self.looks.append(look)
        if self.best is None or (accuracy, -loss) > (self.best["val_accuracy"], -self.best["val_loss"]):
            self.best = look
            state = network.state_dict()
            self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        log.info("step %d: %.1f %% of the validation images right, loss %.3f", step, 100 * accuracy, loss)

    def logits(self, network: Network, module: FinetuneModule) -> Tensor:
        """Class scores of the validation images, in fp32."""
        assert self.pool is not None
        device = module.device
        with undisturbed(network), torch.no_grad(), torch.autocast(device.type, enabled=False):
            return torch.cat(
                [
                    network((self.pool.whole(places, device=device) - module.mean) / module.std)
                    for places in self.pool.chunks()
                ]
            )

    def state_dict(self) -> dict[str, Any]:
        """Looks and best weights, for the training state."""
        return {"looks": self.looks, "best": self.best, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.looks, self.best = list(state_dict["looks"]), state_dict["best"]
        self.weights = state_dict["weights"]
