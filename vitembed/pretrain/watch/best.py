"""The best encoder of a run so far: which one it is, and its weights, kept where a killed run finds them again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.vit import VisionTransformer

Look = dict[str, int | float]
"""What was seen at one point of the run: ``step``, ``progress`` and the scores."""


def judged_by(look: Mapping[str, int | float]) -> str:
    """What ``merit`` goes by, in words."""
    return "k-NN accuracy" if "knn" in look else "RankMe x view retrieval"


def merit(look: Mapping[str, int | float], max_rank: int) -> float:
    """What decides between two points of a run; 0..1.

    k-NN accuracy where there are labels. Else the share of the possible dimensions that the vectors use times the share
    of images that are known again: the first alone rewards noise, the second alone a few easy features.

    Args:
        look: Scores of a point.
        max_rank: The largest RankMe that the pool allows.
    """
    if "knn" in look:
        return float(look["knn"])
    return float(look["rankme"]) / max_rank * float(look["view_retrieval"])


@dataclass
class Best:
    """Every point that was looked at, and the weights of the best.

    It travels in the training checkpoint, so points and weights that a kill took away are taken away together, and a
    resumed run decides as if nothing had happened.
    """

    max_rank: int
    """The largest RankMe that the pool allows."""
    looks: list[Look] = field(default_factory=list)
    """In the order of their steps; the first one is the start."""
    step: int | None = None
    """Of the best one."""
    weights: dict[str, Tensor] | None = None
    """Its weights, on the CPU."""

    def add(self, look: Look, vit: VisionTransformer, *, candidate: bool) -> bool:
        """Note a point, and keep its weights if it is the best so far; of equals the later one. Tell if it is.

        Args:
            look: Its scores.
            vit: The encoder at this point.
            candidate: Whether it may be the best: an encoder that knows nothing yet may not.
        """
        self.looks = [*(old for old in self.looks if old["step"] < look["step"]), look]
        best = self.look()
        if not candidate or (best is not None and merit(look, self.max_rank) < merit(best, self.max_rank)):
            return False
        self.step = int(look["step"])
        self.weights = {
            name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in vit.state_dict().items()
        }
        return True

    def look(self) -> Look | None:
        """Scores of the best point; none before there is one."""
        return next((look for look in self.looks if look["step"] == self.step), None)

    def vit(self, config: ViTConfig) -> VisionTransformer | None:
        """The best encoder; none before there is one.

        Args:
            config: Its architecture.
        """
        if self.weights is None:
            return None
        with torch.device("meta"):  # no random start, which would draw from the run's generator
            vit = VisionTransformer(config)
        vit.load_state_dict({name: tensor.clone() for name, tensor in self.weights.items()}, assign=True)
        if vit.pos_embed is not None:
            vit.pos_embed.requires_grad_(config.pos_embed == "learned")
        return vit.eval()

    def save(
        self,
        directory: Path,
        vit: VisionTransformer,
        preprocess: Preprocess,
        facts: Mapping[str, Any],
        *,
        pool: str = "cls",
        licence: str | None = None,
    ) -> None:
        """Write the best encoder, as it is to be used, as a model folder.

        Args:
            directory: Where the folder shall be.
            vit: The best encoder (``vit()``), whitened or not.
            preprocess: How images become its input.
            facts: Provenance of the run.
            pool: How its tokens become one vector.
            licence: Of its weights.
        """
        provenance = {**facts, **self.provenance("best")}
        save_model(directory, vit, preprocess, pool=pool, licence=licence, provenance=provenance)

    def provenance(self, which: str) -> dict[str, Any]:
        """Where an exported encoder stands in the run.

        Args:
            which: ``best``, ``last``, or ``frozen`` (what a continued run started from).
        """
        if not self.looks:
            return {"which": which}
        chosen = self.look() if which == "best" else self.looks[0 if which == "frozen" else -1]
        return {
            "which": which,
            "judged_by": judged_by(self.looks[-1]),
            "scores": chosen,
            "scores_at_start": self.looks[0],
            "best_step": self.step,
        }

    def state_dict(self) -> dict[str, Any]:
        """For the training checkpoint: plain data and tensors."""
        return {"looks": self.looks, "best_step": self.step, "best_weights": self.weights} if self.looks else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.looks = [dict(look) for look in state["looks"]]
        self.step, self.weights = state["best_step"], state["best_weights"]
