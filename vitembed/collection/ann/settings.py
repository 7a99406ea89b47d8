"""What is asked of the approximate index, kept beside the collection, and what became of it. No FAISS here."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitembed.atomic import atomic_path
from vitembed.errors import ConfigError, DamagedFile
from vitembed.seal import read_document, seal_of

SETTINGS_FILE = "ann.json"
FORMAT_VERSION = 1
AUTO, EXACT = "auto", "exact"

log = logging.getLogger("vitembed")


@dataclass(frozen=True, kw_only=True)
class AnnSettings:
    """When to approximate, and how good it must be.

    Raises:
        ConfigError: If a value is out of range; a name that is no family is met where families are known.
    """

    family: str = AUTO
    """``auto``: exact as long as that meets the target; ``exact``: always; or an index family, ``IVF4096,SQ8``."""
    target_ms: float = 100.0
    """How long comparing one query with everything may take, in milliseconds."""
    min_recall: float = 0.95
    """The least share of the 10 nearest that an approximate index must find to be used, 0 to 1."""

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.target_ms) and self.target_ms > 0):
            problems.append(f"target_ms is {self.target_ms:g}, expected milliseconds above 0")
        if not 0 < self.min_recall <= 1:
            problems.append(f"min_recall is {self.min_recall:g}, expected a share above 0 and at most 1")
        if self.family not in (AUTO, EXACT):
            from vitembed.collection.ann.families import parse_family

            try:
                parse_family(self.family)
            except ConfigError as error:
                problems.append(str(error))
        if problems:
            raise ConfigError("; ".join(problems))

    def changed(
        self, family: str | None = None, target_ms: float | None = None, min_recall: float | None = None
    ) -> AnnSettings:
        """The same with what is given in place of what was."""
        return AnnSettings(
            family=self.family if family is None else family,
            target_ms=self.target_ms if target_ms is None else target_ms,
            min_recall=self.min_recall if min_recall is None else min_recall,
        )


@dataclass(frozen=True, kw_only=True)
class AnnReport:
    """Whether a collection is searched exactly or approximately, and why."""

    exact: bool
    """Whether every vector is compared."""
    action: str
    """``exact``, ``kept``, ``built``, ``extended``, ``measured`` (by another demand) or ``refused`` (none was good)."""
    reason: str
    """In words, with the numbers."""
    num_vectors: int
    exact_ms: float | None = None
    """Estimated for comparing one query with everything; None where it was too little to be worth measuring."""
    family: str | None = None
    num_probes: int | None = None
    """Lists that a query looks at (FAISS: ``nprobe``)."""
    recall: float | None = None
    """Of the 10 nearest, over stored vectors that were kept out of the training."""
    recall_at_100: float | None = None
    query_ms: float | None = None
    """Measured for one query through the index, without what scores its candidates again."""
    num_bytes: int | None = None
    """Of the index, on disk and in memory."""
    build_seconds: float | None = None
    estimated_seconds: float | None = None
    """Of the build, said before it."""
    estimated_memory: int | None = None
    """At the peak of the build, in bytes, said before it."""

    @property
    def matters(self) -> bool:
        """Whether there is something to say: a small collection is searched exactly, as anyone expects."""
        return self.action != EXACT or (self.exact_ms or 0) > 20

    def lines(self) -> list[str]:
        """The decision and its numbers, for people."""
        if self.exact:
            return [self.reason]
        recall = f"recall@10 {self.recall:.3f} (@100 {self.recall_at_100:.3f})"
        numbers = f"{self.family}, {self.num_probes} lists a query: {recall} in {self.query_ms:.2g} ms"
        made = {"built": "built", "extended": "extended", "measured": "measured again"}.get(self.action)
        size = f"{(self.num_bytes or 0) / 1e6:.3g} MB"
        how = size if made is None else f"{made} in {self.build_seconds or 0:.1f} s, {size}"
        return [f"approximate: {self.reason}", f"{numbers}; {how}"]


@dataclass(frozen=True, kw_only=True)
class AnnRecord:
    """What ``ann.json`` holds: what is asked for, and what the last look at it gave."""

    settings: AnnSettings = AnnSettings()
    asked: bool = False
    """Whether somebody ever asked for other than the defaults."""
    collection_id: str = ""
    state: str = ""
    """Of the catalogue at the last look; empty: none yet."""
    report: AnnReport | None = None
    refused_at: int = 0
    """Number of vectors for which no index was good enough; 0: none was refused."""


def load_record(directory: Path) -> AnnRecord:
    """The record of a collection; the defaults where there is none. A damaged one is said and passed over."""
    try:
        document = read_document(directory / SETTINGS_FILE)
        seal = document.pop("crc32")
        if document.pop("format") != FORMAT_VERSION or seal != seal_of(document):
            raise ValueError("another format or checksum")
        report = document.pop("report")
        return AnnRecord(
            **{
                **document,
                "settings": AnnSettings(**document["settings"]),
                "report": None if report is None else AnnReport(**report),
            }
        )
    except FileNotFoundError:
        return AnnRecord()
    except (DamagedFile, ValueError, KeyError, TypeError, AttributeError, ConfigError):
        log.warning("%s cannot be read: the defaults are taken, say --ann again to change them", SETTINGS_FILE)
        return AnnRecord()


def save_record(directory: Path, record: AnnRecord) -> None:
    """Keep it.

    Raises:
        OSError: If the folder cannot be written.
    """
    document: dict[str, Any] = asdict(record)
    document |= {"crc32": seal_of(document), "format": FORMAT_VERSION}
    with atomic_path(directory / SETTINGS_FILE) as temp:
        temp.write_text(json.dumps(document, indent=2), encoding="utf-8")
