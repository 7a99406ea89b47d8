"""What stands ready to be searched: the exact scan, made anew where it must be, and the approximate index, if good."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitembed.collection.ann.settings import load_record
from vitembed.collection.catalog import Catalog
from vitembed.collection.view import View, num_stale
from vitembed.errors import CollectionError, DataError, counted
from vitembed.lock import exclusive

if TYPE_CHECKING:
    from vitembed.collection.ann import Approx, ApproxCache, Scan, VectorCache

CACHE_LOCK_FILE = "cache.lock"
# A scan is made anew when more rows than these are dead or outside of it. Passing over 1,000 dead rows and scanning
# 1,000 from SQLite costs a search about 5 ms.
MAX_STALE_ROWS = 1_000
MAX_STALE_SHARE = 0.1
_INSTEAD = "every vector is compared instead until vitembed index has seen to it"

log = logging.getLogger("vitembed")

_Stamp = tuple[int, int, int]


class Standing:
    """The two caches of a catalogue, opened when they are first needed. All inside ``catalog.read()``."""

    def __init__(self, directory: Path, catalog: Catalog) -> None:
        self._directory = directory
        self._catalog = catalog
        self._state = ""
        self._alive: np.ndarray | None = None
        self._scan: Scan | None = None
        self._exact: View[Scan] | None = None
        self._approx: Approx | None = None
        self._approx_view: View[Approx] | None = None
        self._stamp: _Stamp | bool | None = False
        """Of the manifest that was looked at last; False: none yet."""

    def catch_up(self) -> None:
        """See the catalogue's snapshot. Without changes since the last time this is one small query."""
        self._catalog.check_same()
        state = self._catalog.state()
        if state != self._state:
            self._state, self._alive, self._exact, self._approx_view = state, None, None, None

    def forget(self) -> None:
        """Look at the files anew."""
        self._state, self._scan, self._exact = "", None, None
        self._approx, self._approx_view, self._stamp = None, None, False

    def exact(self, *, distrust: bool = False) -> View[Scan]:
        """The scan, made from the catalogue where there is none or it is too stale.

        Args:
            distrust: Make it in any case.
        """
        from vitembed.collection.ann import Scan  # FAISS is loaded on first search

        if distrust:
            self._scan, self._exact = None, None
        if self._exact is not None:
            return self._exact
        scan = self._scan
        if scan is None and not distrust:
            scan = self._load_scan()
        if scan is None or (scan.state != self._state and self._is_too_stale(scan.ids)):
            scan = Scan.build(self._catalog.all_vectors(), self._catalog.dim, self._state, self._catalog.vector_type)
            log.info("vector cache made from the catalogue: %s", counted(len(scan), "vector"))
            self._write(scan)
        self._scan = scan
        self._exact = View.of(scan, self._catalog, self._alive_unless(scan.state))
        return self._exact

    def approximate(self) -> View[Approx] | None:
        """The index, if there is one that may be used."""
        stamp = self._approx_stamp()
        if stamp != self._stamp:
            self._stamp, self._approx, self._approx_view = stamp, None, None
            self._approx = self._load_approx(stamp is not None)
        if self._approx is not None and self._approx_view is None:
            if self._approx.state != self._state and self._is_too_stale(self._approx.ids):
                self.distrust_approximate("too many images have come or gone since it was made")
            else:
                alive = self._alive_unless(self._approx.state)
                self._approx_view = View.of(self._approx, self._catalog, alive)
        return self._approx_view

    def distrust_approximate(self, reason: object) -> None:
        """Do without the index until there is another one."""
        log.warning("the approximate index is not used (%s): %s", reason, _INSTEAD)
        self._approx, self._approx_view = None, None

    def probes_for(self, approx: Approx, only: np.ndarray | None) -> int | None:
        """How many lists to look at under a filter; None: it leaves so few rows that all of them are to be compared.

        Whatever share of the rows is left, as many candidates are looked at as without a filter.
        """
        if only is None:
            return approx.facts.num_probes
        share = len(only) / max(1, self._catalog.num_vectors())
        facts = approx.facts
        if share * facts.exact_ms <= max(facts.target_ms, facts.query_ms / max(share, 1e-9)):
            return None
        return min(approx.num_lists, math.ceil(facts.num_probes / share))

    def verify(self) -> None:
        """Check the files byte by byte; a damaged scan is made anew."""
        try:
            self._cache().verify()
        except (DataError, OSError) as error:
            log.warning("the vector cache is unusable (%s): made anew", error)
            with self._catalog.read():
                self.forget()
                self.catch_up()
                self.exact(distrust=True)
        if self._approx_stamp() is not None:
            try:
                self._approx_cache().verify()
            except (DataError, OSError) as error:
                log.warning("the approximate index is unusable (%s): %s", error, _INSTEAD)

    def _alive_ids(self) -> np.ndarray:
        if self._alive is None:
            self._alive = self._catalog.vector_ids()
        return self._alive

    def _alive_unless(self, state: str) -> np.ndarray | None:
        return None if state == self._state else self._alive_ids()

    def _is_too_stale(self, held: np.ndarray) -> bool:
        alive = self._alive_ids()
        return num_stale(held, alive) > max(MAX_STALE_ROWS, MAX_STALE_SHARE * len(alive))

    def _cache(self) -> VectorCache:
        from vitembed.collection.ann import CacheKey, VectorCache

        return VectorCache(self._directory, CacheKey.of(self._catalog))

    def _approx_cache(self) -> ApproxCache:
        from vitembed.collection.ann import ApproxCache, CacheKey

        return ApproxCache(self._directory, CacheKey.of(self._catalog))

    def _approx_stamp(self) -> _Stamp | None:
        try:
            status = self._approx_cache().manifest.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _load_scan(self) -> Scan | None:
        try:
            return self._cache().load()
        except FileNotFoundError:
            return None
        except (DataError, OSError) as error:
            log.warning("the vector cache is unusable (%s): made anew", error)
            return None

    def _load_approx(self, present: bool) -> Approx | None:
        try:
            return self._approx_cache().load()
        except FileNotFoundError:
            report = load_record(self._directory).report
            if present or (report is not None and not report.exact):
                log.warning("the approximate index is lost: %s", _INSTEAD)
        except (DataError, OSError) as error:
            log.warning("the approximate index is unusable (%s): %s", error, _INSTEAD)
        return None

    def _write(self, scan: Scan) -> None:
        # Under a lock of its own: a reader that mends the cache must not turn an update away. Where it is held, or the
        # medium cannot be written, the scan serves this process alone.
        try:
            with exclusive(self._directory / CACHE_LOCK_FILE, CollectionError):
                self._cache().write(scan, self._catalog.generation())
        except (OSError, CollectionError) as error:
            log.info("vector cache not written: %s", error)
