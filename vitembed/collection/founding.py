"""Where a collection is founded: an empty catalogue in a folder, in place of whatever damage is there if so asked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vitembed.collection.catalog import CATALOG_FILE, Catalog, DamagedError
from vitembed.faults import about_to

log = logging.getLogger("vitembed")


def has_catalog(folder: Path) -> bool:
    """Whether there is something in the place of a catalogue."""
    try:
        return (folder / CATALOG_FILE).stat().st_size > 0
    except FileNotFoundError:
        return False


def create_catalog(
    folder: Path, root: str, fingerprint: str, dim: int, meta: dict[str, Any], vector_type: str, rebuild: bool
) -> Catalog:
    """An empty catalogue in ``folder``; one that is there is emptied.

    Args:
        folder: Of the collection.
        root: Paths below are stored relative to it.
        fingerprint: Of the encoder.
        dim: Width of the vectors.
        meta: Facts about the encoder.
        vector_type: How vectors are stored.
        rebuild: Whether one that is damaged beyond emptying may be deleted.

    Raises:
        CollectionError: If it cannot be made.
    """
    file = folder / CATALOG_FILE

    def create() -> Catalog:
        return Catalog.create(file, root=root, fingerprint=fingerprint, dim=dim, meta=meta, vector_type=vector_type)

    try:
        return create()
    except DamagedError as error:  # beyond emptying
        if not rebuild:
            raise
        log.warning("%s; starting anew", error)
        for name in (CATALOG_FILE, f"{CATALOG_FILE}-wal", f"{CATALOG_FILE}-shm"):
            about_to(f"delete {name}")
            (folder / name).unlink(missing_ok=True)
        return create()


def default_root(folder: Path) -> Path:
    """The folder that holds the workspace, or the collection."""
    from vitembed.workspace import WORKSPACE_DIR

    return folder.parent.parent if folder.parent.name == WORKSPACE_DIR else folder.parent
