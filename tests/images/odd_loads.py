"""What a decoder might do to its process. Loaded by test_pool.py and by the processes that it starts."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings

import numpy as np

from vitembed.errors import BadImage
from vitembed.images.loaded import Loaded
from vitembed.images.on_demand import Squash


def load(ref):
    """Does what the path says; its pixels are the number in front."""
    number, _, what = ref.path.partition(" ")
    if what == "bad":
        raise BadImage(ref.path, "bad on purpose")
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as deaf as a loop in C that blocks signals
        time.sleep(600)
    if what == "exit":
        os._exit(7)
    if what == "bug":
        raise RuntimeError("a bug of ours")
    if what == "slow":
        time.sleep(0.02)
    if what == "chatty":
        for stream in (1, 2):
            os.write(stream, b"libodd: warning: what a strange file\n" * 100)
        warnings.warn("libodd: what a strange file", stacklevel=1)
    if what == "modules":
        raise BadImage(
            ref.path, " ".join(sorted({"torch", "torchvision", "faiss", "scipy"} & {*sys.modules})) or "none"
        )
    if what.startswith("crash once "):
        mark = what.removeprefix("crash once ")
        if not os.path.exists(mark):
            open(mark, "w").close()
            os.abort()
    return Loaded(np.full((2, 2, 3), int(number) % 251, np.uint8), (int(number), 7))


class Crashing(Squash):
    """Brings its process down on one image."""

    def __call__(self, ref):
        if ref.path.endswith("020.png"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__call__(ref)


class Unstartable:
    """Cannot be read back in another process."""

    def __reduce__(self):
        return (os._exit, (3,))

    def __call__(self, ref):
        raise AssertionError
