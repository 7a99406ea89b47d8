"""Whether there is anything to do about the index at all: told without FAISS, without measuring, without writing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vitembed.collection.ann.settings import AUTO, EXACT, AnnReport, AnnSettings, load_record
from vitembed.collection.catalog import VECTOR_TYPES, Catalog

SLOWEST_BYTES_PER_SECOND = 2e8
"""No machine that can train a ViT scans slower: what takes less than the target even so needs no measuring."""


def settled(directory: Path, catalog: Catalog, settings: AnnSettings | None) -> AnnReport | None:
    """The report, if all is as it should be; None if that takes a closer look. Inside ``catalog.read()``.

    Args:
        directory: Of the collection.
        catalog: Its truth.
        settings: What is asked for; by default what was before.
    """
    record = load_record(directory)
    wanted = record.settings if settings is None else settings
    if wanted != record.settings:
        return None
    report = record.report
    if report is not None and (record.collection_id, record.state) == (catalog.collection_id, catalog.state()):
        if report.exact:
            return report
        from vitembed.collection.ann.keep import is_accepted, standing

        held = standing(directory, catalog)
        return replace(report, action="kept") if held is not None and is_accepted(held, wanted) else None
    num_vectors = catalog.num_vectors()
    small = is_small(num_vectors, catalog.dim * VECTOR_TYPES[catalog.vector_type].itemsize, wanted)
    if record.asked or report is not None or not small:
        return None
    return AnnReport(exact=True, action=EXACT, reason="exact: few enough to compare with all", num_vectors=num_vectors)


def is_small(num_vectors: int, row_bytes: int, settings: AnnSettings) -> bool:
    """Whether comparing one query with so many vectors meets the target on any machine."""
    seconds = num_vectors * row_bytes / SLOWEST_BYTES_PER_SECOND
    return settings.family == AUTO and 1000 * seconds <= settings.target_ms
