"""FAISS and the files that it searches: the exact scan, and the approximate index for when that is too slow.

Names are loaded on first use, so that settings can be had without FAISS.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public name -> the module it lives in. The TYPE_CHECKING block below says the same to type checkers.
_HOMES = {
    "AnnReport": "vitembed.collection.ann.settings",
    "AnnSettings": "vitembed.collection.ann.settings",
    "Approx": "vitembed.collection.ann.approx",
    "ApproxCache": "vitembed.collection.ann.approx",
    "CACHE_FILE": "vitembed.collection.ann.scan",
    "CacheKey": "vitembed.collection.ann.cache_file",
    "MANIFEST_FILE": "vitembed.collection.ann.scan",
    "Scan": "vitembed.collection.ann.scan",
    "VectorCache": "vitembed.collection.ann.scan",
}
__all__ = [
    "CACHE_FILE",
    "MANIFEST_FILE",
    "AnnReport",
    "AnnSettings",
    "Approx",
    "ApproxCache",
    "CacheKey",
    "Scan",
    "VectorCache",
]

if TYPE_CHECKING:
    from vitembed.collection.ann.approx import Approx, ApproxCache
    from vitembed.collection.ann.cache_file import CacheKey
    from vitembed.collection.ann.scan import CACHE_FILE, MANIFEST_FILE, Scan, VectorCache
    from vitembed.collection.ann.settings import AnnReport, AnnSettings


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vitembed.collection.ann' has no attribute {name!r}")
