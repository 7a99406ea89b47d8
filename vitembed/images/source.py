"""Folders, files and lists of files to the images in them, in a stable order and without opening a pixel."""
# ruff: noqa: PTH100, PTH116, PTH118, PTH120, PTH122
# Paths stay plain strings: pathlib is slower over large trees and cannot make a path absolute without following links.

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vitembed.errors import BadImage, DataError, printable
from vitembed.images.formats import REFUSED, claims_image, explain_os_error, sniff

__all__ = ["FileEntry", "ImageListing", "ImageRef", "find_images", "is_image", "sniff", "walk"]

# Bookkeeping of other programs: thumbnails, version control, archives' leftovers. Never a person's images.
_SKIPPED_FOLDERS = frozenset({".git", ".vitembed", "@eaDir", "node_modules", "System Volume Information", "__MACOSX"})
_SKIPPED_PREFIX = "._"  # AppleDouble resource forks carry the image's own suffix


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where one image is."""

    path: str
    """Absolute path as ``os.fsdecode`` gives it; may hold surrogate escapes (names that are not UTF-8)."""
    frame: int = 0
    """Which picture of a file that holds several (GIF, TIFF, APNG, WebP)."""


class FileEntry(NamedTuple):
    """A regular file, as one stat call tells it. A tuple, as a walk makes one for each of perhaps millions."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class ImageListing:
    """What ``find_images`` found."""

    refs: list[ImageRef]
    """Files that hold an image, sorted by the bytes of their path, each path once."""
    bad: list[BadImage]
    """Files that claim to be images and are not, and what could not be read."""
    num_other: int
    """Files that neither look nor claim to be images."""


def walk(
    inputs: Sequence[str | os.PathLike[str]], *, follow_symlinks: bool = False
) -> tuple[list[FileEntry], list[BadImage]]:
    """Every regular file in the inputs, sorted by the bytes of its path, each path once; and what could not be read.

    Costs stat calls only. Pipes, sockets and devices are left out, as are folders of other programs (``.git``,
    ``@eaDir``, ...) and ``._*`` files, unless named outright.

    Args:
        inputs: Folders (recursive), files, and ``@list.txt`` (one path per line, relative to the list's folder; blank
            lines and lines that start with ``#`` are skipped). A file ``@name`` is given as ``./@name``.
        follow_symlinks: Enter linked folders too, each real folder once, so loops end. Links to files, and inputs that
            are links themselves, are always followed.

    Raises:
        DataError: If an input does not exist or is neither a file nor a folder, or a list cannot be read.
    """
    found = _find(inputs, follow_symlinks)
    return found.entries(), found.bad


def find_images(inputs: Sequence[str | os.PathLike[str]], *, follow_symlinks: bool = False) -> ImageListing:
    """Every image in the inputs (see ``walk``), told by content; false claims are listed as bad.

    Raises:
        DataError: As ``walk``.
    """
    found = _find(inputs, follow_symlinks)
    refs: list[ImageRef] = []
    bad = list(found.bad)
    num_other = 0
    for entry in found.entries():
        try:
            if is_image(entry.path, named=entry.path in found.named):
                refs.append(ImageRef(entry.path))
            else:
                num_other += 1
        except BadImage as error:
            bad.append(error)
    return ImageListing(refs, sorted(bad, key=lambda error: os.fsencode(error.path)), num_other)


def is_image(path: str, *, named: bool = False) -> bool:
    """Whether the file holds an image; False for a file that neither looks nor claims to be one.

    Args:
        path: The file.
        named: The user named this very file, so it is never "another file": no image content is an error.

    Raises:
        BadImage: If the file claims to be an image (by suffix, or being named) and is none, or cannot be read.
    """
    claimed = named or claims_image(path)
    try:
        name = sniff(path)
    except BadImage:
        # A file without any suffix might be an image: what we could not look at, we do not wave away.
        if claimed or not os.path.splitext(path)[1]:
            raise
        return False
    if name in REFUSED:
        raise BadImage(path, REFUSED[name])
    if claimed and name is None:
        raise BadImage(path, "not an image")
    return name is not None


class _Found:
    """Files by path, so that overlapping inputs count once."""

    def __init__(self) -> None:
        self.files: dict[str, FileEntry] = {}
        self.named: set[str] = set()
        self.bad: list[BadImage] = []

    def entries(self) -> list[FileEntry]:
        return sorted(self.files.values(), key=lambda entry: os.fsencode(entry.path))

    def add(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self.files[path] = FileEntry(path, status.st_size, status.st_mtime_ns)


def _find(inputs: Sequence[str | os.PathLike[str]], follow_symlinks: bool) -> _Found:
    if isinstance(inputs, (str, bytes, os.PathLike)):
        inputs = [inputs]  # one path is an easy slip; walking its letters would be a strange answer
    found = _Found()
    for item in inputs:
        text = os.fsdecode(item)
        if text.startswith("@"):
            for path in _read_list(text[1:]):
                try:
                    status = os.stat(path)
                except (OSError, ValueError) as error:
                    found.bad.append(BadImage(path, explain_os_error(error)))
                else:
                    _add_named(found, path, status, follow_symlinks)
            continue
        path = os.path.abspath(text)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise DataError(f"no such file or folder: {printable(text)}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{printable(text)}: {explain_os_error(error)}") from error
        if not _add_named(found, path, status, follow_symlinks):
            raise DataError(f"{printable(text)} is neither a file nor a folder")
    return found


def _add_named(found: _Found, path: str, status: os.stat_result, follow_symlinks: bool) -> bool:
    if stat.S_ISDIR(status.st_mode):
        _walk_folder(found, path, follow_symlinks)
        return True
    found.add(path, status)
    found.named.add(path)
    return stat.S_ISREG(status.st_mode)


def _read_list(name: str) -> Iterator[str]:
    list_path = os.path.abspath(name)
    try:
        with open(list_path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise DataError(f"list of images @{printable(name)}: {explain_os_error(error)}") from error
    if b"\0" in data:
        raise DataError(f"@{printable(name)} is not a list of paths: it must be text, one path per line")
    folder = os.path.dirname(list_path)
    for raw in data.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        # A name may end in spaces, so only the line end goes.
        line = raw.removesuffix(b"\r")
        if line.strip() and not line.lstrip().startswith(b"#"):
            yield os.path.abspath(os.path.join(folder, os.fsdecode(line)))


def _walk_folder(found: _Found, root: str, follow_symlinks: bool) -> None:
    # A stack instead of recursion: trees may be deeper than Python's. Links are entered after all real folders, so
    # that a folder reachable both ways keeps its real path, and each real folder is entered once.
    pending, links, entered = [root], list[str](), set[tuple[int, int]]()
    while pending or links:
        if not pending:
            links.sort(key=os.fsencode, reverse=True)
            pending.append(links.pop())
        folder = pending.pop()
        try:
            if follow_symlinks:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in entered:
                    continue
                entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                children = list(listing)
        except OSError as error:
            found.bad.append(BadImage(folder, f"folder: {explain_os_error(error)}"))
            continue
        for child in children:
            _visit(found, child, pending, links if follow_symlinks else None)


def _visit(found: _Found, child: os.DirEntry[str], pending: list[str], links: list[str] | None) -> None:
    try:
        if child.is_dir(follow_symlinks=False):
            if child.name not in _SKIPPED_FOLDERS:
                pending.append(child.path)
        elif child.is_dir():
            if links is not None and child.name not in _SKIPPED_FOLDERS:
                links.append(child.path)
        elif not child.name.startswith(_SKIPPED_PREFIX):
            # Not child.stat(): on Windows that one may be out of date.
            found.add(child.path, os.stat(child.path))
    except OSError as error:
        # Editors leave dangling links as locks; one that claims to be an image is worth a line.
        if claims_image(child.path):
            found.bad.append(BadImage(child.path, explain_os_error(error)))
