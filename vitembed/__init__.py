"""BERT-like embeddings for images: pretrain a ViT on your own pictures, search them, probe them.

Names are loaded on first use, so ``import vitembed`` costs neither torch nor FAISS.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module it lives in. The TYPE_CHECKING block below says the same to type checkers.
_HOMES = {
    "AttentiveProbe": "vitembed.probe.attentive",
    "BadImage": "vitembed.errors",
    "Collection": "vitembed.collection.collection",
    "Embeddings": "vitembed.embeddings",
    "Encoder": "vitembed.model.encoder",
    "KNNProbe": "vitembed.probe.knn",
    "LabelSession": "vitembed.probe.labelling.session",
    "LinearProbe": "vitembed.probe.linear",
    "RidgeProbe": "vitembed.probe.ridge",
    "ViTClassifier": "vitembed.pretrain.classifier",
    "VisionTransformer": "vitembed.model.vit",
    "VitembedError": "vitembed.errors",
    "finetune": "vitembed.pretrain.supervised.run",
    "load": "vitembed.model.encoder",
    "pretrain": "vitembed.pretrain",  # the room itself can be called
}
__all__ = [
    "AttentiveProbe",
    "BadImage",
    "Collection",
    "Embeddings",
    "Encoder",
    "KNNProbe",
    "LabelSession",
    "LinearProbe",
    "RidgeProbe",
    "ViTClassifier",
    "VisionTransformer",
    "VitembedError",
    "__version__",
    "finetune",
    "load",
    "pretrain",
]

if TYPE_CHECKING:
    from vitembed.collection.collection import Collection
    from vitembed.embeddings import Embeddings
    from vitembed.errors import BadImage, VitembedError
    from vitembed.model.encoder import Encoder, load
    from vitembed.model.vit import VisionTransformer
    from vitembed.pretrain.classifier import ViTClassifier
    from vitembed.pretrain.run import pretrain
    from vitembed.pretrain.supervised.run import finetune
    from vitembed.probe.attentive import AttentiveProbe
    from vitembed.probe.knn import KNNProbe
    from vitembed.probe.labelling.session import LabelSession
    from vitembed.probe.linear import LinearProbe
    from vitembed.probe.ridge import RidgeProbe


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = importlib.import_module(_HOMES[name])
        return home if home.__name__ == f"vitembed.{name}" else getattr(home, name)
    raise AttributeError(f"module 'vitembed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
