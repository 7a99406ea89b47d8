"""The one place outside Lightning that picks a device."""

from __future__ import annotations

import torch

from vitembed.errors import ConfigError


def resolve_device(device: str = "auto") -> torch.device:
    """The device named, or the best there is: CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: If the named device is unknown or absent.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: expected auto, cpu, cuda, cuda:N or mps") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r} is not here: {torch.cuda.device_count()} CUDA devices are visible")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not here: use auto or cpu")
    return chosen
