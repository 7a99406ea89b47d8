"""How many processes share a run, in Lightning's terms."""

from __future__ import annotations

from datetime import timedelta

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy, Strategy

from vitembed.config import TrainerConfig
from vitembed.errors import ConfigError
from vitembed.pretrain.many.sharded import ShardedStrategy

# The first process looks at the encoder and writes reports while the others wait for it.
_TIMEOUT = timedelta(hours=2)


def cluster_of(launcher: str) -> ClusterEnvironment:
    """Where Lightning is to read ranks and addresses: named, as what it finds by itself may not be what was found here.

    Args:
        launcher: torchrun, slurm, or empty.
    """
    if launcher == "torchrun":
        return TorchElasticEnvironment()
    if launcher == "slurm":
        return SLURMEnvironment(auto_requeue=False)  # a job that requeues itself is a surprise; we say how
    return LightningEnvironment()


def strategy_of(config: TrainerConfig, world_size: int) -> Strategy | str:
    """How the processes share the work.

    ``ddp``: each has the whole model. ``fsdp``: each keeps a part of weights, gradients and averages, for models that
    fill a GPU otherwise; checkpoints are whole all the same, so that a run may go on with either. FSDP has only
    been run with processors in the place of GPUs.

    Raises:
        ConfigError: If it does not work on this machine.
    """
    if config.strategy == "fsdp":
        if not (config.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()):
            raise ConfigError("trainer.strategy=fsdp needs CUDA GPUs: use ddp or auto")
        return ShardedStrategy(_TIMEOUT)
    if world_size == 1:
        return "auto"
    return DDPStrategy(timeout=_TIMEOUT, gradient_as_bucket_view=True)
