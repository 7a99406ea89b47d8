"""A process that trains beside the first one on this machine: ``python -m vitembed.pretrain.many.worker PLAN``.

Ends when the first process ends, however that came about.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from vitembed.errors import FailedElsewhere, VitembedError


def main(plan_file: str) -> int:
    """Train by the plan; the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    from vitembed.pretrain.many.follow import train_by_plan

    try:
        train_by_plan(json.loads(Path(plan_file).read_text(encoding="utf-8")))
    except FailedElsewhere:
        return 1
    except VitembedError as error:
        logging.getLogger("vitembed").error("Error: %s", error)
        return 1
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # stdin: nothing ever comes, and it ends when the parent does
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
