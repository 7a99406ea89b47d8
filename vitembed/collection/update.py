"""Bringing a collection up to date: the plan's cheap steps in one transaction, then images batch by batch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from vitembed.collection.catalog import Catalog
from vitembed.collection.lost import Offline
from vitembed.collection.plan import Plan, Work, hash_content
from vitembed.embeddings import unit_rows
from vitembed.errors import BadImage, DataError, ModelError, printable
from vitembed.images.source import ImageRef

MAX_UNCOMMITTED_IMAGES = 1_000
MAX_UNCOMMITTED_SECONDS = 30.0

Version = TypeVar("Version")


@runtime_checkable
class EmbeddedImages(Protocol):
    """Some of the images that an encoder was given (``vitembed.model.encoder.EmbeddedBatch``).

    It may also have ``image_sizes`` ``[b, 2]``: width and height of each image in its file, in pixels.
    """

    @property
    def indices(self) -> np.ndarray: ...  # noqa: D102
    @property
    def vectors(self) -> np.ndarray: ...  # noqa: D102
    @property
    def bad(self) -> list[tuple[int, BadImage]]: ...  # noqa: D102
    @property
    def model_seconds(self) -> float: ...  # noqa: D102


@runtime_checkable
class StreamsVectors(Protocol):
    """What a collection asks of an encoder; ``vitembed.load`` gives one, but any object with these will do."""

    @property
    def fingerprint(self) -> str:
        """Hex digest of everything that shapes a vector."""

    @property
    def embed_dim(self) -> int:
        """Width of a vector."""

    def stream(
        self, refs: Sequence[ImageRef], *, batch_size: int = 64, num_workers: int | None = None
    ) -> Iterator[EmbeddedImages]:
        """Vectors batch by batch."""


@runtime_checkable
class ComesInVersions(Protocol):
    """An encoder that can also decode as older versions of it did: ``Encoder``."""

    def that_made(self, fingerprint: str) -> Any:
        """Give the version that made vectors of this fingerprint; itself if none did."""


def version_of(encoder: Version, fingerprint: str) -> Version:
    """Give the version of an encoder that made vectors of this fingerprint; the encoder itself if none did."""
    return encoder.that_made(fingerprint) if isinstance(encoder, ComesInVersions) else encoder


@dataclass(frozen=True)
class UpdateProgress:
    """Where an update stands, for a progress bar."""

    done: int
    """Images that have been embedded or found bad, committed or not."""
    total: int
    """Images to embed in this update."""
    num_bad: int
    images_per_second: float
    eta_seconds: float | None
    """None as long as nothing is known."""
    decode_share: float
    """Share of the time, 0 to 1, that the model waited for decoded images."""
    model_share: float
    """The other share, in which the model worked."""


@dataclass(frozen=True)
class UpdateReport:
    """What an update did, in images."""

    added: int
    changed: int
    deleted: int
    unchanged: int
    moved: int
    bad: list[BadImage]
    """Every image below the inputs that has no vector, with the reason, also those known from before."""
    num_other: int
    """Files that neither are nor claim to be images."""
    num_embedded: int
    """Images that went through the model; the rest was known by content."""
    seconds: float
    images_per_second: float
    """Through decoding and model, while there were images to embed; 0 if there were none."""
    limit: str
    """What would have to be faster: ``decode`` or ``model``."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Path and words for each odd thing about the files that were embedded, whose pixels are good."""
    offline: list[Offline] = field(default_factory=list)
    """Folders that are gone, wholly or mostly, and whose images are kept (``lost.py``)."""
    missing: list[BadImage] = field(default_factory=list)
    """Inputs that do not exist and of which nothing is known."""
    num_links: int = 0
    """Images that are the same file as another one, reached in another way; each file is embedded once."""
    passed_over: list[str] = field(default_factory=list)
    """Folders of trash, thumbnails and other programs that were not entered."""
    unfinished: list[str] = field(default_factory=list)
    """Downloads in progress and temporary files that were left out."""
    num_left_out: int = 0
    """Images of a collection that this one has replaced (``rebuild``) and that it does not have."""

    @property
    def num_offline(self) -> int:
        """Images below the inputs that are kept though they are not there."""
        return sum(item.num_images for item in self.offline)


class Uncommitted:
    """Vectors and bad images that wait for the next transaction, while their files are hashed in the background."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._pool = ThreadPoolExecutor(2)
        self._since = time.monotonic()
        self._good: list[tuple[Work, np.ndarray, tuple[int, int] | None, Future[bytes | None] | None]] = []
        self._bad: list[tuple[Work, BadImage]] = []

    def add(self, work: Work, vector: np.ndarray, image_size: tuple[int, int] | None) -> None:
        """Take a unit vector ``[d]``. Its file is hashed now, as the system has it in memory from decoding."""
        future = self._pool.submit(hash_content, work.entry) if work.content_hash is None else None
        self._good.append((work, vector, image_size, future))

    def add_bad(self, work: Work, error: BadImage) -> None:
        """Take an image that has no vector."""
        self._bad.append((work, error))

    def is_due(self) -> bool:
        """Whether as much would be lost as may be lost."""
        waiting = len(self._good) + len(self._bad)
        return waiting >= MAX_UNCOMMITTED_IMAGES or time.monotonic() - self._since >= MAX_UNCOMMITTED_SECONDS

    def commit(self) -> None:
        """Write everything in one transaction."""
        good, bad = self._good, self._bad
        # Forgotten first: if this write fails, it is not tried again on the way out.
        self._good, self._bad, self._since = [], [], time.monotonic()
        hashed = [
            (work, vector, image_size, work.content_hash if job is None else job.result())
            for work, vector, image_size, job in good
        ]
        if not hashed and not bad:
            return
        with self._catalog.write():
            for work, vector, image_size, content_hash in hashed:
                # A file that changed meanwhile has no hash here, and a stat that the next update finds out of date.
                entry = work.entry
                self._catalog.insert(
                    entry.path,
                    size=entry.size,
                    mtime_ns=entry.mtime_ns,
                    content_hash=content_hash,
                    image_size=image_size,
                    vector=vector,
                )
            for work, error in bad:
                insert_bad(self._catalog, work, error)

    def close(self) -> None:
        """Let go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def insert_bad(catalog: Catalog, work: Work, error: BadImage) -> None:
    """Record a bad image, so that it is not tried again before its file changes."""
    entry = work.entry
    # Permissions change without a new mtime: look again next time at what could not even be opened.
    mtime_ns = entry.mtime_ns if os.access(entry.path, os.R_OK) else -1
    reason = printable(error.reason)
    catalog.insert(entry.path, size=entry.size, mtime_ns=mtime_ns, status="bad", reason=reason)


def record_plan(catalog: Catalog, plan: Plan) -> None:
    """Everything in the plan that needs no encoder, in one transaction; nothing is written if there is nothing."""
    if not plan.changes_catalog():
        return
    with catalog.write():
        if plan.roots or plan.dropped_roots:
            catalog.set_roots(plan.roots, plan.dropped_roots)
        # Read before anything goes: two files that swapped names are each other's source.
        vectors = catalog.vectors([row.id for row, _ in plan.copied])
        catalog.delete(plan.deleted)
        for row_id, entry in (*plan.moved, *plan.touched):
            catalog.relocate(row_id, entry.path, entry.size, entry.mtime_ns)
        for (row, work), vector in zip(plan.copied, vectors, strict=True):
            entry = work.entry
            catalog.insert(
                entry.path,
                size=entry.size,
                mtime_ns=entry.mtime_ns,
                content_hash=work.content_hash,
                image_size=None if row.width is None or row.height is None else (row.width, row.height),
                vector=vector,
            )
        for work in tuple(plan.returned):
            assert work.content_hash is not None
            found = catalog.gone_vector(work.content_hash)
            if found is None:  # damaged
                plan.returned.remove(work)
                plan.embed.append(work)
                continue
            entry, (vector, image_size) = work.entry, found
            catalog.insert(
                entry.path,
                size=entry.size,
                mtime_ns=entry.mtime_ns,
                content_hash=work.content_hash,
                image_size=image_size,
                vector=vector,
            )
        for entry, error in plan.bad:
            insert_bad(catalog, Work(entry, False, None), error)
        for entry in plan.other:
            catalog.insert(entry.path, size=entry.size, mtime_ns=entry.mtime_ns, status="other")


def embed_plan(
    catalog: Catalog,
    plan: Plan,
    encoder: StreamsVectors,
    *,
    batch_size: int,
    num_workers: int | None,
    progress: Callable[[UpdateProgress], None] | None,
) -> tuple[list[BadImage], list[tuple[str, str]], float, float]:
    """Embed and commit the images of the plan; what was embedded when an exception comes is committed too.

    Returns:
        The images that turned out bad, notes on others (path and words), the seconds it took, and the share of them in
        which the model worked.
    """
    start = time.perf_counter()
    bad: list[BadImage] = []
    notes: list[tuple[str, str]] = []
    done, model_seconds, model_share = 0, 0.0, 0.0
    uncommitted = Uncommitted(catalog)
    cleanup = contextlib.ExitStack()
    try:
        refs = [ImageRef(work.entry.path) for work in plan.embed]
        batches = encoder.stream(refs, batch_size=batch_size, num_workers=num_workers)
        cleanup.callback(getattr(batches, "close", lambda: None))  # ends what decodes ahead, also after Ctrl-C
        for batch in batches:
            errors = list(batch.bad)
            if batch.vectors.shape != (len(batch.indices), catalog.dim):
                raise ModelError(
                    f"the encoder gave vectors of shape {list(batch.vectors.shape)} for {len(batch.indices)} images, "
                    f"expected width {catalog.dim}"
                )
            sizes = _image_sizes(batch)
            for index, vector, image_size in zip(
                batch.indices.tolist(), _unit_or_none(batch.vectors), sizes, strict=True
            ):
                work = plan.embed[index]
                if vector is None:
                    errors.append((index, BadImage(work.entry.path, "its vector is zero or not finite")))
                else:
                    for each in (work, *plan.links.get(work.entry.path, ())):
                        uncommitted.add(each, vector, image_size)
            for index, error in errors:
                uncommitted.add_bad(plan.embed[index], error)
                bad.append(error)
                for other in plan.links.get(plan.embed[index].entry.path, ()):
                    bad.append(BadImage(other.entry.path, error.reason))
                    uncommitted.add_bad(other, bad[-1])
            notes += [(refs[place].path, words) for place, words in getattr(batch, "notes", ())]
            done += len(batch.indices) + len(batch.bad)
            model_seconds += batch.model_seconds
            if uncommitted.is_due():
                uncommitted.commit()
            elapsed = time.perf_counter() - start
            model_share = min(1.0, model_seconds / max(elapsed, 1e-9))
            if progress is not None:
                speed = done / max(elapsed, 1e-9)
                eta = (len(refs) - done) / speed if done else None
                progress(UpdateProgress(done, len(refs), len(bad), speed, eta, 1 - model_share, model_share))
    finally:
        with cleanup:
            cleanup.callback(uncommitted.close)
            uncommitted.commit()
    if done != len(refs):
        raise ModelError(f"the encoder answered for {done} of {len(refs)} images")
    return bad, notes, time.perf_counter() - start, model_share


def report_plan(
    plan: Plan,
    bad: Sequence[BadImage],
    more_bad: Sequence[BadImage],
    seconds: float,
    embed_seconds: float,
    model_share: float,
    notes: Sequence[tuple[str, str]] = (),
) -> UpdateReport:
    """What became of a plan.

    Args:
        plan: That was carried out.
        bad: Images that were found bad when the plan was made.
        more_bad: Those that turned out bad when they were embedded.
        seconds: Of all.
        embed_seconds: Of embedding; 0: there was nothing to embed.
        model_share: Of these, in which the model worked.
        notes: On images that were embedded.
    """
    failed = {error.path for error in more_bad}
    num_embedded = sum(work.entry.path not in failed for work in plan.embed)
    linked = [work for works in plan.links.values() for work in works]
    good = [work for work in (*plan.embed, *linked) if work.entry.path not in failed]
    good += [*plan.returned, *(work for _, work in plan.copied)]
    num_changed = sum(work.known for work in good)
    return UpdateReport(
        added=len(good) - num_changed,
        changed=num_changed,
        deleted=len(plan.deleted),
        unchanged=plan.num_unchanged,
        moved=len(plan.moved),
        bad=sorted([*plan.known_bad, *bad, *more_bad], key=lambda error: os.fsencode(error.path)),
        num_other=plan.num_other,
        num_embedded=num_embedded,
        seconds=seconds,
        images_per_second=num_embedded / embed_seconds if embed_seconds else 0.0,
        limit="model" if model_share >= 0.5 else "decode",
        offline=plan.offline,
        missing=plan.missing,
        num_links=plan.num_links,
        passed_over=plan.passed_over,
        unfinished=plan.unfinished,
        notes=list(notes),
    )


def _image_sizes(batch: EmbeddedImages) -> list[tuple[int, int] | None]:
    """Width and height of each image; None where the encoder does not tell."""
    sizes = getattr(batch, "image_sizes", None)
    if sizes is None:
        return [None] * len(batch.indices)
    return [(width, height) if width else None for width, height in sizes.tolist()]


def _unit_or_none(vectors: np.ndarray) -> list[np.ndarray | None]:
    """Unit rows; None for a row without direction."""
    try:
        return list(unit_rows(vectors))
    except DataError:  # some row; one by one tells which
        return [row for vector in vectors for row in (_unit_or_none(vector[None]) if len(vectors) > 1 else [None])]
