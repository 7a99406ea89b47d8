"""Makes torchvision importable beside a CPU-only torch.

The torchvision wheels on PyPI are linked against CUDA. Beside a CPU-only torch their native library cannot load and
``import torchvision`` ends in "operator torchvision::nms does not exist" (pytorch/vision#9085), which also takes down
torchmetrics, Lightning and timm. Only native operators are affected, none of which we use: declaring the operators
that torchvision's Python code expects (nms, qnms) lets the rest (data sets, transforms) work.
"""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType
from typing import Any

_MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
_library: Any = None  # the declarations live as long as this object


def import_torchvision() -> ModuleType:
    """torchvision, with its native operators missing if its wheel does not fit the installed torch.

    Call it before the first import of Lightning, torchmetrics or timm.

    Raises:
        ImportError: If torchvision is not installed.
    """
    global _library
    declared: set[str] = set()
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = _MISSING.search(str(error))
            if missing is None or missing[1] in declared:
                raise
            declared.add(missing[1])
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        if _library is None:
            _library = torch.library.Library(  # type: ignore[no-untyped-call]
                "torchvision", "FRAGMENT"
            )
        _library.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
