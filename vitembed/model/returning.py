"""A model that vitembed exported for another library, read back: what that library's format has no place for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitembed.errors import ModelError, printable
from vitembed.images.preprocess import Preprocess
from vitembed.model.vit import VisionTransformer
from vitembed.model.weights_file import read_weights
from vitembed.model.whitening import with_cls_proj

KEY = "vitembed"
"""Where ``export.fitting.facts`` lie in a safetensors file's metadata."""

_ACTS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}


@dataclass(frozen=True, kw_only=True)
class Returned:
    """What an exported file says of itself."""

    preprocess: Preprocess
    pool: str
    licence: str | None
    provenance: dict[str, Any]
    """Of the model that was exported."""
    fingerprint: str
    """Of the model that was exported."""
    config: dict[str, Any]
    """What weights cannot tell of an architecture, in the words of a ``config.json``."""
    cls_proj: str | None
    """Where the map behind the cls vector is: the layer that it became, or a file beside; none if there is none."""

    def completed(self, vit: VisionTransformer, weights: Mapping[str, Tensor], path: Path) -> VisionTransformer:
        """The converted encoder with the map behind its cls vector put back.

        Args:
            vit: What the converter made of the file.
            weights: All that is in the file.
            path: The file.

        Raises:
            ModelError: If the map is not where the file says.
        """
        if self.cls_proj is None:
            return vit
        prefix, source = self.cls_proj, weights
        if prefix.endswith(".safetensors"):
            prefix, source = "cls_proj", read_weights(path.parent / Path(prefix).name)
        try:
            return with_cls_proj(vit, source[f"{prefix}.weight"], source[f"{prefix}.bias"])
        except (KeyError, RuntimeError) as error:
            raise ModelError(
                f"{printable(path)} says that a linear map follows its cls vector, but has none that fits at "
                f"{self.cls_proj}: export the model anew"
            ) from error


def read_returned(path: Path) -> Returned | None:
    """What the file says of itself; none if it was not exported by vitembed.

    Raises:
        ModelError: If what it says is damaged.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(KEY)
        if told is None:
            return None
        facts = json.loads(told)
        return Returned(
            preprocess=Preprocess.from_dict(facts["preprocess"]),
            pool=str(facts["pool"]),
            licence=facts["licence"],
            provenance=dict(facts["provenance"]),
            fingerprint=str(facts["fingerprint"]),
            config={
                "num_attention_heads": facts["architecture"]["num_heads"],
                "layer_norm_eps": facts["architecture"]["norm_eps"],
                "hidden_act": _ACTS[facts["architecture"]["act"]],
            },
            cls_proj=facts.get("cls_proj"),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"what {printable(path)} says of itself is damaged ({error}): export the model anew"
        ) from error
