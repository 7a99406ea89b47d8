"""Where a collection is founded: an empty catalogue in a folder, in place of whatever damage is there if so asked."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from vitembed.collection.catalog import CATALOG_FILE, Catalog, DamagedError
from vitembed.errors import CollectionError
from vitembed.faults import about_to

REBUILD_FILE = "rebuild.sqlite"
"""The catalogue that will take the place of the present one, while it is being filled."""

log = logging.getLogger("vitembed")


def has_catalog(folder: Path) -> bool:
    """Whether there is something in the place of a catalogue."""
    try:
        return (folder / CATALOG_FILE).stat().st_size > 0
    except FileNotFoundError:
        return False


def create_catalog(
    folder: Path,
    root: str,
    fingerprint: str,
    dim: int,
    meta: dict[str, Any],
    vector_type: str,
    rebuild: bool,
    *,
    name: str = CATALOG_FILE,
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
        name: Of its file.

    Raises:
        CollectionError: If it cannot be made.
    """
    file = folder / name

    def create() -> Catalog:
        return Catalog.create(file, root=root, fingerprint=fingerprint, dim=dim, meta=meta, vector_type=vector_type)

    try:
        return create()
    except DamagedError as error:  # beyond emptying
        if not rebuild:
            raise
        log.warning("%s; starting anew", error)
        delete_catalog(folder, name)
        return create()


def delete_catalog(folder: Path, name: str) -> None:
    """Delete a catalogue that nobody has open, with what SQLite keeps beside it."""
    for each in (name, f"{name}-wal", f"{name}-shm"):
        about_to(f"delete {each}")
        (folder / each).unlink(missing_ok=True)


def holds_vectors(folder: Path) -> bool:
    """Whether there is a catalogue that can be opened and has something to lose."""
    try:
        with contextlib.closing(Catalog.open(folder / CATALOG_FILE)) as catalog, catalog.read():
            return catalog.num_vectors() > 0
    except CollectionError:
        return False


def num_rebuilt(folder: Path) -> int:
    """How many vectors an unfinished rebuild has; 0 where there is none, or none that can be continued."""
    if not (folder / REBUILD_FILE).exists():
        return 0
    try:
        with contextlib.closing(Catalog.open(folder / REBUILD_FILE)) as catalog, catalog.read():
            return catalog.num_vectors()
    except CollectionError:
        return 0


def create_beside(
    folder: Path, root: str, fingerprint: str, dim: int, meta: dict[str, Any], vector_type: str
) -> Catalog:
    """The catalogue that is to replace the present one; an unfinished one of the same encoder is continued.

    Raises:
        CollectionError: If it cannot be made.
    """
    try:
        catalog = Catalog.open(folder / REBUILD_FILE)
    except CollectionError:
        pass  # none, or not of use any more
    else:
        if (catalog.fingerprint, catalog.dim, catalog.vector_type) == (fingerprint, dim, vector_type):
            return catalog
        catalog.close()
    return create_catalog(folder, root, fingerprint, dim, meta, vector_type, True, name=REBUILD_FILE)


def replace_catalog(folder: Path, finished: Catalog) -> Catalog:
    """Put a finished catalogue in the place of the present one, in one transaction, and open it there.

    Raises:
        CollectionError: If it cannot be written; the present one is as it was then.
    """
    try:
        finished.copy_over(folder / CATALOG_FILE)
    except DamagedError as error:  # what is there cannot even be replaced
        log.warning("%s; starting anew", error)
        delete_catalog(folder, CATALOG_FILE)
        finished.copy_over(folder / CATALOG_FILE)
    finished.close()
    catalog = Catalog.open(folder / CATALOG_FILE)
    delete_catalog(folder, REBUILD_FILE)
    return catalog


def default_root(folder: Path) -> Path:
    """The folder that holds the workspace, or the collection."""
    from vitembed.workspace import WORKSPACE_DIR

    return folder.parent.parent if folder.parent.name == WORKSPACE_DIR else folder.parent
