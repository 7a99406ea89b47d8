"""Starts a process for each further device of this machine, watches them, and ends them.

They run the plan of the first process (``worker.py``), not the user's command line again as Lightning's own launcher
would have it: so several devices also work from a notebook, from ``python -c``, and in the middle of a longer script.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitembed.atomic import atomic_path
from vitembed.errors import TrainingError, VitembedError

log = logging.getLogger("vitembed")

PLAN_FILE = "plan.json"
"""In the run folder, while it trains."""
_GRACE_SECONDS = 30.0


@contextlib.contextmanager
def workers(plan: dict[str, Any], run_dir: Path, count: int) -> Iterator[None]:
    """Processes 1 to ``count - 1`` on this machine, for the time of the block."""
    with atomic_path(run_dir / PLAN_FILE) as path:
        path.write_text(json.dumps(plan), encoding="utf-8")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    before = {name: os.environ.get(name) for name in (*shared, "LOCAL_RANK")}
    # LOCAL_RANK tells Lightning that the processes are started by someone else.
    os.environ.update(shared, LOCAL_RANK="0")
    children: list[subprocess.Popen[bytes]] = []
    over = threading.Event()
    try:
        for rank in range(1, count):
            command = [sys.executable, "-m", "vitembed.pretrain.many.worker", str(run_dir / PLAN_FILE)]
            # The pipe is never written to: its end tells the child that this process is gone, however it went.
            child = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "LOCAL_RANK": str(rank)})
            children.append(child)
        threading.Thread(target=_watch, args=(children, over), name="vitembed-workers", daemon=True).start()
        yield
        over.set()
        _end(children, patience=_GRACE_SECONDS)
    except BaseException as error:
        over.set()
        if not isinstance(error, (VitembedError, KeyboardInterrupt)):
            time.sleep(0.5)  # one that failed first may still be ending
        failed = [(rank, code) for rank, child in enumerate(children, 1) if (code := child.poll())]
        # Where all stop for the same reason, the others still have to keep their part of what happened.
        _end(children, patience=5.0 if isinstance(error, VitembedError) else 0.0)
        if failed and not isinstance(error, (VitembedError, KeyboardInterrupt)):
            raise TrainingError(_obituary(*failed[0], count)) from error
        raise
    finally:
        _leave_group()
        (run_dir / PLAN_FILE).unlink(missing_ok=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _watch(children: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End this process when a child has failed and it waits for that child in vain, as for a GPU's message."""
    while not over.wait(0.5):
        failed = [(rank, code) for rank, child in enumerate(children, 1) if (code := child.poll())]
        if failed and not over.wait(_GRACE_SECONDS):
            log.error("Error: %s", _obituary(*failed[0], len(children) + 1))
            _end(children, patience=0.0)
            os._exit(1)  # the main thread cannot be woken: it hangs in a library


def _obituary(rank: int, code: int, count: int) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"process {rank} of {count} {how}: what it said is above; the same command goes on from the last save"


def _end(children: list[subprocess.Popen[bytes]], *, patience: float) -> None:
    deadline = time.monotonic() + patience
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=max(0.0, deadline - time.monotonic()))
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()


def _leave_group() -> None:
    """Forget the process group, so that a later run in this process is on its own again."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
