"""What makes a Lightning run fast on the device it has: compiled blocks, and tensor cores for what is left in fp32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytorch_lightning as pl
import torch

from vitembed.pretrain.compiling import compile_blocks
from vitembed.pretrain.module import PretrainModule

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def prepare_speed(module: PretrainModule, trainer: pl.Trainer, *, batch_size: int, max_steps: int | None) -> None:
    """Compile what pays (``compiling.py``), before the run starts.

    Args:
        module: The run's module.
        trainer: The run's trainer.
        batch_size: Images per step and process.
        max_steps: Length of the run, if steps limit it.
    """
    compile_blocks(
        module,
        module.config,
        device=trainer.strategy.root_device,
        batch_size=batch_size,
        dtype=_DTYPES.get(str(trainer.precision)),
        max_steps=max_steps,
    )


@contextlib.contextmanager
def matmul_precision(trainer: pl.Trainer) -> Iterator[None]:
    """Allow TF32 within this on CUDA where the run is in 16 bits anyway; whoever asks for 32-true gets fp32.

    What stays in fp32 beside autocast is the resampling of 8-bit pixels and small matrices of the loss, made from
    vectors that were computed with 8 bits of mantissa (bf16); TF32 has 11.
    """
    if trainer.strategy.root_device.type != "cuda" or str(trainer.precision) not in _DTYPES:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
