"""Folders and files that are no images of a person: trash, thumbnails, other programs' files, unfinished downloads."""
# ruff: noqa: PTH119, PTH122
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence

from vitembed.errors import printable
from vitembed.images.formats import IMAGE_SUFFIXES

log = logging.getLogger("vitembed")

# Compared without case, as some of these come in several spellings.
_SILENT = frozenset({".vitembed", ".git", ".hg", ".svn", ".bzr"})
"""Passed over without a word: every project has them, and nobody looks for photographs there."""
_FOLDERS = frozenset(
    {
        # Trash
        *(".trash", ".trashes", "$recycle.bin", "recycler", "recycled", "#recycle", "@recycle", ".dtrash", ".caltrash"),
        # Thumbnails and previews
        *(".thumbnails", ".thumb", ".thumbs", "@eadir", ".@__thumb", ".picasaoriginals", ".xvpics", ".tmb"),
        *("ipod photo cache", ".pics", ".wdmc"),
        # What operating systems and file systems keep
        *("system volume information", "lost+found", "lost.dir", ".spotlight-v100", ".fseventsd", "__macosx"),
        *(".documentrevisions-v100", ".temporaryitems", ".appledouble"),
        # Snapshots and old versions
        *("#snapshot", ".snapshot", ".snapshots", "@recently-snapshot", ".stversions", ".sync"),
        # Programs
        *(".ipynb_checkpoints", "node_modules", "__pycache__", ".dropbox.cache", ".tmp.drivedownload"),
        *(".tmp.driveupload", ".stfolder"),
    }
)
_FOLDER_PATTERN = re.compile(r"\.trash-\d+|.+\.lrdata")
_INSIDE = {
    ".cache": frozenset({"thumbnails"}),
    # What Photos and iPhoto keep beside the originals.
    ".photoslibrary": frozenset({"resources", "database", "private", "external", "scopes", "internal"}),
    ".photolibrary": frozenset({"thumbnails", "previews", "data", "data.noindex", "resources", "database"}),
    ".aplibrary": frozenset({"thumbnails", "previews", "database", "aperture.aplib"}),
}
"""By the end of the parent's name."""

_UNFINISHED_SUFFIXES = frozenset(
    {".part", ".partial", ".crdownload", ".opdownload", ".filepart", ".!ut", ".!qb", ".!sync", ".bc!", ".aria2", ".tmp"}
)
_UNFINISHED_PREFIXES = ("~syncthing~", ".syncthing.", ".goutputstream-", ".tmp.", ".~tmp~", ".nfs0", ".fuse_hidden")
_RSYNC = re.compile(r"\.(.+)\.\w{6}")
APPLE_DOUBLE = "._"
"""Resource forks carry the image's own suffix."""


def is_silently_ignored(name: str) -> bool:
    """Whether a folder is of version control, or our own: not worth a word."""
    return name.lower() in _SILENT


def is_ignored_folder(path: str) -> bool:
    """Whether a folder holds no images of a person: trash, thumbnails, files of other programs."""
    parent, name = os.path.split(path)
    name = name.lower()
    if name in _FOLDERS or name in _SILENT or _FOLDER_PATTERN.fullmatch(name):
        return True
    above = os.path.basename(parent).lower()
    return name in _INSIDE.get(above, ()) or name in _INSIDE.get(os.path.splitext(above)[1], ())


def is_unfinished(name: str) -> bool:
    """Whether a file is still being downloaded or synchronised, or is the temporary file of a program that saves."""
    lower = name.lower()
    if os.path.splitext(lower)[1] in _UNFINISHED_SUFFIXES or lower.startswith(_UNFINISHED_PREFIXES):
        return True
    # While rsync copies photo.jpg, it is .photo.jpg.AbC123.
    match = _RSYNC.fullmatch(name) if lower.startswith(".") else None
    return match is not None and os.path.splitext(match[1].lower())[1] in IMAGE_SUFFIXES


def log_passed_over(folders: Sequence[str], files: Sequence[str]) -> None:
    """Say what a walk did not look at."""
    for line in passed_over_lines(folders, files):
        log.info("%s", line)


def passed_over_lines(folders: Sequence[str], files: Sequence[str]) -> list[str]:
    """What a walk did not look at, in words; nothing where there was nothing.

    Args:
        folders: Paths of folders of trash, thumbnails and other programs.
        files: Paths of unfinished downloads and temporary files.
    """
    lines = []
    for paths, one, many in (
        (folders, "trash or thumbnail folder", "trash or thumbnail folders"),
        (files, "unfinished or temporary file", "unfinished or temporary files"),
    ):
        if paths:
            names = [name for name, _ in Counter(os.path.basename(path) for path in paths).most_common()]
            listed = ", ".join(map(printable, names[:5])) + (", ..." if len(names) > 5 else "")
            lines.append(f"passed over: {len(paths):,} {one if len(paths) == 1 else many} ({listed})")
    return lines
