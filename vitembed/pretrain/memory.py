"""How much memory a training step takes, which batch fits a device, and what to say when one did not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vitembed.config import PretrainConfig
from vitembed.errors import TrainingError
from vitembed.images.cache_files import gigabytes
from vitembed.images.memory import available_bytes
from vitembed.model.cost import TRAINED_BYTES, kept_for_backward
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.objective import MaskedViews

MEMORY_SHARE = 0.8
"""Part of the free memory that a step may take; the rest is for the allocator's gaps and for other programs."""
CPU_GAPS = 1.5
"""On CPUs the C library's allocator keeps this much more than it hands out (measured: 1.15 to 1.55 times)."""
SMALLEST_BATCH = 8


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step at its peak, which is where the backward pass begins."""

    state: int
    """Weights, gradients, AdamW's two moments, and slow copies (teacher, average)."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    scratch: int
    """What passes through: gradients of activations, and the images on their way to views."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.activations + self.scratch


def step_memory(config: PretrainConfig, batch_size: int, *, half: bool) -> StepMemory:
    """Memory of a step of ``batch_size`` images, without making it: the objective runs on tensors that have no content.

    What the forward pass keeps is counted from the real objective, so every view, term and teacher is in it.

    Args:
        config: The run.
        batch_size: Images per step and device.
        half: Whether the step runs in 16-bit autocast.
    """
    objective_config, side = config.objective, config.model.img_size
    with torch.device("meta"):
        objective = MaskedViews(VisionTransformer(config.model.vit()), objective_config)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, enabled=half):
        objective.to_empty(device="cpu").train()
        views = torch.empty(objective_config.num_views, batch_size, 3, side, side)
        local = None
        if objective_config.num_local_views:
            small = config.local_img_size
            local = torch.empty(objective_config.num_local_views, batch_size, 3, small, small)
        kept = kept_for_backward(objective, lambda: objective(views, torch.Generator(), local))
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(t.numel() for t in (*objective.parameters(), *objective.buffers()) if not t.requires_grad)
    average = sum(p.numel() for p in objective.vit.parameters()) if config.optim.export_ema > 0 else 0
    pixels = sum(tensor.numel() for tensor in (views, local) if tensor is not None) * 4
    source = batch_size * config.cache_size**2 * 3 * 4
    return StepMemory(
        state=TRAINED_BYTES * trained + 4 * (frozen + average),
        activations=sum(kept),
        # The backward pass holds the gradients of a layer's input and output beside each other; views are made before.
        scratch=max(2 * max(kept, default=0), 2 * source) + pixels,
    )


def free_memory(device: torch.device) -> int:
    """Bytes that a run on this device may still take; 0 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return available_bytes()


def fitting_batch_size(config: PretrainConfig, device: torch.device, *, reserved: int = 0) -> tuple[int, str]:
    """The recipe's batch size, or the largest power of two below it whose step fits the device; and why.

    Args:
        config: The run, with the recipe's batch size.
        device: Where it will run.
        reserved: Bytes of that memory that something else will take, such as the images kept in it.
    """
    half = device.type == "cuda" and config.trainer.precision in ("auto", "bf16-mixed", "16-mixed")
    wanted = config.optim.batch_size
    free = max(0, free_memory(device) - reserved)
    if not free_memory(device):
        return wanted, f"batches of {wanted}: the free memory of {device.type} is not known"

    def needs(batch_size: int) -> int:
        return int(step_memory(config, batch_size, half=half).total * (CPU_GAPS if device.type == "cpu" else 1.0))

    size, takes = wanted, needs(wanted)
    while takes > MEMORY_SHARE * free and size > SMALLEST_BATCH:
        size = max(SMALLEST_BATCH, 1 << ((size - 1).bit_length() - 1))
        takes = needs(size)
    reason = f"a step of {size} images takes about {gigabytes(takes)}, {gigabytes(free)} are free on {device.type}"
    if takes > MEMORY_SHARE * free:
        return size, f"{reason}: too little even so, choose a smaller model.size or model.img_size"
    return size, f"{reason}: " + (f"batches of {size}" if size == wanted else f"batches of {size} instead of {wanted}")


_EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu", "cublas_status_alloc_failed")


@contextlib.contextmanager
def memory_explained(config: PretrainConfig) -> Iterator[None]:
    """Turn a device that ran out of memory into one line that names the settings.

    Raises:
        TrainingError: In place of the error of the device.
    """
    model = f"vit {config.model.size}, {config.model.img_size} px, {config.objective.num_views} views"
    with exhaustion_explained(config.optim.batch_size, model, "a smaller model.size or model.img_size"):
        yield


@contextlib.contextmanager
def exhaustion_explained(batch_size: int, model: str, other_way: str) -> Iterator[None]:
    """The same for any run.

    Args:
        batch_size: Images per step.
        model: What runs, in words.
        other_way: What takes less besides a smaller batch, in words.

    Raises:
        TrainingError: In place of the error of the device.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        told = str(error).lower()
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
            word in told for word in _EXHAUSTED
        ):
            raise
        smaller = max(1, batch_size // 2)
        raise TrainingError(
            f"the device ran out of memory at {batch_size} images per step ({model}): set optim.batch_size={smaller} "
            f"or less, or {other_way}; add --fresh if the run had been saved"
        ) from error
