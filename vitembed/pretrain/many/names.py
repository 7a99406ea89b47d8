"""Parameters as the model calls them, also where FSDP has put its wrappers between and keeps them as flat parts."""

from __future__ import annotations

from torch import nn

_WRAPPED = "_fsdp_wrapped_module."


def plain_name(name: str) -> str:
    """A parameter's name without FSDP's wrappers."""
    return name.replace(_WRAPPED, "")


def num_axes(module: nn.Module) -> dict[str, int]:
    """How many axes each parameter has; to be asked before a module is wrapped."""
    return {name: parameter.ndim for name, parameter in module.named_parameters()}
