"""How much memory this process may use."""

from __future__ import annotations

import functools
import os


@functools.cache
def memory_bytes() -> int:
    """Physical memory, or the container's share of it; 0 where the system does not tell (Windows)."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
    try:
        with open("/sys/fs/cgroup/memory.max", "rb") as file:
            text = file.read().strip()
    except OSError:
        return memory
    return min(memory, int(text)) if text.isdigit() else memory
