"""One decoding process, as seen from both sides: the loop it runs, and the handle by which another process uses it.

A decoder in C that crashes takes its process with it, and one that hangs cannot be stopped but by ending its process.
Here that process holds nothing else. Started as a program of its own (not forked, and never importing the user's
script again), it loads NumPy and Pillow but no torch, and is ready within a quarter of a second.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import BinaryIO, NoReturn

import numpy as np

from vitembed.errors import BadImage
from vitembed.images.loaded import Loaded
from vitembed.images.source import ImageRef

# Answers are plain bytes, not pickles: what a decoder that went wild says is not run.
_ANSWER = struct.Struct("<cdIIIIQ")  # kind, seconds, rows, columns, full width, full height, bytes that follow
_GOOD, _BAD, _BUG, _GAVE_UP = b"+", b"-", b"!", b"~"
_READY, _NEVER = b"ready", b"never"
_LENGTH = struct.Struct("<Q")

_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from vitembed.images.worker import serve; serve(sys.stdin.buffer)"
)


class WorkerLostError(Exception):
    """The process ended before it answered; holds its exit status, negative for a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class GaveUpError(Exception):
    """Raised by what loads images, or by its ``prepare``: this process is not to be asked again."""


class WorkerBugError(Exception):
    """Our bug inside the process, with its traceback."""


class Worker:
    """A decoding process.

    Args:
        load: What it does with each image; must be picklable and importable there (``Preprocess.load_image`` is). Its
            ``prepare``, if it has one, is called there first.
        time_limit: Seconds after which it ends itself while busy with one image, where the system has timers.
    """

    def __init__(self, load: Callable[[ImageRef], Loaded], time_limit: float) -> None:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # it computes nothing large
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the process that holds the results
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        with contextlib.suppress(BrokenPipeError):  # the first answer that does not come will tell
            self._to.write(pickle.dumps(list(sys.path)))
            self._send(pickle.dumps((load, time_limit)))

    def wait_until_ready(self) -> None:
        """Wait until it has started.

        Raises:
            WorkerLostError: If it could not.
            GaveUpError: If ``prepare`` says that it is of no use, and why.
        """
        try:
            if self._receive(len(_READY)) == _NEVER:
                raise GaveUpError(self._receive(_LENGTH.unpack(self._receive(_LENGTH.size))[0]).decode())
        except EOFError:
            raise WorkerLostError(self._process.wait()) from None

    def load(self, ref: ImageRef) -> tuple[Loaded | BadImage, float]:
        """Let it load one image, and wait; with the seconds that it took there.

        Raises:
            WorkerLostError: If it ended instead.
            GaveUpError: If it says that it is of no more use, and why.
            WorkerBugError: If it met with anything but a bad image.
        """
        try:
            self._send(pickle.dumps(ref))
            kind, seconds, rows, columns, width, height, num_bytes = _ANSWER.unpack(self._receive(_ANSWER.size))
            data = self._receive(num_bytes)
        except (BrokenPipeError, EOFError):
            raise WorkerLostError(self._process.wait()) from None
        if kind == _GOOD:
            pixels = np.frombuffer(data, np.uint8, rows * columns * 3).reshape(rows, columns, 3)
            words = data[pixels.nbytes :].decode("utf-8", "replace")
            return Loaded(pixels, (width, height), tuple(words.splitlines())), seconds
        text = data.decode("utf-8", "replace")
        if kind == _GAVE_UP:
            raise GaveUpError(text)
        if kind == _BUG:
            raise WorkerBugError(f"in a decoding process:\n{text}")
        return BadImage(ref.path, text), seconds

    def kill(self) -> None:
        """End it at once; ``load`` in another thread raises."""
        self._process.kill()

    def close(self) -> None:
        """Let it go, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                pipe.close()

    def _send(self, data: bytes) -> None:
        self._to.write(_LENGTH.pack(len(data)) + data)
        self._to.flush()

    def _receive(self, num_bytes: int) -> bytes:
        data = self._from.read(num_bytes)
        if len(data) < num_bytes:
            raise EOFError
        return data


def serve(stdin: BinaryIO) -> None:
    """Load images until there is nobody left to answer to."""
    # A program without stderr hands on none: its number must not go to the answers, which are to outlive it.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    # Whatever a C library prints to stdout must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        load, time_limit = pickle.loads(_receive(stdin))
        try:
            getattr(load, "prepare", lambda: None)()
        except GaveUpError as error:
            reason = str(error).encode("utf-8", "backslashreplace")
            answers.write(_NEVER + _LENGTH.pack(len(reason)) + reason)
            answers.flush()
            _leave()
        answers.write(_READY)
        answers.flush()
        # From here on what is wrong with an image goes by its answer. What libtiff and others print besides, hundreds
        # of lines that name no file, would bury it.
        with open(os.devnull, "wb") as silent:
            os.dup2(silent.fileno(), 1)
            os.dup2(silent.fileno(), 2)
        while True:
            ref = pickle.loads(_receive(stdin))
            with _time_limit(time_limit):
                answer = _answer(load, ref)
            answers.write(answer)
            answers.flush()
    except (EOFError, BrokenPipeError):
        _leave()


def _answer(load: Callable[[ImageRef], Loaded], ref: ImageRef) -> bytes:
    start = time.perf_counter()
    rows = columns = 0
    size = (0, 0)
    try:
        loaded = load(ref)
    except BadImage as error:
        kind, data = _BAD, error.reason.encode("utf-8", "backslashreplace")
    except GaveUpError as error:
        kind, data = _GAVE_UP, str(error).encode("utf-8", "backslashreplace")
    except Exception:
        kind, data = _BUG, traceback.format_exc().encode("utf-8", "backslashreplace")
    else:
        words = "\n".join(loaded.notes).encode("utf-8", "backslashreplace")
        kind, data, size = _GOOD, np.ascontiguousarray(loaded.pixels).tobytes() + words, loaded.full_size
        rows, columns = loaded.pixels.shape[:2]
    return _ANSWER.pack(kind, time.perf_counter() - start, rows, columns, *size, len(data)) + data


def _receive(stdin: BinaryIO) -> bytes:
    head = stdin.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = stdin.read(_LENGTH.unpack(head)[0])
    return data


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Be ended by the system when the block takes too long: also where nobody is left to do so."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _leave() -> NoReturn:
    os._exit(0)  # nothing to tidy up, and no broken pipe to complain about
