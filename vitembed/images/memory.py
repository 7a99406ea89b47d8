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


def available_bytes() -> int:
    """Memory that is free for this process now, without pushing others out; half of all where the system does not tell.

    Cached files count as free, as the system gives them up.
    """
    try:
        with open("/proc/meminfo", "rb") as file:
            table = dict(line.split(b":", 1) for line in file if b":" in line)
        available = int(table[b"MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        return memory_bytes() // 2
    group = _group_available()
    return available if group is None else min(available, group)


def _group_available() -> int | None:
    """What the container's limit leaves; none where there is no limit."""
    try:
        with open("/sys/fs/cgroup/memory.max", "rb") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.current", "rb") as file:
            used = int(file.read())
        with open("/sys/fs/cgroup/memory.stat", "rb") as file:
            cached = next((int(line.split()[1]) for line in file if line.startswith(b"inactive_file ")), 0)
    except (OSError, ValueError):
        return None
    return max(0, limit - used + cached)
