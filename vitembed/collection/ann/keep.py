"""Keeps the approximate index of a collection in step with it: none, kept, extended, or built.

It is made here alone, when a collection is indexed: a search never trains. What is not good enough is not published,
and what no longer is goes.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitembed.collection.ann.approx import Approx, ApproxCache, ApproxFacts
from vitembed.collection.ann.bandwidth import Speed, measure_speed
from vitembed.collection.ann.cache_file import CacheKey
from vitembed.collection.ann.decide import NUM_HELD_OUT, Decision, decide, size
from vitembed.collection.ann.engine import faiss
from vitembed.collection.ann.recall import Quality, Truth, choose_probes, measure
from vitembed.collection.ann.settings import AUTO, EXACT, AnnRecord, AnnReport, AnnSettings, load_record, save_record
from vitembed.collection.ann.train import train_centroids, train_index
from vitembed.collection.catalog import VECTOR_TYPES, Catalog
from vitembed.embeddings import unit_rows
from vitembed.errors import DataError
from vitembed.images.memory import available_bytes

MAX_TAIL_ROWS = 1_000
"""So many new or dead rows are left to the searches: comparing with them takes some milliseconds."""
_NUM_FOR_SPEED = 2_000
_SEED = 20_261_124
_ODD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: products with it, modulo 2^64, lie in no order (Knuth, section 6.4)."""
_ROWS_AT_ONCE = 1 << 15

log = logging.getLogger("vitembed")

Say = Callable[[str], None]


def bring_up_to_date(
    directory: Path, catalog: Catalog, settings: AnnSettings | None = None, *, say: Say = log.info
) -> AnnReport:
    """Decide anew, and do what follows. Inside ``catalog.read()``; the caller holds the writers' lock.

    Args:
        directory: Of the collection.
        catalog: Its truth.
        settings: What is asked for, kept from then on; by default what was asked for before.
        say: Told, before a build, what it is for and what it will cost.

    Raises:
        CollectionError: If a family was asked for by name that cannot be built: too few vectors, memory or disk.
        OSError: If the folder cannot be written.
    """
    record = load_record(directory)
    wanted = record.settings if settings is None else settings
    asked = record.asked or (settings is not None and settings != AnnSettings())
    work = _Work(directory, catalog, wanted, say)
    refused_at = record.refused_at if (record.settings, record.collection_id) == (wanted, work.key.collection_id) else 0
    if asked and (settings is not None and settings != record.settings):
        # Kept at once: a build may be interrupted, and goes on as asked when the next one starts.
        save_record(directory, AnnRecord(settings=wanted, asked=True))
    report = work.run(refused_at)
    if report.action == "refused" and not (refused_at and work.num_vectors < 2 * refused_at):
        refused_at = work.num_vectors
    kept = AnnRecord(
        settings=wanted,
        asked=asked,
        collection_id=work.key.collection_id,
        state=catalog.state(),
        report=report,
        refused_at=refused_at if report.action == "refused" else 0,
    )
    # A small collection that nobody asked about has no such file.
    if asked or report.exact_ms is not None or record != AnnRecord():
        save_record(directory, kept)
    return report


class _Work:
    """One look at a collection."""

    def __init__(self, directory: Path, catalog: Catalog, settings: AnnSettings, say: Say) -> None:
        self.catalog = catalog
        self.settings = settings
        self.key = CacheKey.of(catalog)
        self.num_vectors = catalog.num_vectors()
        self._cache = ApproxCache(directory, self.key)
        self._directory = directory
        self._say = say
        self._rng = np.random.default_rng(_SEED)

    def run(self, refused_at: int) -> AnnReport:
        held = standing(self._directory, self.catalog)
        decision = decide(
            self.num_vectors,
            self.key.dim,
            self.key.dim * VECTOR_TYPES[self.key.vector_type].itemsize,
            self.settings,
            measure=self._measure_speed,
            free_memory=available_bytes(),
            free_disk=shutil.disk_usage(self._directory).free,
            standing=held is not None,
        )
        if decision.exact:
            self._cache.remove()
            return self._exact(decision, EXACT, decision.reason)
        if held is not None and self._still_serves(held, decision):
            kept = self._kept(held, decision)
            if kept is not None:
                return kept
        if held is None or not is_accepted(held, self.settings):
            self._cache.remove()  # damaged, or not known to be as good as is asked now: no search may use it meanwhile
        if refused_at and self.num_vectors < 2 * refused_at:
            self._cache.remove()
            reason = f"exact: no index was good enough at {refused_at:,} vectors; tried again at twice as many"
            return self._exact(decision, "refused", reason)
        return self._build(decision)

    def _still_serves(self, held: Approx, decision: Decision) -> bool:
        """Whether it needs no new training: of a family that would be taken, and not twice as many vectors."""
        named = [family.name for family in decision.families]
        grown = self.num_vectors >= 2 * held.facts.num_trained
        # By itself another family is only due when the collection has doubled, too.
        return not grown and (self.settings.family == AUTO or held.family.name in named)

    def _kept(self, held: Approx, decision: Decision) -> AnnReport | None:
        """As it is, or with what has come and gone since, or measured by another demand; None: not good enough."""
        alive = self.catalog.vector_ids()
        dead = np.setdiff1d(held.ids, alive, assume_unique=True)
        new = np.setdiff1d(alive, held.ids, assume_unique=True)
        accepted, moved = is_accepted(held, self.settings), len(dead) + len(new)
        if accepted and moved <= MAX_TAIL_ROWS:
            return self._report(held.facts, decision, "kept")
        start = time.perf_counter()
        if moved:
            self._say(f"{held.family.name}: {len(new):,} new images go into the index, {len(dead):,} are taken out")
        index = self._cache.load(mapped=False).index
        if not accepted:
            self._say(f"{held.family.name}: something else is asked for now, so its recall is measured again")
            self._cache.remove()  # no search may use it meanwhile
        if len(dead):
            index.remove_ids(faiss.IDSelectorBatch(dead))
        for at in range(0, len(new), _ROWS_AT_ONCE):
            ids = new[at : at + _ROWS_AT_ONCE]
            index.add_with_ids(self._vectors(ids), ids)
        approx = Approx(index, None, held.family)
        truth = self._truth()
        for ids, vectors in self.catalog.all_vectors(_ROWS_AT_ONCE):
            truth.add(ids, unit_rows(vectors))
        quality = measure(approx, truth, held.facts.num_probes) if accepted else None
        if quality is None or quality.recall < self.settings.min_recall:
            quality, _ = self._choose(approx, truth, decision)
        if quality is None:
            self._say(f"{held.family.name}: recall does not reach {self.settings.min_recall:g}, so it is built anew")
            return None
        seconds = time.perf_counter() - start
        facts = self._facts(approx, quality, decision, held.facts.num_trained, seconds)
        return self._publish(Approx(index, facts, held.family), decision, "extended" if moved else "measured")

    def _build(self, decision: Decision) -> AnnReport:
        cost = decision.estimate
        assert cost is not None
        needs = f"{size(cost.memory_bytes)} of memory and {size(cost.disk_bytes)} on disk"
        self._say(f"{decision.reason}; building it takes about {_duration(cost.seconds)}, {needs}")
        start = time.perf_counter()
        ids = self.catalog.vector_ids()
        truth = self._truth(ids)
        rest = np.setdiff1d(ids, truth.ids, assume_unique=True)
        num_lists, centroids, sample = 0, np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
        numbers = list[str]()
        for family in decision.families:
            began = time.perf_counter()
            if family.num_lists != num_lists:
                num_lists = family.num_lists
                chosen = self._rng.choice(rest, family.num_train(len(rest)), replace=False)
                sample = self._vectors(np.sort(chosen))
                centroids = train_centroids(sample, num_lists)
            approx = Approx(train_index(family, centroids, sample), None, family)
            for more, vectors in self._chunks():
                approx.index.add_with_ids(vectors, more)
                if not numbers:
                    truth.add(more, vectors)
            quality, tried = self._choose(approx, truth, decision)
            if quality is not None:
                seconds = time.perf_counter() - (began if not numbers else start)
                facts = self._facts(approx, quality, decision, self.num_vectors, seconds)
                return self._publish(Approx(approx.index, facts, family), decision, "built")
            last = tried[-1]
            numbers.append(
                f"{family.name} finds {last.recall:.3f} of the 10 nearest in {last.query_ms:.3g} ms, looking at "
                f"{last.num_probes} lists"
            )
            self._say(f"{numbers[-1]}: not good enough")
            del approx
        self._cache.remove()
        reason = f"exact: no index reached a recall of {self.settings.min_recall:g} ({'; '.join(numbers)})"
        return self._exact(decision, "refused", reason)

    def _choose(self, approx: Approx, truth: Truth, decision: Decision) -> tuple[Quality | None, list[Quality]]:
        # Who names a family wants it even where the exact scan would be as quick.
        named = self.settings.family != AUTO
        slowest = float("inf") if named or decision.exact_ms is None else decision.exact_ms
        return choose_probes(
            approx, truth, min_recall=self.settings.min_recall, target_ms=self.settings.target_ms, slowest_ms=slowest
        )

    def _truth(self, ids: np.ndarray | None = None) -> Truth:
        """Held-out queries, whose nearest are still to be gathered."""
        every = self.catalog.vector_ids() if ids is None else ids
        # Chosen by a fixed order of ids, so that an index that is extended meets the same ones, and new rows, again;
        # only where some of them were deleted may others come in that it was trained on.
        order = np.argsort(every.astype(np.uint64) * _ODD, kind="stable")
        chosen = np.sort(every[order[:NUM_HELD_OUT]])
        return Truth(chosen, self._vectors(chosen))

    def _vectors(self, ids: np.ndarray) -> np.ndarray:
        vectors: np.ndarray = unit_rows(self.catalog.vectors(ids.tolist()))
        return vectors

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids, vectors in self.catalog.all_vectors(_ROWS_AT_ONCE):
            yield ids, unit_rows(vectors)

    def _measure_speed(self) -> Speed:
        ids = self.catalog.vector_ids()
        return measure_speed(self._vectors(ids[:: max(1, len(ids) // _NUM_FOR_SPEED)]), self.key.vector_type)

    def _facts(
        self, approx: Approx, quality: Quality, decision: Decision, num_trained: int, seconds: float
    ) -> ApproxFacts:
        return ApproxFacts(
            state=self.catalog.state(),
            count=len(approx),
            family=approx.family.name,
            num_probes=quality.num_probes,
            recall=quality.recall,
            recall_at_100=quality.recall_at_100,
            min_recall=self.settings.min_recall,
            score_error=quality.score_error,
            query_ms=quality.query_ms,
            exact_ms=decision.exact_ms or 0.0,
            target_ms=self.settings.target_ms,
            num_trained=num_trained,
            build_seconds=seconds,
        )

    def _publish(self, approx: Approx, decision: Decision, action: str) -> AnnReport:
        num_bytes = self._cache.write(approx)
        return replace(self._report(approx.facts, decision, action), num_bytes=num_bytes)

    def _report(self, facts: ApproxFacts, decision: Decision, action: str) -> AnnReport:
        cost = decision.estimate if action == "built" else None
        return AnnReport(
            exact=False,
            action=action,
            reason=decision.reason,
            num_vectors=self.num_vectors,
            exact_ms=decision.exact_ms,
            family=facts.family,
            num_probes=facts.num_probes,
            recall=facts.recall,
            recall_at_100=facts.recall_at_100,
            query_ms=facts.query_ms,
            num_bytes=self._cache.num_bytes(),
            build_seconds=facts.build_seconds,
            estimated_seconds=None if cost is None else cost.seconds,
            estimated_memory=None if cost is None else cost.memory_bytes,
        )

    def _exact(self, decision: Decision, action: str, reason: str) -> AnnReport:
        return AnnReport(
            exact=True, action=action, reason=reason, num_vectors=self.num_vectors, exact_ms=decision.exact_ms
        )


def standing(directory: Path, catalog: Catalog) -> Approx | None:
    """The index that is there, if it is whole."""
    try:
        return ApproxCache(directory, CacheKey.of(catalog)).load()
    except FileNotFoundError:
        return None
    except (DataError, OSError) as error:
        log.warning("the approximate index is unusable (%s)", error)
        return None


def is_accepted(held: Approx, settings: AnnSettings) -> bool:
    """Whether it was found good by what is asked now."""
    return (held.facts.min_recall, held.facts.target_ms) == (settings.min_recall, settings.target_ms)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
