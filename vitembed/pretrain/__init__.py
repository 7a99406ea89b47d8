"""How the encoder learns without labels. The only room that imports Lightning.

The package can be called: ``vitembed.pretrain(images)`` is ``vitembed.pretrain.run.pretrain(images)``. Python binds a
sub-package to its name in the parent as soon as anything in it is imported, so the room and the function of the same
name have to be one object.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from vitembed.pretrain.run import pretrain

        return pretrain(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableRoom
