"""A loss that is no number never reaches the weights: the step is dropped, and its batch kept for replay.

AdamW takes one such gradient for ever into its averages, so the check comes between clipping and the step. On a CPU it
is one comparison. On a GPU asking would make the processor wait at every step, so the flag stays there: fused AdamW
takes it as ``found_inf``, the way of PyTorch's gradient scaler, and leaves weights and averages as they are, at the
first bad step and at all later ones, until the run asks at its next log line or save and stops. Whatever is saved until
then holds the weights from before the bad step, and the batch of that step follows from its number.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitembed import __version__
from vitembed.config import to_dict
from vitembed.errors import FailedElsewhere, TrainingError, printable
from vitembed.pretrain.batches import ImageBatch
from vitembed.pretrain.keep.disk import spared
from vitembed.pretrain.keep.files import NONFINITE_PREFIX

if TYPE_CHECKING:
    from vitembed.pretrain.training_module import TrainingModule

log = logging.getLogger("vitembed")

STATE_PREFIX = "state."
"""Of the names of the module's tensors in the file, beside ``images`` and ``aspect``."""


class Guard:
    """Clips the gradient and stops the run when it, or the loss, is no number.

    Args:
        run_dir: Where the batch is kept; none: nowhere.
        batch_of: Gives this process's batch of a step.
        deferred: Whether the run is stopped only when ``check`` asks; none: on CUDA. For tests.
    """

    def __init__(
        self,
        run_dir: Path | None = None,
        batch_of: Callable[[int], ImageBatch] | None = None,
        *,
        deferred: bool | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.batch_of = batch_of
        self.deferred = deferred
        self.norm: Tensor | None = None
        """Norm of the newest gradient before clipping, []; infinite now and then where fp16 is scaled."""
        self.bad_step: Tensor | None = None
        """Steps done before the first bad one, int64 []; -1: none was bad."""

    def clip(self, module: TrainingModule, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradient to ``optim.grad_clip``; called before each optimiser step.

        Raises:
            TrainingError: If it is no number, and the run need not wait for a GPU to know.
        """
        assert module.last_output is not None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.norm = clip_grad_norm(module, parameters, module.config.optim.grad_clip)
        scaled = module.trainer.precision == "16-mixed"  # the scaler provokes infinite gradients and drops their steps
        # The averaged gradient is the same on every process, the loss is not: with several, it alone decides.
        alone = module.trainer.world_size == 1
        signs = [self.norm] * (not scaled) + [module.last_output.loss.detach()] * (alone or scaled)
        bad = ~torch.stack([sign.float().isfinite() for sign in signs]).all()
        step = module.global_step
        if not self._defers(module) and (alone or not scaled):
            if bool(bad):
                raise self.error(module, step)
            return
        if self.bad_step is None:
            self.bad_step = torch.full((), -1, dtype=torch.int64, device=bad.device)
        first = bad & (self.bad_step < 0)
        self.bad_step = torch.where(first, torch.full_like(self.bad_step, step), self.bad_step)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = (self.bad_step >= 0).float()  # type: ignore[attr-defined]  # read by fused AdamW

    def _defers(self, module: TrainingModule) -> bool:
        return module.device.type == "cuda" if self.deferred is None else self.deferred

    def first_bad_step(self) -> int:
        """Steps done before the first bad one, -1 if none was bad; waits for the GPU."""
        return -1 if self.bad_step is None else int(self.bad_step)

    def check(self, module: TrainingModule) -> None:
        """Stop a run of one process if a step was bad; several processes agree on it in ``Saver``.

        Raises:
            TrainingError: With the step and the terms.
        """
        if module.trainer.world_size == 1 and (step := self.first_bad_step()) >= 0:
            raise self.error(module, step)

    def error(self, module: TrainingModule, step: int) -> TrainingError | FailedElsewhere:
        """What to raise for a bad step, after its batch was kept.

        Args:
            module: In the state of that step.
            step: Steps done before it.
        """
        path = None
        if self.run_dir is not None and self.batch_of is not None:
            path = keep_batch(self.run_dir, module, self.batch_of(step), step)
        if module.global_rank > 0:
            return FailedElsewhere(f"the loss is no number at step {step + 1}")
        output = module.last_output
        assert output is not None
        what = "the loss or its gradient is not finite"
        if module.global_step == step:  # else the newest loss is that of a later step
            loss = float(output.loss.detach())
            terms = ", ".join(f"{name} {float(term):.4g}" for name, term in output.terms.items())
            finite = bool(torch.isfinite(output.loss))
            what = "the gradient is not finite" if finite else f"the loss is {loss}"
            step_text = f"at step {step + 1} ({terms})"
        else:
            step_text = f"at step {step + 1}"
        half = ", or set trainer.precision=32-true" if "16" in str(module.trainer.precision) else ""
        kept = f" Its batch is kept for vitembed.pretrain.keep.replay: {printable(path)}." if path is not None else ""
        return TrainingError(
            f"{what} {step_text}: the run stops and the last good state is kept.{kept} Lower optim.base_lr or "
            f"optim.grad_clip{half}, and start again with --fresh"
        )


def clip_grad_norm(module: TrainingModule, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the gradient of the whole model in place; its norm before, []."""
    sharded = getattr(module.trainer.strategy.model, "clip_grad_norm_", None)
    if sharded is not None:  # FSDP: each process has a part of every gradient
        norm: Tensor = sharded(max_norm)
        return norm
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def keep_batch(run_dir: Path, module: TrainingModule, batch: ImageBatch, step: int) -> Path | None:
    """Write what ``replay`` needs: this process's batch, the module's tensors, seed, step and settings.

    Returns:
        The JSON file; none if the disk is full.
    """
    from safetensors.torch import save_file

    rank = module.global_rank
    stem = f"{NONFINITE_PREFIX}{step + 1:07d}" + (f"-rank{rank}" if rank else "")
    path = run_dir / f"{stem}.json"
    state = unshared(module.trainer.strategy.lightning_module_state_dict())
    tensors = {STATE_PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    facts: dict[str, Any] = {
        "vitembed_version": __version__,
        "step": step + 1,
        "seed": module.config.seed,
        "rank": rank,
        "world_size": module.trainer.world_size,
        "progress": module.clock.progress(step),
        "effective_batch_size": module.effective_batch_size,
        **module.replay_facts(),
        "precision": str(module.trainer.precision),
        "device": module.device.type,
        "config": to_dict(module.config),
    }
    output = module.last_output
    if output is not None and module.global_step == step:
        facts["loss"] = repr(float(output.loss.detach()))  # as text: JSON has no nan
        facts["terms"] = {name: repr(float(term)) for name, term in output.terms.items()}
    with spared(path):
        images = batch["images"].cpu().contiguous()
        save_file({"images": images, "aspect": batch["aspect"].cpu(), **tensors}, path.with_suffix(".safetensors"))
        path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return path if path.is_file() else None


def unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor of a state dict once, under its first name: the encoder is there by two."""
    seen: set[tuple[int, torch.Size]] = set()
    found = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() == 0 or key not in seen:
            found[name] = tensor
        seen.add(key)
    return found
