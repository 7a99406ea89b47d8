"""A command with all its children: wall time, processor time and the most memory that it held."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_LOOK_SECONDS = 0.1


class Command(NamedTuple):
    """What to run."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = {}
    """Beside what the benchmark itself has."""
    folder: Path | None = None


class Run(NamedTuple):
    """What a command took."""

    wall: float
    """Seconds."""
    cpu: float
    """Processor seconds of all its processes, those included that nobody waits for, as last seen."""
    memory: int
    """Most bytes at a time, of all its processes, looked at ten times a second; pages that they share count once."""
    status: int
    """Exit status; negative: the signal that ended it."""
    output: str
    """Standard output, then the last of standard error."""


def run(command: Command, *, kill_after: float | None = None) -> Run:
    """Run it to its end, or end it and all its children by SIGKILL after some seconds."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command.arguments,
        cwd=command.folder,
        env={**os.environ, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watch = _Watch(process.pid)
    killer = threading.Timer(kill_after, _kill, [process.pid]) if kill_after is not None else None
    if killer is not None:
        killer.start()
    before = os.times()
    output, errors = process.communicate()  # waits for it, which adds its processor time to that of our children
    after = os.times()
    wall = time.perf_counter() - start
    if killer is not None:
        killer.cancel()
    _kill(process.pid)  # whatever it has left behind
    waited = after.children_user + after.children_system - before.children_user - before.children_system
    memory, seen = watch.stop()
    return Run(wall, max(waited, seen), memory, process.returncode, f"{output}\n{errors[-20_000:]}")


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


class _Watch:
    """Looks at the memory and the processor time of a session's processes until it is stopped."""

    def __init__(self, session: int) -> None:
        self._session, self._most, self._end = session, 0, threading.Event()
        self._seconds: dict[str, float] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[int, float]:
        """Most bytes, and the processor seconds of each process as last seen, added up."""
        self._end.set()
        self._thread.join()
        return self._most, sum(self._seconds.values())

    def _look(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            held = 0
            for place in Path("/proc").iterdir():
                if not place.name.isdigit():
                    continue
                try:
                    # pid (name) state ppid group session ...; the name may hold spaces and brackets.
                    fields = (place / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self._session:
                    self._seconds[place.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                    held += _held_bytes(place)
            self._most = max(self._most, held)


def _held_bytes(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
