"""Images loaded by several processes, in order, where a decoder that crashes or hangs costs one image."""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from vitembed.errors import BadImage, VitembedError
from vitembed.images.loaded import Loaded
from vitembed.images.source import ImageRef
from vitembed.images.worker import GaveUpError, Worker, WorkerLostError

IMAGE_SECONDS = 120.0
"""How long one image may take. A PNG of 252 megapixels took 7 s of one core, and 40 s where others kept it busy."""
_START_SECONDS = 60.0
_WATCH_SECONDS = 0.25
log = logging.getLogger("vitembed")

_Result = tuple[Loaded | BadImage, float]


def load_in_processes(
    refs: Sequence[ImageRef],
    load: Callable[[ImageRef], Loaded],
    *,
    num_workers: int,
    look_ahead: int,
    image_seconds: float = IMAGE_SECONDS,
    also: Callable[[ImageRef], Loaded] | None = None,
) -> Generator[_Result, None, None]:
    """What ``load`` gives for each image, in order, with the seconds it took.

    An image whose decoder ends its process (a crash is given a second try in a fresh one) or takes too long is a
    ``BadImage`` that says so. Closing the generator ends the processes.

    Args:
        refs: Images to load.
        load: Picklable.
        num_workers: Processes.
        look_ahead: Images that may be loaded, or be on the way, before they are asked for.
        image_seconds: Time limit of one image.
        also: Another way to load images, as with a device of its own, in one more process beside the others. Where that
            process ends, is late or gives up, ``load`` takes its place: no image is bad for it.

    Raises:
        VitembedError: If processes cannot be started at all.
        WorkerBugError: If ``load`` raised anything but ``BadImage``.
    """
    crew = [_Seat(load, image_seconds) for _ in range(num_workers)]
    if also is not None:
        crew.append(_Seat(also, image_seconds, instead=load))
    jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
    over = threading.Event()
    threads = [threading.Thread(target=seat.serve, args=(jobs,), name="vitembed-decode", daemon=True) for seat in crew]
    watch = threading.Thread(target=_watch, args=(crew, over), name="vitembed-decode-watch", daemon=True)
    for thread in (*threads, watch):
        thread.start()
    pending = deque[Future[_Result]]()
    try:
        for ref in refs:
            job = _Job(ref, Future())
            jobs.put(job)
            pending.append(job.future)
            if len(pending) >= look_ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        over.set()
        for _ in threads:
            jobs.put(None)
        for seat in crew:
            seat.end()
        for thread in (*threads, watch):
            thread.join()


@dataclass(frozen=True)
class _Job:
    ref: ImageRef
    future: Future[_Result]


class _Seat:
    """A place for one process at a time, served by one thread; a lost process is replaced by a new one.

    ``instead`` is what its processes do once one that did ``load`` was lost.
    """

    def __init__(
        self,
        load: Callable[[ImageRef], Loaded],
        image_seconds: float,
        instead: Callable[[ImageRef], Loaded] | None = None,
    ) -> None:
        self._load = load
        self._instead = instead
        self._image_seconds = image_seconds
        self._worker: Worker | None = None
        self._deadline = float("inf")
        self._late = False
        self._ended = False
        self._turn = threading.Lock()

    def serve(self, jobs: queue.SimpleQueue[_Job | None]) -> None:
        if self._instead is not None and not self._starts():
            return  # the other seats do it all
        while (job := jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            try:
                result = self._try(job.ref)
            except BaseException as error:  # belongs to whoever waits for the image
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
        self._dismiss()

    def end(self) -> None:
        """Start nothing more, and end what is running."""
        with self._turn:
            self._ended = True
            if self._worker is not None:
                self._worker.kill()

    def end_if_late(self) -> None:
        with self._turn:
            if self._worker is not None and time.monotonic() > self._deadline:
                self._late = True
                self._worker.kill()

    def _try(self, ref: ImageRef) -> _Result:
        start = time.perf_counter()
        if self._instead is not None:
            try:
                return self._ask(ref)
            except (WorkerLostError, GaveUpError) as lost:
                if self._ended:
                    raise
                self._step_back(lost)
        for attempt in itertools.count(1):
            try:
                return self._ask(ref)
            except WorkerLostError as lost:
                late = self._late or lost.status == -getattr(signal, "SIGALRM", 0)
                self._dismiss()
                if self._ended:
                    raise
                # A crash may be the machine's (memory) or an earlier image's doing: the second one is this image's.
                if late or attempt == 2:
                    reason = self._reason(late, lost.status)
                    return BadImage(ref.path, reason), time.perf_counter() - start
        raise AssertionError

    def _ask(self, ref: ImageRef) -> _Result:
        worker = self._ready()
        self._late = False
        self._deadline = time.monotonic() + self._image_seconds
        try:
            return worker.load(ref)
        finally:
            self._deadline = float("inf")

    def _starts(self) -> bool:
        """Whether the process that does ``load`` is there; it is started before it is given anything."""
        try:
            self._ready()
        except (WorkerLostError, GaveUpError, VitembedError) as lost:
            if not self._ended:
                self._step_back(lost)
            return False
        finally:
            self._deadline = float("inf")
        return True

    def _step_back(self, lost: Exception) -> None:
        """Leave the way of loading that failed, and say so."""
        assert self._instead is not None
        reason = self._reason(self._late, lost.status) if isinstance(lost, WorkerLostError) else str(lost)
        log.warning("%s is of no use here: %s. Decoding goes on without it", self._load, reason)
        self._dismiss()
        self._load, self._instead = self._instead, None

    def _ready(self) -> Worker:
        with self._turn:
            if self._ended:
                raise WorkerLostError(0)
            if self._worker is not None:
                return self._worker
            try:
                # Its own alarm is the second line: it also goes off when this process is gone.
                self._worker = worker = Worker(self._load, self._image_seconds + 4 * _WATCH_SECONDS)
            except OSError as error:
                raise VitembedError(f"cannot start a decoding process: {error.strerror}") from error
            self._deadline = time.monotonic() + _START_SECONDS
        try:
            worker.wait_until_ready()
        except WorkerLostError as lost:
            if self._ended:
                raise
            self._dismiss()
            raise VitembedError(
                f"a decoding process ended at its start with status {lost.status}: see its message above, "
                "or decode in this process with num_workers=0"
            ) from lost
        return worker

    def _dismiss(self) -> None:
        with self._turn:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _reason(self, late: bool, status: int) -> str:
        if late:
            return f"took longer than {self._image_seconds:g} s to decode"
        with contextlib.suppress(ValueError):
            return f"crashed its decoder ({signal.Signals(-status).name})"
        return f"crashed its decoder (status {status})"


def _watch(crew: Sequence[_Seat], over: threading.Event) -> None:
    while not over.wait(_WATCH_SECONDS):
        for seat in crew:
            seat.end_if_late()
