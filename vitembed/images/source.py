"""Folders, files and lists of files to the images in them, in a stable order and without opening a pixel."""
# ruff: noqa: PTH100, PTH116, PTH117, PTH118, PTH120, PTH122, PTH206
# Paths stay plain strings: pathlib is slower over large trees and cannot make a path absolute without following links.

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vitembed.errors import BadImage, DataError, printable
from vitembed.images.formats import HEAD_BYTES, REFUSED, claims_image, explain_os_error, format_of, not_an_image, sniff
from vitembed.images.ignored import APPLE_DOUBLE, is_ignored_folder, is_silently_ignored, is_unfinished

__all__ = [
    "FileEntry",
    "ImageListing",
    "ImageRef",
    "Walk",
    "absolute_path",
    "find_images",
    "is_image",
    "is_mount",
    "missing_error",
    "read_path_list",
    "sniff",
    "split_path_list",
    "stat_facts",
    "walk",
]

_LONGEST_NAME = 32_768
"""Bytes. No file system has longer paths, so what is longer is no path."""
_INT64 = 2**63


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
    """Within 64 bits, as ``stat_facts`` gives it."""
    device: int = 0
    inode: int = 0
    """0: not known. The same file reached in two ways has the same device and inode."""
    ctime_ns: int = 0
    """When the file or one of its names last changed, where the system says so; no program can set it back."""


@dataclass(frozen=True)
class Walk:
    """What ``walk`` found."""

    entries: list[FileEntry]
    """Regular files, sorted by the bytes of their path, each path once."""
    bad: list[BadImage]
    """What could not be read: folders, dangling links, lines of lists."""
    named: set[str]
    """Paths of files that the user named outright."""
    inputs: list[str]
    """Absolute paths of the inputs, in their order, also of those that are missing; lists are in ``lists``."""
    lists: dict[str, list[str]]
    """Absolute paths in each ``@list``, by its name with the ``@``."""
    missing: list[BadImage]
    """Inputs that do not exist or cannot be looked at, each with its reason."""
    passed_over: list[str]
    """Folders of trash, thumbnails and other programs that were not entered."""
    unfinished: list[str]
    """Downloads in progress and temporary files that were left out."""
    roots: dict[str, bool]
    """Folders among the inputs, and mount points below them; whether each is a mount point."""


@dataclass(frozen=True)
class ImageListing:
    """What ``find_images`` found."""

    refs: list[ImageRef]
    """Files that hold an image, sorted by the bytes of their path, each path once."""
    bad: list[BadImage]
    """Files that claim to be images and are not, and what could not be read."""
    num_other: int
    """Files that neither look nor claim to be images."""
    passed_over: list[str] = field(default_factory=list)
    """Folders of trash, thumbnails and other programs that were not entered."""
    unfinished: list[str] = field(default_factory=list)
    """Downloads in progress and temporary files that were left out."""


def stat_facts(status: os.stat_result) -> tuple[int, int]:
    """Size and mtime_ns of a file, as they can be stored: a time beyond 64 bits becomes the last that fits."""
    return status.st_size, min(max(status.st_mtime_ns, -_INT64), _INT64 - 1)


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Give the path from the root, links kept; ``..`` behind a link leads where the system would go.

    Raises:
        DataError: If it is empty, as from a shell variable that is not set: that must not mean the current folder.
    """
    text = os.fsdecode(path)
    if not text:
        raise DataError("got an empty path (a shell variable that is not set?): name a file or folder, or . for here")
    if ".." in text.replace(os.altsep or os.sep, os.sep).split(os.sep):
        real = os.path.realpath(text)
        if real != os.path.realpath(os.path.abspath(text)):
            return real
    return os.path.abspath(text)


def walk(inputs: Sequence[str | os.PathLike[str]], *, follow_symlinks: bool = False, missing_ok: bool = False) -> Walk:
    """Every regular file in the inputs, sorted by the bytes of its path, each path once; and what could not be read.

    Costs stat calls only. Pipes, sockets and devices are left out, as are folders of trash, thumbnails and other
    programs (``ignored.py``), unfinished downloads, and ``._*`` files, unless named outright.

    Args:
        inputs: Folders (recursive), files, and ``@list.txt`` (see ``read_path_list``). A file ``@name`` is given as
            ``./@name``.
        follow_symlinks: Enter linked folders too, each real folder once, so loops end. Links to files, and inputs that
            are links themselves, are always followed.
        missing_ok: List inputs that do not exist in ``missing`` and go on, as long as they are paths.

    Raises:
        DataError: If an input does not exist (without ``missing_ok``) or is neither a file nor a folder, or a list
            cannot be read.
    """
    found = _find(inputs, follow_symlinks)
    if found.missing and not missing_ok:
        raise missing_error(found.missing)
    return Walk(
        found.entries(),
        found.bad,
        found.named,
        found.inputs,
        found.lists,
        found.missing,
        found.passed_over,
        found.unfinished,
        found.roots(),
    )


def find_images(inputs: Sequence[str | os.PathLike[str]], *, follow_symlinks: bool = False) -> ImageListing:
    """Every image in the inputs (see ``walk``), told by content; false claims are listed as bad.

    Raises:
        DataError: As ``walk``.
    """
    found = _find(inputs, follow_symlinks)
    if found.missing:
        raise missing_error(found.missing)
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
    bad.sort(key=lambda error: os.fsencode(error.path))
    return ImageListing(refs, bad, num_other, found.passed_over, found.unfinished)


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
        raise BadImage(path, not_an_image(path))
    return name is not None


class _Found:
    """Files by path, so that overlapping inputs count once."""

    def __init__(self) -> None:
        self.files: dict[str, FileEntry] = {}
        self.named: set[str] = set()
        self.bad: list[BadImage] = []
        self.inputs: list[str] = []
        self.lists: dict[str, list[str]] = {}
        self.missing: list[BadImage] = []
        self.passed_over: list[str] = []
        self.unfinished: list[str] = []
        self.folders = set[str]()
        """Those among the inputs."""
        self.elsewhere = set[str]()
        """Folders with files on another device than their input."""

    def entries(self) -> list[FileEntry]:
        return sorted(self.files.values(), key=lambda entry: os.fsencode(entry.path))

    def add(self, path: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self.files[path] = FileEntry(path, *stat_facts(status), status.st_dev, status.st_ino, status.st_ctime_ns)

    def roots(self) -> dict[str, bool]:
        """Folders among the inputs and mount points below them, and which of them are mount points."""
        found = {path: is_mount(path) for path in self.folders}
        for folder in self.elsewhere:
            while folder not in found and folder != os.path.dirname(folder):
                if is_mount(folder):
                    found[folder] = True
                folder = os.path.dirname(folder)
        return found


_NO_SUCH = "no such file or folder"
_NUM_NAMED = 5


def missing_error(missing: Sequence[BadImage]) -> DataError:
    """Name the inputs that are missing, each once."""
    absent = list(dict.fromkeys(printable(error.path) for error in missing if error.reason == _NO_SUCH))
    more = f" and {len(absent) - _NUM_NAMED:,} more" if len(absent) > _NUM_NAMED else ""
    parts = [f"{_NO_SUCH}: {', '.join(absent[:_NUM_NAMED])}{more}"] if absent else []
    return DataError("; ".join([*parts, *(str(error) for error in missing if error.reason != _NO_SUCH)]))


def is_mount(path: str) -> bool:
    """Whether another file system begins at this folder."""
    try:
        return os.path.ismount(os.path.realpath(path))
    except (OSError, ValueError):
        return False


def _find(inputs: Sequence[str | os.PathLike[str]], follow_symlinks: bool) -> _Found:
    if isinstance(inputs, (str, bytes, os.PathLike)):
        inputs = [inputs]  # one path is an easy slip; walking its letters would be a strange answer
    found = _Found()
    for item in inputs:
        text = os.fsdecode(item)
        if text.startswith("@"):
            found.lists[text] = _find_listed(found, text[1:], follow_symlinks)
            continue
        if "\0" in text:
            raise DataError(f"{printable(text)!r}: a path holds no null byte")
        path = absolute_path(text)
        found.inputs.append(path)
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            found.missing.append(BadImage(path, _NO_SUCH))
            continue
        except (OSError, ValueError) as error:
            found.missing.append(BadImage(path, explain_os_error(error)))
            continue
        if not _add_named(found, path, status, follow_symlinks):
            raise DataError(f"{printable(text)} is neither a file nor a folder")
    return found


def _find_listed(found: _Found, name: str, follow_symlinks: bool) -> list[str]:
    """Look at what a list names; what is not there is bad, with a hint where it lies beside the list."""
    listed, num_missing = list[str](), len(found.missing)
    for line in read_path_list(name):
        try:
            path = absolute_path(line)
        except ValueError:  # a NUL in it
            path = os.path.abspath(line)
        listed.append(path)
        try:
            _add_named(found, path, os.stat(path), follow_symlinks)
        except (OSError, ValueError) as error:
            reason = "a path holds no null byte" if "\0" in line else explain_os_error(error)
            beside = os.path.join(os.path.dirname(os.path.abspath(name)), line)
            if not os.path.isabs(line) and os.path.lexists(beside):
                reason += (
                    f": names in @{printable(name)} count from the current folder; it lies beside the list, "
                    f"as {printable(beside)}"
                )
            found.bad.append(BadImage(path, reason))
        # A line of a list never stops the rest.
        found.bad += found.missing[num_missing:]
        del found.missing[num_missing:]
    return listed


def _add_named(found: _Found, path: str, status: os.stat_result, follow_symlinks: bool) -> bool:
    if stat.S_ISDIR(status.st_mode):
        _walk_folder(found, path, follow_symlinks)
        return True
    found.add(path, status)
    found.named.add(path)
    return stat.S_ISREG(status.st_mode)


def read_path_list(name: str | os.PathLike[str], *, what: str = "list of images @") -> list[str]:
    """Read the paths in a list; relative ones count from the current folder, as for every other tool.

    One path a line, or each ended by a NUL (``find -print0``). In lines, blank ones and comments are left out: those
    that start with ``#`` and name no file. UTF-8 and UTF-16 with a byte order mark, and CRLF, are read too.

    Args:
        name: Its file.
        what: Comes before the name in a message.

    Raises:
        DataError: If the list cannot be read, or is no text.
    """
    try:
        with open(os.path.abspath(os.fspath(name)), "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise DataError(f"{what}{printable(name)}: {explain_os_error(error)}") from error
    try:
        return split_path_list(data)
    except ValueError as error:
        raise DataError(f"{what}{printable(name)}: not a list of paths: {error}") from error


def split_path_list(data: bytes) -> list[str]:
    """The paths in the bytes of a list (see ``read_path_list``).

    Raises:
        ValueError: If it is no list of paths.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in data:
        with contextlib.suppress(UnicodeError):  # a name that only begins like the mark
            if "\0" not in (text := data.decode("utf-16")):
                data = os.fsencode(text)
    data = data.removeprefix(b"\xef\xbb\xbf")
    # One stray NUL in a list of lines is the mistake of its line.
    if data.endswith(b"\0") or data.count(b"\0") > data.count(b"\n"):
        names = [name for name in data.split(b"\0") if name]
    else:
        # A name may end in spaces, so only the line end goes.
        lines = (line.removesuffix(b"\r") for line in data.split(b"\n"))
        names = [line for line in lines if line.strip() and (line.lstrip()[:1] != b"#" or os.path.lexists(line))]
    is_binary = format_of(data[:HEAD_BYTES]) is not None or not data.strip(b"\0")
    if data and (is_binary or any(len(name) > _LONGEST_NAME for name in names)):
        raise ValueError("it must be text, one path per line, or paths that end in NUL each")
    return [os.fsdecode(name) for name in names]


def _walk_folder(found: _Found, root: str, follow_symlinks: bool) -> None:
    # A stack instead of recursion: trees may be deeper than Python's. Links are entered after all real folders, so
    # that a folder reachable both ways keeps its real path, and each real folder is entered once.
    try:
        device = os.stat(root).st_dev
    except OSError as error:
        found.missing.append(BadImage(root, explain_os_error(error)))
        return
    found.folders.add(root)
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
            if folder == root:
                found.missing.append(BadImage(root, f"folder: {explain_os_error(error)}"))
            else:
                found.bad.append(BadImage(folder, f"folder: {explain_os_error(error)}"))
            continue
        for child in children:
            _visit(found, child, pending, links if follow_symlinks else None, device)


def _visit(found: _Found, child: os.DirEntry[str], pending: list[str], links: list[str] | None, device: int) -> None:
    try:
        if child.is_dir():
            if child.is_symlink() and links is None:
                return
            if is_ignored_folder(child.path):
                if not is_silently_ignored(child.name):
                    found.passed_over.append(child.path)
            elif child.is_symlink():
                assert links is not None
                links.append(child.path)
            else:
                pending.append(child.path)
        elif not child.name.startswith(APPLE_DOUBLE):
            # Not child.stat(): on Windows that one may be out of date.
            status = os.stat(child.path)
            if is_unfinished(child.name):
                found.unfinished.append(child.path)
                return
            found.add(child.path, status)
            if status.st_dev != device and not child.is_symlink():
                found.elsewhere.add(os.path.dirname(child.path))
    except OSError as error:
        # Editors leave dangling links as locks; one that claims to be an image is worth a line.
        if claims_image(child.path):
            found.bad.append(BadImage(child.path, explain_os_error(error)))
