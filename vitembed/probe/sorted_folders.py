"""Images sorted into one folder per class: copies or links. Originals stay where they are, no file is ever replaced."""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from vitembed.errors import DataError, printable

UNSURE = "_unsure"
"""Folder of the images for which the probe abstains."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
_LONGEST = 200  # bytes; file systems take 255


class SortedFolders:
    """A folder with a sub-folder per class, filled one image at a time.

    Args:
        directory: Made when it is not there.
        classes: Labels; a sub-folder's name is the label with what no file system or shell bears replaced by ``_``.
        link: Symbolic links to the originals in place of copies.
        inputs: Where the images come from.

    Raises:
        DataError: If ``directory`` lies in a folder of ``inputs``: the next run would take the copies for images.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        classes: Sequence[str | int],
        *,
        link: bool = False,
        inputs: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.directory = Path(directory)
        self.link = link
        if os.path.lexists(self.directory) and not self.directory.is_dir():
            raise DataError(f"{printable(directory)} is no folder: name one for the sorted images")
        for item in inputs:
            source = Path(os.fsdecode(item))
            if source.is_dir() and self.directory.resolve().is_relative_to(source.resolve()):
                raise DataError(
                    f"{printable(directory)} lies in {printable(source)}, whose images are to be sorted: the next run "
                    "would find the copies there; choose a folder outside"
                )
        self._names = _folder_names(classes)

    def folder(self, label: str | int | None) -> Path:
        """Where images of this label lie; None: where the probe abstained."""
        return self.directory / (UNSURE if label is None else self._names[label])

    def add(self, path: str, label: str | int | None) -> Path:
        """Copy or link one image, and say where it lies now.

        An equal copy or link that is there already is left and taken for it; another file of that name is left too,
        and this one gets a number.

        Raises:
            DataError: If it cannot be written, or the image is gone.
        """
        folder = self.folder(label)
        name = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1_000_000):
                target = folder / (name.name if number == 1 else f"{name.stem}-{number}{name.suffix}")
                if self._is_there(path, target):
                    return target
                if os.path.lexists(target):
                    continue
                try:
                    self._put(path, target)
                except FileExistsError:  # somebody else was quicker
                    continue
                return target
        except OSError as error:
            raise DataError(f"{printable(path)}: cannot put it into {printable(folder)}: {error.strerror}") from error
        raise DataError(f"{printable(folder)}: too many files of one name")

    def _is_there(self, path: str, target: Path) -> bool:
        if self.link:
            return target.is_symlink() and os.readlink(target) == os.path.abspath(path)  # noqa: PTH100, PTH115
        return target.is_file() and not target.is_symlink() and filecmp.cmp(path, target, shallow=False)

    def _put(self, path: str, target: Path) -> None:
        """Make ``target``, whole or not at all.

        Raises:
            FileExistsError: If there is one already.
        """
        if self.link:
            target.symlink_to(os.path.abspath(path))  # noqa: PTH100  # links of the original are kept
            return
        temp = target.with_name(f".tmp.{os.getpid()}.{target.suffix}")
        try:
            shutil.copy2(path, temp)
            try:
                os.link(temp, target)  # unlike a rename it never replaces a file
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                with target.open("xb"):
                    pass
                temp.replace(target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temp.unlink()


def _folder_names(classes: Sequence[str | int]) -> dict[str | int, str]:
    """A name for each class's folder, different also where case does not count, and none that leads elsewhere."""
    names: dict[str | int, str] = {}
    taken = {UNSURE}
    for label in classes:
        plain = _UNSAFE.sub("_", str(label)).strip(" ").rstrip(".")
        plain = plain.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore")
        if not plain or plain.startswith("."):
            plain = f"_{plain}"
        name, number = plain, 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names[label] = name
    return names
