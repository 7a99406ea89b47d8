"""Exact or approximate: bytes to scan over measured bandwidth, against the target; and what a build would cost.

Not the number of vectors decides but the time of comparing one query with all of them, on this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitembed.collection.ann.bandwidth import Speed
from vitembed.collection.ann.families import Family, better, families_for, parse_family
from vitembed.collection.ann.settings import AUTO, EXACT, AnnSettings
from vitembed.collection.ann.settled import is_small
from vitembed.errors import CollectionError

NUM_HELD_OUT = 500
"""Vectors that are kept out of the training, to measure recall by (half the reference's 1,000: +- 0.01 at 0.95)."""
_KMEANS_ROUNDS = 10
_CHUNK_BYTES = 1 << 27
_SPARE_SHARE = 0.9
"""Of the memory that is free, to be used at most."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a build costs, said before it."""

    seconds: float
    memory_bytes: int
    """At its peak."""
    disk_bytes: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do."""

    families: tuple[Family, ...]
    """To be tried in this order; none: exact."""
    reason: str
    exact_ms: float | None
    """Of one query against all; None where it was not worth measuring."""
    estimate: Estimate | None = None
    """Of the first family."""

    @property
    def exact(self) -> bool:
        """Whether every vector is to be compared."""
        return not self.families


def decide(
    num_vectors: int,
    dim: int,
    row_bytes: int,
    settings: AnnSettings,
    *,
    measure: Callable[[], Speed],
    free_memory: int,
    free_disk: int,
    standing: bool = False,
) -> Decision:
    """Choose between exact and the families for so many vectors.

    Args:
        num_vectors: In the collection.
        dim: Their width.
        row_bytes: Of one stored vector.
        settings: What is asked for.
        measure: Gives the speed of this machine; called only if it matters.
        free_memory: In bytes.
        free_disk: In bytes, beside the collection.
        standing: There is a good index already: it is kept until exact would take half the target, lest a machine that
            is busy now and idle later builds and removes it in turn.

    Raises:
        CollectionError: If a family was asked for by name and there are too few vectors, too little memory or disk.
    """
    num_bytes = num_vectors * row_bytes
    if settings.family == EXACT:
        return Decision(families=(), reason="exact, as asked for", exact_ms=None)
    if settings.family != AUTO:
        return _as_asked(num_vectors, dim, num_bytes, settings, measure, free_memory, free_disk)
    if is_small(num_vectors, row_bytes, settings):
        return Decision(families=(), reason="exact: few enough to compare with all", exact_ms=None)
    speed = measure()
    exact_ms = 1000 * num_bytes / speed.bytes_per_second
    scan = _scan_words(num_vectors, num_bytes, exact_ms, speed)
    if exact_ms <= settings.target_ms * (0.5 if standing else 1):
        within = f"within the target of {settings.target_ms:g} ms"
        return Decision(families=(), reason=f"exact: {scan}, {within}", exact_ms=exact_ms)
    over = f"{scan}, over the target of {settings.target_ms:g} ms" if exact_ms > settings.target_ms else scan
    families = [family for family in families_for(num_vectors) if _is_enough(family, num_vectors)]
    if not families:
        return Decision(families=(), reason=f"exact: {over}, but too few vectors to train an index", exact_ms=exact_ms)
    fitting, lacks = list[Family](), list[str]()
    for family in families:
        lack = _lack(family, estimate(family, num_vectors, dim, speed), free_memory, free_disk)
        fitting += [family] if lack is None else []
        lacks += [] if lack is None else [lack]
    if not fitting:
        return Decision(families=(), reason=f"exact: {over}, but {lacks[0]}", exact_ms=exact_ms)
    cost = estimate(fitting[0], num_vectors, dim, speed)
    reason = f"{fitting[0].name}: {over}"
    return Decision(families=tuple(fitting), reason=reason, exact_ms=exact_ms, estimate=cost)


def estimate(family: Family, num_vectors: int, dim: int, speed: Speed) -> Estimate:
    """Time, memory and disk of a build.

    k-means compares each training point with every centroid, ten rounds (two levels of it for many lists, each with the
    square root of their number); then every vector is compared with all centroids, or with some hundred by the graph;
    and with the held-out ones, for the truth.
    """
    num_train = family.num_train(num_vectors)
    train_lists = 2 * family.num_lists**0.5 if is_two_level(family.num_lists) else family.num_lists
    add_lists = min(family.num_lists, 2_000) if family.graph else family.num_lists
    flops = 2.0 * dim * (_KMEANS_ROUNDS * num_train * train_lists + num_vectors * (add_lists + NUM_HELD_OUT))
    reading = num_vectors * 5e-6  # rows of the catalogue with their checksums: 5 us each, measured
    index_bytes = family.index_bytes(num_vectors, dim)
    # Lists grow by doubling; the copy that is written goes through a small buffer.
    memory = 4 * dim * num_train * 2 + int(1.5 * index_bytes) + _CHUNK_BYTES
    return Estimate(seconds=flops / speed.flops_per_second + reading, memory_bytes=memory, disk_bytes=index_bytes)


def is_two_level(num_lists: int) -> bool:
    """Whether centroids are trained in two levels: from 4,096 on, where one level takes minutes and more."""
    return num_lists >= 4096


def _as_asked(
    num_vectors: int,
    dim: int,
    num_bytes: int,
    settings: AnnSettings,
    measure: Callable[[], Speed],
    free_memory: int,
    free_disk: int,
) -> Decision:
    family = parse_family(settings.family)
    if not _is_enough(family, num_vectors):
        raise CollectionError(
            f"{family.name} needs {family.min_vectors + NUM_HELD_OUT:,} vectors at least, the index has "
            f"{num_vectors:,}: name one with fewer lists, or --ann auto"
        )
    speed = measure()
    cost = estimate(family, num_vectors, dim, speed)
    lack = _lack(family, cost, free_memory, free_disk)
    if lack is not None:
        raise CollectionError(f"{lack}: name another family, or --ann auto")
    others = [
        other
        for other in better(family)
        if _lack(other, estimate(other, num_vectors, dim, speed), free_memory, free_disk) is None
    ]
    exact_ms = 1000 * num_bytes / speed.bytes_per_second
    reason = f"{family.name}, as asked for ({_scan_words(num_vectors, num_bytes, exact_ms, speed)})"
    return Decision(families=(family, *others), reason=reason, exact_ms=exact_ms, estimate=cost)


def _is_enough(family: Family, num_vectors: int) -> bool:
    return num_vectors - NUM_HELD_OUT >= family.min_vectors


def _lack(family: Family, cost: Estimate, free_memory: int, free_disk: int) -> str | None:
    """What is missing for a build, in words."""
    if cost.memory_bytes > _SPARE_SHARE * free_memory:
        return f"building {family.name} takes {size(cost.memory_bytes)} of memory and {size(free_memory)} are free"
    if cost.disk_bytes > _SPARE_SHARE * free_disk:
        return f"{family.name} takes {size(cost.disk_bytes)} on disk and {size(free_disk)} are free"
    return None


def _scan_words(num_vectors: int, num_bytes: int, exact_ms: float, speed: Speed) -> str:
    milliseconds = f"{exact_ms:.2g}" if exact_ms < 100 else f"{exact_ms:.0f}"
    return (
        f"comparing all {num_vectors:,} vectors ({size(num_bytes)}) takes about {milliseconds} ms at "
        f"{speed.bytes_per_second / 1e9:.1f} GB/s"
    )


def size(num_bytes: int) -> str:
    """Bytes as people say them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"
