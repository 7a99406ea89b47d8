"""FSDP as Lightning runs it, but with the training state of any other run: whole, read safely, numbered as torch does.

Lightning numbers the optimiser's moments in the order of the module's parameters, torch in that of the optimiser's
groups, and it unpickles states without a check; so such a state could not be continued by other processes, nor trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.strategies import FSDPStrategy
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, MixedPrecision, StateDictType
from torch.distributed.fsdp.api import FullOptimStateDictConfig
from torch.optim import Optimizer

from vitembed.model.vit import Block, VisionTransformer
from vitembed.pretrain.keep.checkpoint_io import read_checkpoint
from vitembed.pretrain.many.names import plain_name
from vitembed.pretrain.objective import ProjectionHead


class ShardedStrategy(FSDPStrategy):
    """Each process keeps a part of weights, gradients, moments and averages.

    Encoders and heads are units of their own, as slow copies of them (``teacher.Ema``) must be cut in the same places;
    the blocks in them are joined only while they compute. Weights and buffers stay in 32 bits and autocast computes in
    16, as with one process; Lightning would keep batch statistics and norms in 16 bits too.

    Args:
        timeout: How long a process waits for the others.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(
            auto_wrap_policy={Block, VisionTransformer, ProjectionHead},
            mixed_precision=MixedPrecision(),
            timeout=timeout,
        )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights on the first process, nothing on the others; every process takes part."""
        assert self.model is not None
        with self._whole():
            return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As ``optimizer.state_dict()`` of a process that has it all; on the first process."""
        assert self.model is not None
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        with self._whole():
            state: dict[str, Any] = FullyShardedDataParallel.optim_state_dict(self.model, optimizer)
        if self.global_rank != 0:
            return state
        return _called(state, {name: number for number, name in enumerate(self._names(optimizer))})

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Take up a state, of whatever strategy; every process reads the file.

        Raises:
            TrainingError: If the file is damaged.
        """
        assert self.model is not None
        assert self.lightning_module is not None
        checkpoint = read_checkpoint(Path(os.fspath(checkpoint_path)))
        self.lightning_module.on_load_checkpoint(checkpoint)  # may mend names; Lightning's own call comes too late
        with self._whole(rank0_only=False):
            self.model.load_state_dict(checkpoint["state_dict"])
            for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                named = _called(saved, dict(enumerate(self._names(optimizer))))
                mine = FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, named)
                optimizer.load_state_dict(mine)
        return checkpoint

    @contextmanager
    def _whole(self, *, rank0_only: bool = True) -> Iterator[None]:
        """States in which every tensor is whole."""
        assert self.model is not None
        # What is in main memory needs no way there, and torch 2.13 would free it on that way before it is copied.
        offload = self.root_device.type != "cpu"
        with FullyShardedDataParallel.state_dict_type(
            self.model,
            StateDictType.FULL_STATE_DICT,
            FullStateDictConfig(offload_to_cpu=offload, rank0_only=rank0_only),
            FullOptimStateDictConfig(offload_to_cpu=offload, rank0_only=rank0_only),
        ):
            yield

    def _names(self, optimizer: Optimizer) -> list[str]:
        """The optimiser's parameters in its order, as FSDP calls them."""
        assert self.model is not None
        names = {id(parameter): plain_name(name) for name, parameter in self.model.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _called(state: Mapping[str, Any], names: Mapping[Any, Any]) -> dict[str, Any]:
    """An optimiser's state with its parameters called otherwise."""
    groups = [{**group, "params": [names[old] for old in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[old]: value for old, value in state["state"].items()}, "param_groups": groups}
