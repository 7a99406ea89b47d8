"""A run with FSDP on processors: ``torchrun --nproc-per-node 2 cpu_fsdp.py IMAGES WORKSPACE KILL_AFTER SETTING...``.

FSDP is Lightning's and torch's own, with processes that hold a part of each weight; only what they say about devices
is changed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FullyShardedDataParallel

import vitembed
from vitembed.pretrain import trainer
from vitembed.pretrain.many import strategies
from vitembed.pretrain.many.sharded import ShardedStrategy
from vitembed.pretrain.module import PretrainModule
from vitembed.workspace import find_workspace


class CpuFsdp(ShardedStrategy):
    @property
    def root_device(self):
        return torch.device("cpu")

    def _setup_model(self, model):
        return FullyShardedDataParallel(
            module=model,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            **{**self.kwargs, "device_id": self.root_device},
        )


def autocast(plugin):
    """As Lightning's own, of another device."""
    return torch.autocast("cpu", torch.bfloat16, enabled=plugin.precision == "bf16-mixed")


def strategy_of(config, world_size):
    if config.strategy != "fsdp":
        return strategies.strategy_of(config, world_size)
    return CpuFsdp(strategies._TIMEOUT)


class DiesAfter:
    """An optimiser step after which the process is gone."""

    def __init__(self, num_steps):
        self.left = num_steps
        self.step = PretrainModule.optimizer_step

    def __call__(self, module, *args, **kwargs):
        self.step(module, *args, **kwargs)
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    from pytorch_lightning.plugins.precision import FSDPPrecision

    trainer.strategy_of = strategy_of
    FSDPPrecision.forward_context = autocast
    images, workspace, kill_after, *settings = sys.argv[1:]
    dies = DiesAfter(int(kill_after))
    PretrainModule.optimizer_step = lambda module, *args, **kwargs: dies(module, *args, **kwargs)
    vitembed.pretrain(
        images,
        config="smoke",
        overrides=settings,
        workspace=find_workspace(Path(workspace), create=True),
        progress=False,
    )
