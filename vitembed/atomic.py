"""Files and folders that are either the old one or the new one, never half of one, also after a power cut."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import re
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from vitembed.faults import about_to


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; it takes the place of ``path`` when the block ends well.

    After a crash or an exception ``path`` is untouched. Its mode, and where possible its owner, are kept; a new file
    gets those of the process. The folder must exist.

    Raises:
        OSError: If the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    # In the same folder, as a rename is atomic only inside one file system; by pid, so that two processes do not meet.
    temp = target.with_name(f".tmp.{os.getpid()}.{target.name}")
    try:
        about_to(f"write {target.name}")
        temp.unlink(missing_ok=True)
        temp.touch(exist_ok=False)
        mode = temp.stat().st_mode
        yield temp
        _keep_mode(temp, target, mode)
        about_to(f"fsync {target.name}")
        _fsync(temp)
        about_to(f"rename {target.name}")
        temp.replace(target)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    fsync_directory(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], ours: Collection[str]) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well it takes the place of ``path`` in one step.

    A link to a folder stays a link: the folder that it names is replaced. Whatever lies in the old folder and is not
    among ``ours`` is kept: it is in the new folder too.

    Args:
        path: The folder to be; missing parents are made.
        ours: Names of the files that belong to what is replaced.

    Raises:
        OSError: If the folder cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    make_folders(target.parent)
    fresh = target.with_name(f".{target.name}.new-{os.getpid()}")
    _put_back(target)
    _clear(fresh, target, ours)
    try:
        about_to(f"write {target.name}")
        fresh.mkdir()
        yield fresh
        mode = fresh.stat().st_mode
        for file in fresh.iterdir():
            if file.stat().st_nlink == 1:  # a linked file is another folder's too
                file.chmod(mode & 0o666)  # safetensors makes its files private
            about_to(f"fsync {file.name}")
            _fsync(file)
        if target.is_dir():
            _carry_over(target, fresh, ours)
            _keep_mode(fresh, target, mode)
        fsync_directory(fresh)
        about_to(f"rename {target.name}")
        old = fresh
        if not target.exists():
            fresh.rename(target)
        elif not exchange(fresh, target):
            old = target.with_name(f".{target.name}.old-{os.getpid()}")
            target.rename(old)
            fsync_directory(target.parent)
            fresh.rename(target)
    except BaseException:
        if fresh.is_dir() and target.exists():
            _clear(fresh, target, ours)
        elif fresh.is_dir():
            shutil.rmtree(fresh, ignore_errors=True)
        raise
    fsync_directory(target.parent)  # before the old files go: else they could be gone and the new ones not there
    if old.is_dir():
        _clear(old, target, ours)


def standing_folder(path: str | os.PathLike[str]) -> Path:
    """Where the content of a folder is to be read: at ``path``, or where a replacement that was cut short left it."""
    found = Path(path)
    if found.exists():
        return found
    target = Path(os.path.realpath(path))
    return next(iter(_leftovers(target, "old")), found)


def recover_folder(path: str | os.PathLike[str], ours: Collection[str]) -> None:
    """Undo what a process that was killed in ``atomic_folder`` left: nothing of the user's is lost by it."""
    target = Path(os.path.realpath(path))
    _put_back(target)
    for left in [*_leftovers(target, "old"), *_leftovers(target, "new")]:
        _clear(left, target, ours)


def _put_back(target: Path) -> None:
    if not target.exists():
        for old in _leftovers(target, "old")[:1]:
            old.rename(target)
            fsync_directory(target.parent)


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(first), os.fsencode(second)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*names, 2) == 0)  # RENAME_SWAP
        return bool(libc.renameat2(-100, names[0], -100, names[1], 2) == 0)  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):  # no such call: Windows, an old C library
        return False


def make_folders(path: Path) -> None:
    """Make a folder and its missing parents such that a power cut does not take them back.

    Raises:
        OSError: If one cannot be made, or a file has its name.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_directory(folder.parent)
    if not path.is_dir():
        raise FileExistsError(errno.EEXIST, "there is a file of that name", os.fspath(path))


def fsync_directory(directory: str | os.PathLike[str]) -> None:
    """Make a rename in ``directory`` survive a power cut, where the system allows to open a folder."""
    about_to("fsync the folder")
    if os.name == "nt":  # folders cannot be opened there; NTFS journals the rename itself
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync(path: Path) -> None:
    with path.open("rb" if os.name != "nt" else "rb+") as file:
        os.fsync(file.fileno())


def _keep_mode(fresh: Path, target: Path, mode: int) -> None:
    """Give ``fresh`` owner and mode of ``target``; ``mode`` where there is none."""
    try:
        status = target.lstat()
    except OSError:
        fresh.chmod(mode & 0o7777)
        return
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):  # only root may give files away
            os.chown(fresh, status.st_uid, status.st_gid)
    fresh.chmod(status.st_mode & 0o777)


def _carry_over(old: Path, fresh: Path, ours: Collection[str]) -> None:
    """Let what is not ours be in the new folder too; links cost nothing, and no moment sees it in neither."""
    for entry in old.iterdir():
        if entry.name in ours:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, fresh / entry.name, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(entry, fresh / entry.name)
    for folder in [item for item in fresh.rglob("*") if item.is_dir() and not item.is_symlink()]:
        fsync_directory(folder)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name; a copy of it where the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
        if not Path(target).is_symlink():
            _fsync(Path(target))


def _clear(old: Path, new: Path, ours: Collection[str]) -> None:
    """Remove a replaced folder: our files, and what ``new`` has too. What came since goes to ``new``."""
    with contextlib.suppress(OSError):
        for entry in list(old.iterdir()) if old.is_dir() else ():
            kept = new / entry.name
            is_folder = entry.is_dir() and not entry.is_symlink()
            if entry.name in ours or (os.path.lexists(kept) and (is_folder or _same(entry, kept))):
                shutil.rmtree(entry) if is_folder else entry.unlink()
            elif new.is_dir() and not os.path.lexists(kept):
                entry.rename(kept)
        old.rmdir()  # fails where something could not be moved, which is then kept


def _same(first: Path, second: Path) -> bool:
    if first.is_symlink() or second.is_symlink():
        return first.is_symlink() and second.is_symlink() and first.readlink() == second.readlink()
    return first.samefile(second) or filecmp.cmp(first, second, shallow=False)


def _leftovers(target: Path, kind: str) -> list[Path]:
    """Folders that killed processes left beside ``target``, the newest first."""
    pattern = re.compile(rf"{re.escape(f'.{target.name}.{kind}-')}\d+")
    try:
        found = [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name) and entry.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
