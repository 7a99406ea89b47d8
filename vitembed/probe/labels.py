"""Labelled images: class sub-folders, train/test folders of them, or a CSV file."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitembed.csv_text import read_csv
from vitembed.errors import BadImage, DataError, printable
from vitembed.images.ignored import APPLE_DOUBLE, is_ignored_folder, is_silently_ignored, log_passed_over
from vitembed.images.source import ImageRef, find_images, is_image, sniff
from vitembed.probe.split import SPLIT_NAMES
from vitembed.vector_files import vector_format

log = logging.getLogger("vitembed")

EXPECTED = (
    "expected class sub-folders, train and test folders of them, or a CSV file with columns path,label[,split][,group]"
)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with a label each, and those that have none because they are bad."""

    refs: list[ImageRef]
    labels: np.ndarray
    """``[n]``, text."""
    split: np.ndarray | None
    """``[n]`` of ``train``, ``val``, ``test`` when the data came with a split."""
    bad: list[BadImage]
    """Files that are no readable images, and images that lie outside the class folders; never labelled."""
    groups: np.ndarray | None = None
    """``[n]``, text: images with the same one belong together, when the CSV file has a column ``group``."""

    @property
    def paths(self) -> list[str]:
        """Where each image is."""
        return [ref.path for ref in self.refs]

    def __len__(self) -> int:
        return len(self.refs)

    def of(self, paths: Sequence[str]) -> LabelledImages:
        """The images with these paths, in this order, as after some turned out to be unreadable."""
        place = {ref.path: row for row, ref in enumerate(self.refs)}
        rows = [place[path] for path in paths]
        return replace(
            self,
            refs=[self.refs[row] for row in rows],
            labels=self.labels[rows],
            split=None if self.split is None else self.split[rows],
            groups=None if self.groups is None else self.groups[rows],
        )


def read_labelled(source: str | os.PathLike[str]) -> LabelledImages:
    """Read labelled images from a folder or a CSV file.

    A folder holds one sub-folder for each class (images anywhere below belong to it), or a ``train`` folder beside
    ``test`` and/or ``val`` folders with the same classes in them. A CSV file has a header with ``path`` and ``label``,
    perhaps ``split``, and ``group`` where some images belong together; other columns are ignored; paths are relative to
    its folder. What a reader of the labels should know (folders without a readable image, classes that differ in case
    only) is logged, one line each.

    Raises:
        DataError: If there is no such file or folder, it is not laid out like this, it holds no readable image, or the
            sub-folders are of one class.
    """
    path = Path(source)
    if path.is_dir():
        found = _read_folder(path)
    elif path.is_file():
        _refuse_other_files(path)
        found = _read_csv(path)
    elif path.exists():
        raise DataError(f"{printable(path)} is neither a file nor a folder: {EXPECTED}")
    else:
        raise DataError(f"no such file or folder: {printable(path)}")
    if not found.refs:
        first = f" (first of {len(found.bad)} bad ones: {found.bad[0]})" if found.bad else ""
        raise DataError(f"{printable(path)} holds no labelled image{first}{_hint_on_paths(path, found)}")
    left = np.unique(found.labels).tolist()
    if found.bad and len(left) == 1:
        what = "1 other file" if len(found.bad) == 1 else f"{len(found.bad):,} other files"
        raise DataError(
            f"{printable(path)}: the images that can be read are of one class, {left[0]}: two or more are needed; "
            f"{what} cannot be used, the first: {found.bad[0]}"
        )
    for line in _remarks_on_names(found.labels):
        log.warning(line)
    return found


def _refuse_other_files(path: Path) -> None:
    """Images and vectors are no lists of labelled images, whatever their suffix."""
    try:
        if sniff(str(path)) is not None:
            raise DataError(f"{printable(path)} is an image: {EXPECTED}")
    except BadImage:
        return  # reading it says why
    kind = vector_format(path)
    if kind is not None and kind != "csv":
        raise DataError(
            f"{printable(path)} holds vectors ({kind}), no images: {EXPECTED}; for vectors with labels inside there "
            "is vitembed.study(vitembed.Embeddings.load(FILE)) in Python"
        )


def _hint_on_paths(path: Path, found: LabelledImages) -> str:
    """Where the images of a CSV file would be found, if its paths were meant to count from the current folder."""
    if path.is_dir() or not found.bad:
        return ""
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120  links stay links
    first = os.path.relpath(found.bad[0].path, folder)
    here = os.path.exists(first)  # noqa: PTH110
    return "; relative paths count from the folder of the CSV file" + (
        ", and this one lies below the current folder: move the file here, or write absolute paths" if here else ""
    )


def _remarks_on_names(labels: np.ndarray) -> list[str]:
    """Classes whose names a person would take for one."""
    alike: dict[str, list[str]] = {}
    for name in np.unique(labels).tolist():
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())
        alike.setdefault(key, []).append(name)
    return [
        f"classes {' and '.join(map(repr, names))} differ only in case, spaces or Unicode form; they count as "
        f"{len(names)} classes"
        for names in alike.values()
        if len(names) > 1
    ]


def _read_folder(root: Path) -> LabelledImages:
    folders, files = _children(root)
    if not folders:
        num = len(find_images([root]).refs)
        inside = f"{num:,} {'image' if num == 1 else 'images'} and " if num else "no images and " if files else ""
        what = f"has {inside}no class sub-folders" if inside else "is empty"
        raise DataError(f"{printable(root)} {what}: {EXPECTED}")
    parts = _parts_of_split(root, folders)
    refs: list[ImageRef] = []
    labels: list[str] = []
    split: list[str] = []
    bad: list[BadImage] = []
    passed_over, unfinished = list[str](), list[str]()
    without: list[str] = []
    for section, part in parts or [(root, "")]:
        passed_over += [child.path for child in os.scandir(section) if child.is_dir() and is_ignored_folder(child.path)]
        classes, loose = _children(section)
        bad += _unlabelled(loose, "not in a class folder")
        for folder in classes:
            listing = find_images([folder])
            refs += listing.refs
            labels += [printable(folder.name)] * len(listing.refs)
            split += [part] * len(listing.refs)
            bad += listing.bad
            passed_over += listing.passed_over
            unfinished += listing.unfinished
            without += (
                [] if listing.refs else [(f"{printable(section.name)}/" if parts else "") + printable(folder.name)]
            )
    log_passed_over([path for path in passed_over if not is_silently_ignored(Path(path).name)], unfinished)
    if without and refs:
        some = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        what = "1 class folder has" if len(without) == 1 else f"{len(without)} class folders have"
        log.warning("%s no readable image and %s no class: %s", what, "is" if len(without) == 1 else "are", some)
    _refuse_one_class(root, labels, bad)
    if parts:
        others = sorted(set(folders) - {section for section, _ in parts})
        outside = find_images(others).refs if others else []
        bad += [BadImage(ref.path, "outside train, val and test") for ref in outside]
    return LabelledImages(refs, np.array(labels, dtype=np.str_), np.array(split) if parts else None, bad)


def _refuse_one_class(root: Path, labels: list[str], bad: Sequence[BadImage]) -> None:
    counts = Counter(labels)
    if len(counts) != 1:
        return
    (name,) = counts
    inner = [child.name for child in _children(root / name)[0]] if (root / name).is_dir() else []
    num, where = len(labels), printable(root)
    what = f"all {num:,} images of {where} are" if num > 1 else f"the only image of {where} is"
    beside = sum(problem.reason == "not in a class folder" for problem in bad)
    hint = ""
    if len(inner) > 1:
        some = ", ".join(map(printable, inner[:3])) + (", ..." if len(inner) > 3 else "")
        hint = f"; it has sub-folders of its own ({some}): if these are the classes, name {printable(root / name)}"
    elif beside:
        hint = f"; {beside:,} {'image lies' if beside == 1 else 'images lie'} beside the folder, in none"
    raise DataError(f"{what} of one class, {printable(name)}: two or more are needed{hint}")


def _parts_of_split(root: Path, folders: list[Path]) -> list[tuple[Path, str]]:
    """Folders that are train, val and test parts with classes inside; empty when the folders are classes themselves."""
    parts = [(folder, SPLIT_NAMES[folder.name.lower()]) for folder in folders if folder.name.lower() in SPLIT_NAMES]
    trained, tested = set[str](), set[str]()
    for folder, part in parts:
        (trained if part == "train" else tested).update(child.name for child in _children(folder)[0])
    if trained & tested:
        return parts
    # No other folder could be a class, so this was meant as a split.
    if len(parts) == len(folders) and len({part == "train" for _, part in parts}) == 2:
        raise DataError(f"the train and test folders in {printable(root)} have no class sub-folder in common")
    return []


def _children(folder: Path) -> tuple[list[Path], list[Path]]:
    """Sub-folders that may be classes (links to folders too), and files, both in order of their bytes."""
    try:
        children = sorted(Path(os.path.abspath(folder)).iterdir(), key=os.fsencode)  # noqa: PTH100  links stay links
    except OSError as error:
        raise DataError(f"folder {printable(folder)} cannot be read: {error.strerror}") from error
    folders = [child for child in children if _may_be_class(child)]
    return folders, [child for child in children if child.is_file() and not child.name.startswith(APPLE_DOUBLE)]


def _may_be_class(child: Path) -> bool:
    return child.is_dir() and not child.name.startswith(".") and not is_ignored_folder(str(child))


def _unlabelled(files: Sequence[Path], reason: str) -> list[BadImage]:
    """Images among the files, each as one that has no label."""
    bad = []
    for file in files:
        try:
            if is_image(str(file)):
                bad.append(BadImage(str(file), reason))
        except BadImage as error:
            bad.append(error)
    return bad


def _read_csv(path: Path) -> LabelledImages:
    name = printable(path)
    folder = os.path.dirname(os.path.abspath(path))  # noqa: PTH100, PTH120  links stay links
    refs: list[ImageRef] = []
    labels: list[str] = []
    split: list[str] = []
    bad: list[BadImage] = []
    groups: list[str] = []
    lines: dict[str, int] = {}
    header, rows = read_csv(path, ("path", "label"))
    for line, fields in rows:
        where = f"{name}, line {line}"
        part = _checked_fields(fields, where)
        image = os.path.abspath(os.path.join(folder, fields["path"]))  # noqa: PTH100, PTH118
        if image in lines:
            raise DataError(f"{where}: {printable(fields['path'])} was given on line {lines[image]} already")
        lines[image] = line
        try:
            is_image(image, named=True)
        except BadImage as error:
            bad.append(error)
            continue
        refs.append(ImageRef(image))
        labels.append(printable(fields["label"].strip()))
        split.append(part)
        groups.append(fields.get("group", "").strip() or image)  # no group: alone
    return LabelledImages(
        refs,
        np.array(labels, dtype=np.str_),
        np.array(split) if "split" in header else None,
        bad,
        np.array(groups, dtype=np.str_) if "group" in header else None,
    )


def _checked_fields(fields: dict[str, str], where: str) -> str:
    """Check a row of the CSV file and give its part of the split ("" without one)."""
    for column in ("path", "label"):
        if not fields[column].strip():
            raise DataError(f"{where}: the {column} is empty")
    if "\0" in fields["path"]:
        raise DataError(f"{where}: the path holds a null byte")
    if "split" not in fields:
        return ""
    part = SPLIT_NAMES.get(fields["split"].strip().lower())
    if part is None:
        raise DataError(f"{where}: unknown split {printable(fields['split'])!r}, expected train, val or test")
    return part
