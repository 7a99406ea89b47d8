"""What a call of ``finetune`` left behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitembed.errors import BadImage


@dataclass(frozen=True)
class FinetuneResult:
    """What a call of ``finetune`` left behind."""

    model_dir: Path
    """The fine-tuned encoder, a model folder; absent when the run was interrupted before its end."""
    probe_file: Path
    """The classifier on its vectors, for ``vitembed classify``; in the model folder."""
    run_dir: Path
    """Settings, metrics and training state."""
    bad: list[BadImage]
    """Labelled files that are no readable images."""
    num_steps: int
    """Optimiser steps of the whole run."""
    seconds: float
    """Training time of the whole run."""
    completed: bool
    """False when interrupted: the same call goes on."""
    report: dict[str, Any] = field(default_factory=dict)
    """JSON-safe, empty when interrupted: ``majority``, ``knn``, ``linear`` (frozen) and ``finetuned`` scores,
    ``tests`` (paired), ``verdict``, ``abstain``, ``classes``, ``validation``, ``num_train`` and so on."""

    @property
    def verdict(self) -> str:
        """Whether it paid, in a sentence; empty when interrupted."""
        return str(self.report["verdict"]["words"]) if self.report else ""

    @property
    def gain(self) -> float:
        """Accuracy of the fine-tuned classifier minus that of the linear probe on the frozen encoder.

        Raises:
            KeyError: If the run was interrupted.
        """
        return float(self.report["finetuned"]["accuracy"] - self.report["linear"]["accuracy"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: the report's own fields, and where things lie."""
        return {
            **self.report,
            "model": str(self.model_dir),
            "probe": str(self.probe_file),
            "run": str(self.run_dir),
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "completed": self.completed,
            "bad": [{"path": problem.path, "reason": problem.reason} for problem in self.bad],
        }
