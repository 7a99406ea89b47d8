"""A collection: vectors at rest that stay in step with a folder of images, and answer for it."""
# ruff: noqa: PTH100
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.atomic import make_folders
from vitembed.collection.catalog import CATALOG_FILE, VECTOR_TYPES, AbsentError, Catalog
from vitembed.collection.external import take_vectors, unit_vectors
from vitembed.collection.founding import (
    REBUILD_FILE,
    create_beside,
    create_catalog,
    default_root,
    delete_catalog,
    has_catalog,
    holds_vectors,
    num_rebuilt,
    replace_catalog,
)
from vitembed.collection.lost import Above, judge_lost
from vitembed.collection.nearest import Nearest
from vitembed.collection.plan import Plan, make_plan
from vitembed.collection.readable import Readable
from vitembed.collection.update import (
    StreamsVectors,
    UpdateProgress,
    UpdateReport,
    embed_plan,
    record_plan,
    report_plan,
    version_of,
)
from vitembed.config.ranges import BATCH_SIZE, NUM_WORKERS, check_numbers
from vitembed.embeddings import Embeddings
from vitembed.errors import BadImage, CollectionError, DataError, MismatchError, counted, printable
from vitembed.images.source import absolute_path, missing_error, walk
from vitembed.lock import exclusive

if TYPE_CHECKING:
    from types import TracebackType

    from vitembed.collection.ann import AnnReport, AnnSettings

LOCK_FILE = "write.lock"

log = logging.getLogger("vitembed")


class Collection(Readable):
    """Images as unit vectors of one encoder, in one folder. One process writes at a time, any number search.

    Scores are cosines: inner products, in float32, of the unit query with the stored unit vector, which is kept as
    float16. An image therefore meets itself at 1 up to that rounding (below 0.001). Equal scores are ordered by path.
    """

    def __init__(self, directory: Path, catalog: Catalog, *, replaces: bool = False) -> None:
        super().__init__(directory, catalog)
        self._replaces = replaces
        """Whether the catalogue lies beside the one that it will take the place of."""

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        *,
        fingerprint: str,
        dim: int,
        meta: dict[str, Any] | None = None,
        root: str | os.PathLike[str] | None = None,
        vector_type: str | None = None,
        rebuild: bool = False,
    ) -> Collection:
        """Make a collection in ``directory``, or open the one that is there if it is of the same encoder.

        Args:
            directory: Its folder, made if absent.
            fingerprint: Of the encoder; vectors of another one are refused from then on.
            dim: Width of the vectors.
            meta: JSON-safe facts about the encoder, for people.
            root: Paths below this folder are stored relative to it, so the collection can move with it. By default
                the folder that holds the workspace.
            vector_type: How vectors are stored: ``float16`` (the default: half the space, and the same neighbours) or
                ``float32``.
            rebuild: Make it anew, whatever encoder or damage one that is there has. That one is kept, and found by
                others, until the first ``update`` or ``update_from`` of this one has ended well and replaces it.

        Raises:
            MismatchError: If the one that is there belongs to another encoder, or to an older version's decoding (which
                ``open`` and ``update`` keep to), or stores vectors in another type.
            CollectionError: If it cannot be written, is damaged, of a newer format, or held by another writer.
        """
        folder = _absolute(directory)
        try:
            make_folders(folder)
        except OSError as error:
            raise CollectionError(f"cannot make {printable(folder)}: {error.strerror}") from error
        if vector_type is not None and vector_type not in VECTOR_TYPES:
            raise DataError(f"vector_type is {vector_type!r}, expected one of {', '.join(VECTOR_TYPES)}")
        # To open what is there nothing is written, not even who does so.
        with exclusive(folder / LOCK_FILE, CollectionError, announce=rebuild or not has_catalog(folder)):
            if not rebuild:
                with contextlib.suppress(AbsentError):
                    collection = cls.open(folder)
                    try:
                        collection._refuse_others(fingerprint, dim)
                        collection._refuse_type(vector_type)
                        return collection
                    except MismatchError:
                        # One that holds nothing binds nobody, as after a model that could not embed.
                        is_empty = collection.holds_nothing()
                        collection.close()
                        if not is_empty:
                            raise
            top = default_root(folder) if root is None else _absolute(root)
            stored_as = vector_type or "float16"
            if rebuild and holds_vectors(folder):
                beside = create_beside(folder, str(top), fingerprint, dim, dict(meta or {}), stored_as)
                return cls(folder, beside, replaces=True)
            catalog = create_catalog(folder, str(top), fingerprint, dim, dict(meta or {}), stored_as, rebuild)
            return cls(folder, catalog)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> Collection:
        """Open the collection in ``directory``, for searching or updating.

        Raises:
            CollectionError: If there is none, or it is damaged or of a newer format.
        """
        folder = _absolute(directory)
        return cls(folder, Catalog.open(folder / CATALOG_FILE))

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._catalog.close()

    def update(
        self,
        encoder: StreamsVectors,
        inputs: Sequence[str | os.PathLike[str]],
        *,
        batch_size: int = 64,
        num_workers: int | None = None,
        follow_symlinks: bool = False,
        retry_bad: bool = False,
        prune: bool = False,
        progress: Callable[[UpdateProgress], None] | None = None,
    ) -> UpdateReport:
        """Bring the vectors of ``inputs`` up to date. Costs stat calls alone where nothing has changed.

        New and changed images are embedded. A file that was moved or copied keeps its vector, known by content, as
        does one that comes back before ``vacuum``. Rows of files below ``inputs`` that are gone are deleted, unless an
        input or a folder that was indexed before is gone, wholly or mostly: these are kept as offline and reported
        (``lost.py``). An input that is missing stops nothing. Unreadable images are recorded with the reason and tried
        again when their file changes. At least every 1,000 images or 30 seconds all is committed: a killed update
        loses no more than that, and the same call goes on from there.

        Args:
            encoder: Must be the one that made the collection. One that decodes otherwise than an older version did
                goes back to that version's decoding (``Encoder.that_made``).
            inputs: Folders (recursive), files, ``@list.txt``.
            batch_size: Images per pass through the model.
            num_workers: Threads that decode; by default the encoder's own choice.
            follow_symlinks: Enter linked folders.
            retry_bad: Try all bad images again.
            prune: Delete the rows of files that are gone in any case.
            progress: Called after each batch.

        Raises:
            ConfigError: If ``batch_size`` or ``num_workers`` is out of range.
            MismatchError: If the encoder is another one.
            CollectionError: If another process is writing.
            DataError: If no input exists and nothing is known of any, or one is neither a file nor a folder.
        """
        start = time.perf_counter()
        check_numbers(batch_size=(batch_size, BATCH_SIZE), num_workers=(num_workers, NUM_WORKERS))
        encoder = version_of(encoder, self.fingerprint)
        self._refuse_others(encoder.fingerprint, encoder.embed_dim)
        left_out = 0
        with exclusive(self.directory / LOCK_FILE, CollectionError, announce=False):
            pass  # another writer is met before the folders are walked, not after
        inputs = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
        plan, state = self._plan(inputs, follow_symlinks, retry_bad, prune)
        if self._replaces and not prune:
            self._refuse_to_lose(inputs, follow_symlinks)
        bad, embed_seconds, model_share = [error for _, error in plan.bad], 0.0, 0.0
        more_bad, notes = list[BadImage](), list[tuple[str, str]]()
        if plan.embed or plan.changes_catalog() or self._replaces:
            with exclusive(self.directory / LOCK_FILE, CollectionError):
                with self._catalog.read():
                    self._catalog.check_same()
                    is_current = self._catalog.state() == state
                if not is_current:  # somebody wrote between the look and the lock
                    plan, _ = self._plan(inputs, follow_symlinks, retry_bad, prune)
                    bad = [error for _, error in plan.bad]
                record_plan(self._catalog, plan)
                if plan.embed:
                    more_bad, notes, embed_seconds, model_share = embed_plan(
                        self._catalog, plan, encoder, batch_size=batch_size, num_workers=num_workers, progress=progress
                    )
                left_out = self._replace()
                self._nearest.publish()
        seconds = time.perf_counter() - start
        done = report_plan(plan, bad, more_bad, seconds, embed_seconds, model_share, notes)
        return replace(done, num_left_out=left_out)

    def _plan(
        self, inputs: Sequence[str | os.PathLike[str]], follow_symlinks: bool, retry_bad: bool, prune: bool
    ) -> tuple[Plan, str]:
        """What there is to do, and the state of the catalogue for which that holds."""
        walked = walk(inputs, follow_symlinks=follow_symlinks, missing_ok=True)
        with self._catalog.read():
            self._catalog.check_same()
            plan = make_plan(
                self._catalog.rows(),
                walked,
                roots=self._catalog.roots(),
                gone_sizes=self._catalog.gone_sizes(),
                written_ns=self._catalog.written_ns(),
                is_kept=lambda content_hash: self._catalog.gone_vector(content_hash) is not None,
                retry_bad=retry_bad,
                prune=prune,
            )
            if plan.missing and not walked.lists and {error.path for error in plan.missing} >= set(walked.inputs):
                raise missing_error(plan.missing)
            return plan, self._catalog.state()

    def _refuse_to_lose(self, inputs: Sequence[str | os.PathLike[str]], follow_symlinks: bool) -> None:
        """Stop a rebuild that would lose the images of a folder that is away.

        Raises:
            CollectionError: If there is one, as an update of the collection that is there would find.
        """
        walked = walk(inputs, follow_symlinks=follow_symlinks, missing_ok=True)
        try:
            with Collection.open(self.directory) as present, present._catalog.read():
                rows = {row.path: row for row in present._catalog.rows() if not row.external}
                away = judge_lost(rows, walked, present._catalog.roots()).decide(frozenset(), prune=False).offline
        except CollectionError:  # damaged: there is nothing to lose any more
            return
        if away:
            lines = [f"{printable(item.path)}: {item.reason} ({counted(item.num_images, 'image')})" for item in away]
            raise CollectionError(
                f"the index was not rebuilt, as it would lose the images of {'; '.join(lines)}: connect the drive, or "
                "prune (--prune)"
            )

    def _replace(self) -> int:
        """Take the place of the collection that is there, if this one was made for that; the caller holds the lock.

        Returns:
            How many of its images this one does not have.
        """
        if not self._replaces:
            return 0
        left_out = 0
        with contextlib.suppress(CollectionError), Collection.open(self.directory) as present:  # it may be damaged
            left_out = len(set(present.paths()).difference(self.paths()))
        self._catalog = replace_catalog(self.directory, self._catalog)
        self._nearest = Nearest(self.directory, self._catalog)
        self._replaces = False
        return left_out

    def discard_if_empty(self) -> None:
        """Close and delete a collection that holds no vector, as one whose encoder could embed nothing."""
        name = REBUILD_FILE if self._replaces else CATALOG_FILE
        with exclusive(self.directory / LOCK_FILE, CollectionError):
            is_empty = self.holds_nothing()
            self.close()
            if is_empty:
                delete_catalog(self.directory, name)

    def holds_nothing(self) -> bool:
        """Whether there is no vector, not even of a file that is gone: then it binds nobody to its encoder."""
        with self._catalog.read():
            return self._catalog.num_vectors() == 0 and self._catalog.num_gone() == 0

    def update_from(self, embeddings: Embeddings) -> UpdateReport:
        """Take vectors from anywhere: rows with new ids are added, those with known ids replaced.

        An id that is an absolute path stands for that file, as if it had been embedded here. Any other id is kept as
        it is, and no later ``update`` touches it.

        Raises:
            MismatchError: If they are of another encoder or width.
            DataError: If an id occurs twice, or a vector is zero.
        """
        start = time.perf_counter()
        vectors = unit_vectors(embeddings)
        with exclusive(self.directory / LOCK_FILE, CollectionError):
            self._refuse_others(embeddings.fingerprint, embeddings.dim)
            added, changed, unchanged = take_vectors(self._catalog, embeddings.ids, vectors)
            left_out = self._replace()
            self._nearest.publish()
        seconds = time.perf_counter() - start
        return UpdateReport(added, changed, 0, unchanged, 0, [], 0, 0, seconds, 0.0, "decode", num_left_out=left_out)

    def build_ann(self, settings: AnnSettings | None = None, *, say: Callable[[str], None] | None = None) -> AnnReport:
        """Make, extend or take away the approximate index, by what this machine needs and what is asked for.

        By default a collection is searched exactly as long as comparing a query with all vectors meets the target of
        100 ms; beyond, an index is trained, measured, and used if it finds 95 % of the 10 nearest. Nothing else makes
        one: ``update`` adds rows that every search sees at once, and this puts them into the index.

        Args:
            settings: When to approximate and how well; kept with the collection. By default what was asked for before.
            say: Told, before a build, what it will take.

        Raises:
            CollectionError: If another process is writing, or a family was asked for by name that cannot be built.
        """
        from vitembed.collection.ann.settled import settled

        with self._catalog.read():
            self._catalog.check_same()
            report = settled(self.directory, self._catalog, settings)
        if report is None:
            from vitembed.collection.ann.keep import bring_up_to_date

            with exclusive(self.directory / LOCK_FILE, CollectionError), self._catalog.read():
                self._catalog.check_same()
                try:
                    report = bring_up_to_date(self.directory, self._catalog, settings, say=say or log.info)
                except OSError as error:
                    place = printable(self.directory)
                    raise CollectionError(f"cannot write the approximate index in {place}: {error.strerror}") from error
        return report

    def ann_settings(self) -> AnnSettings:
        """What was asked of the approximate index, by default or by ``build_ann``."""
        from vitembed.collection.ann.settings import load_record

        return load_record(self.directory).settings

    def delete(self, paths: Sequence[str | os.PathLike[str]]) -> int:
        """Forget images or external ids, in one transaction; files themselves are never touched.

        A file that is still there comes back with the next ``update`` of its folder.

        Args:
            paths: Of images, or external ids; what is not in the collection is passed over.

        Returns:
            How many were forgotten.

        Raises:
            CollectionError: If another process is writing.
        """
        names = [os.fspath(paths)] if isinstance(paths, (str, os.PathLike)) else [os.fsdecode(path) for path in paths]
        with exclusive(self.directory / LOCK_FILE, CollectionError):
            with self._catalog.write():
                self._catalog.check_same()
                found = [self._find(name) for name in names]
                rows = {row.id for row in found if row is not None}
                self._catalog.delete(rows)
            self._nearest.publish()
        return len(rows)

    def forget(self, paths: Sequence[str | os.PathLike[str]]) -> dict[str, int]:
        """Forget everything below folders, single images or external ids, in one transaction; no file is touched.

        What is still on disk comes back with the next ``update`` of its folder, without being embedded again: its
        vectors are kept by content until ``vacuum``.

        Args:
            paths: Of folders, also of those that are gone, or images; or external ids.

        Returns:
            For each path, absolute unless it is an external id, how many images with a vector were forgotten; those
            that the collection does not know are left out.

        Raises:
            CollectionError: If another process is writing.
        """
        names = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        wanted = {absolute_path(name): os.fsdecode(name) for name in names}
        with exclusive(self.directory / LOCK_FILE, CollectionError):
            with self._catalog.write():
                self._catalog.check_same()
                above = Above(wanted.keys())
                ids, counts, external = list[int](), dict[str, int](), set(wanted.values())
                for row in self._catalog.rows():
                    chain = ((row.path,) if row.path in external else ()) if row.external else above(row.path)
                    if chain:
                        ids.append(row.id)
                        counts[chain[0]] = counts.get(chain[0], 0) + (row.status == "ok")
                self._catalog.delete(ids)
                roots = [root for root in self._catalog.roots() if above(root)]
                if roots:
                    self._catalog.set_roots({}, roots)
            if ids:
                self._nearest.publish()
        return {name: counts[name] for name in sorted(counts)}

    def unfinished_rebuild(self) -> int:
        """How many images a rebuild that was interrupted has embedded; ``vacuum`` deletes it."""
        return 0 if self._replaces else num_rebuilt(self.directory)

    def vacuum(self) -> None:
        """Give the space of deleted and changed images back to the disk; delete their vectors and unfinished rebuilds.

        Until then the vectors of files that are gone are kept by content, so that what comes back, also under another
        name, is not embedded again. No search finds them.

        Raises:
            CollectionError: If another process is writing, or the disk has no room for the copy that SQLite makes.
        """
        with exclusive(self.directory / LOCK_FILE, CollectionError):
            self._catalog.vacuum()
            if not self._replaces:
                delete_catalog(self.directory, REBUILD_FILE)

    def verify(self) -> None:
        """Read everything: the truth by SQLite's own check and all checksums, the cache by its SHA-256.

        A damaged cache is made anew.

        Raises:
            CollectionError: If the catalogue is damaged.
        """
        self._catalog.check()
        self._nearest.verify()

    def _refuse_type(self, vector_type: str | None) -> None:
        if vector_type not in (None, self.vector_type):
            raise MismatchError(
                f"the collection in {printable(self.directory)} stores vectors as {self.vector_type}, not as "
                f"{vector_type}: run vitembed index --rebuild, or leave the type out"
            )

    def _refuse_others(self, fingerprint: str, dim: int) -> None:
        if fingerprint != self.fingerprint or dim != self.dim:
            raise MismatchError(
                f"the collection in {printable(self.directory)} is of encoder "
                f"{self.fingerprint[:12] or 'unknown'} ({self.dim}-d), "
                f"this is encoder {fingerprint[:12] or 'unknown'} ({dim}-d): run vitembed index --rebuild, "
                "or name another --workspace"
            )


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(path))
