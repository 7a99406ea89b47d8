"""Runs the step again at which a loss stopped to be a number.

``vitembed pretrain`` leaves ``nonfinite-STEP.json`` and ``.safetensors`` in the run folder: the batch as uint8 images,
all weights as they were before the step, seed, step and settings. To look at it::

    from vitembed.pretrain.keep.replay import replay

    step = replay(".vitembed/runs/model/nonfinite-0001234.json")
    step.loss, step.terms, step.grad_norm      # the same numbers again
    step.module, step.batch                    # to go on from in a debugger
    replay("nonfinite-0001234.json", anomaly=True)  # raises at the operation that made the first NaN
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitembed._torchvision import import_torchvision

import_torchvision()  # Lightning imports it by way of torchmetrics

import torch  # noqa: E402 - after the line above on purpose

from vitembed.config import PretrainConfig  # noqa: E402
from vitembed.device import resolve_device  # noqa: E402
from vitembed.errors import ConfigError, DataError, printable  # noqa: E402
from vitembed.model.checkpoint import SavedModel  # noqa: E402
from vitembed.model.vit import VisionTransformer  # noqa: E402
from vitembed.pretrain.batches import ImageBatch  # noqa: E402
from vitembed.pretrain.keep.nonfinite import STATE_PREFIX, unshared  # noqa: E402
from vitembed.pretrain.module import PretrainModule  # noqa: E402
from vitembed.pretrain.onward.adapt import Adaptation  # noqa: E402
from vitembed.pretrain.schedule import Clock  # noqa: E402
from vitembed.recipes import config_from_dict  # noqa: E402
from vitembed.seal import read_document  # noqa: E402


@dataclass(frozen=True)
class ReplayedStep:
    """One training step, run again."""

    loss: float
    """What was minimised."""
    terms: dict[str, float]
    """What it is made of."""
    grad_norm: float
    """Norm of its gradient."""
    module: PretrainModule
    """With the weights from before the step, and their gradients."""
    batch: ImageBatch
    """The images."""


def replay(
    path: str | os.PathLike[str], *, device: str = "auto", anomaly: bool = False, parent: SavedModel | None = None
) -> ReplayedStep:
    """Run a kept step again: the same views, masks and numbers, as far as the device computes the same.

    A step of several processes is run for the one process whose batch it is, alone: the terms that look at the joint
    batch then differ.

    Args:
        path: ``nonfinite-STEP.json``, or the ``.safetensors`` beside it.
        device: Where to run; auto: the kind of device that the run was on, if it is here.
        anomaly: Stop at the operation whose gradient is NaN.
        parent: The model that the run went on from, if it did (``vitembed.model.checkpoint.read_model``).

    Raises:
        DataError: If the files are absent or no kept step.
        ConfigError: If the run went on from a model and that is not given.
        RuntimeError: With ``anomaly``, from PyTorch.
    """
    facts, tensors = _read(Path(path))
    config: PretrainConfig = config_from_dict(PretrainConfig, facts["config"])
    if config.adapt.parent is not None and parent is None:
        raise ConfigError("the run went on from a model: give it, as parent=read_model(MODEL_FOLDER)")
    adaptation = Adaptation(config, parent) if parent is not None else None
    module = _KeptStep(config, facts, adaptation)
    for name, tensor in unshared(module.state_dict()).items():
        tensor.copy_(tensors[STATE_PREFIX + name])
    module.objective.patch_scale.fill_(facts["patch_scale"])
    if device == "auto" and facts["device"] == "cpu":
        device = "cpu"
    where = resolve_device(device)
    module.to(where).train()
    batch: ImageBatch = {"images": tensors["images"].to(where), "aspect": tensors["aspect"].to(where)}
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(facts["precision"])
    precision = torch.autocast(where.type, dtype=half) if half is not None else contextlib.nullcontext()
    with torch.autograd.set_detect_anomaly(anomaly):
        with precision:
            loss = module.training_step(batch, 0)
        torch.autograd.backward(loss)
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    assert module.last_output is not None
    terms = {name: float(term) for name, term in module.last_output.terms.items()}
    return ReplayedStep(float(loss.detach()), terms, float(norm), module, batch)


class _KeptStep(PretrainModule):
    """A module without a trainer, which stands at the step that was kept."""

    def __init__(self, config: PretrainConfig, facts: dict[str, Any], adaptation: Adaptation | None) -> None:
        vit = VisionTransformer(config.model.vit()) if adaptation is None else adaptation.start()
        clock = _StoppedClock(max_steps=None, budget_seconds=None, kept=facts["progress"])
        super().__init__(
            config, vit, effective_batch_size=facts["effective_batch_size"], clock=clock, adaptation=adaptation
        )
        self._kept = (facts["step"] - 1, facts["rank"])

    @property
    def global_step(self) -> int:
        return int(self._kept[0])

    @property
    def global_rank(self) -> int:
        return int(self._kept[1])


@dataclass
class _StoppedClock(Clock):
    kept: float = 0.0

    def progress(self, step: int) -> float:
        return self.kept


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = read_document(path.with_suffix(".json"))
        tensors = load_file(path.with_suffix(".safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"cannot read the kept step {printable(path)}: {error}") from error
    if "images" not in tensors or "step" not in facts:
        raise DataError(f"{printable(path)} is no kept step: expected nonfinite-STEP.json of a run folder")
    return facts, tensors
