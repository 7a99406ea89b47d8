"""The data sets that ``vitembed demo --dataset`` offers: the emoji that ship with the project, and larger ones.

The larger ones are downloaded by torchvision, with its checksums, on the machine of the person who asks for them, or
are found in a folder that person names. Either way the result is ``{train,test}/CLASS/IMAGE``, plain image files that
every command takes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitembed.demo.emoji import EmojiData, emoji
from vitembed.demo.layouts import Sample, from_arrays, read_class_folders, read_idx_folder
from vitembed.demo.publish import check_free, publish
from vitembed.errors import DataError, printable

__all__ = ["EmojiData", "cifar10", "emoji", "fashion_mnist", "imagenette", "stratified_choice"]

Progress = Callable[[int, int], None]
"""Called with the images written so far and the images to write."""

_RECORD = "dataset.json"  # what a finished folder holds, so that a second call knows it


def fashion_mnist(
    directory: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    *,
    max_images: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Fashion-MNIST (70,000 grey 28-px pictures of clothes, 10 classes, MIT) as ``directory/{train,test}/CLASS/*.png``.

    Args:
        directory: Where the images go; appears whole or not at all. What an equal earlier call put there is used.
        data_root: A folder that holds the set: its four IDX files (``.gz`` or not), torchvision's
            ``FashionMNIST/raw``, or ``{train,test}/CLASS`` folders; also under ``data_root/fashion-mnist``. Without
            it, torchvision downloads 30 MB.
        max_images: Keep only so many, both splits together; splits and classes keep their shares.
        seed: Decides which ones are kept.
        progress: Called now and then while images are written.

    Returns:
        ``directory``.

    Raises:
        DataError: If the download fails, ``data_root`` does not hold the set, or ``directory`` holds anything else.
    """
    return _provide(_FASHION_MNIST, directory, data_root, max_images, seed, progress)


def cifar10(
    directory: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    *,
    max_images: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """CIFAR-10 (60,000 coloured 32-px photographs, 10 classes) as ``directory/{train,test}/CLASS/*.png``.

    Arguments, result and errors are those of ``fashion_mnist``. ``data_root`` may hold torchvision's
    ``cifar-10-batches-py``, the ``cifar-10-python.tar.gz`` it stems from, or ``{train,test}/CLASS`` folders; also under
    ``data_root/cifar10``. The download is 170 MB.
    """
    return _provide(_CIFAR10, directory, data_root, max_images, seed, progress)


def imagenette(
    directory: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    *,
    max_images: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Imagenette (13,394 photographs, shorter side 160 px, 10 classes) as ``directory/{train,test}/CLASS/*.JPEG``.

    Arguments, result and errors are those of ``fashion_mnist``. ``data_root`` may hold ``imagenette2-160`` (or another
    size), ``imagenette2-160.tgz``, or ``{train,val}/CLASS`` folders; also under ``data_root/imagenette``.
    The download is 99 MB. Its ``val`` becomes ``test``.
    """
    return _provide(_IMAGENETTE, directory, data_root, max_images, seed, progress)


def stratified_choice(groups: Sequence[Hashable], num: int, generator: np.random.Generator) -> list[int]:
    """Rows of a random subset in which each group keeps its share, to within one row.

    Args:
        groups: The group of each row.
        num: Size of the subset; all rows when there are not more.
        generator: Draws the rows.

    Returns:
        Sorted row numbers. Shares are rounded by largest remainder, ties in order of first appearance.
    """
    if num >= len(groups):
        return list(range(len(groups)))
    members: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    # Whole numbers throughout: num * size // total and the remainder, so that no rounding decides.
    quotas = {group: divmod(num * len(rows), len(groups)) for group, rows in members.items()}
    counts = {group: whole for group, (whole, _) in quotas.items()}
    left = num - sum(counts.values())
    for group in sorted(quotas, key=lambda group: -quotas[group][1])[:left]:
        counts[group] += 1
    chosen = [generator.choice(rows, size=counts[group], replace=False) for group, rows in members.items()]
    return sorted(int(row) for rows in chosen for row in rows)


@dataclass(frozen=True, kw_only=True)
class _DataSet:
    name: str
    read: Callable[[Path], list[Sample]]
    """Samples of the set as it lies in a folder; empty when it does not lie there."""
    download: Callable[[Path], None]
    """Puts the set into a folder as ``read`` takes it."""
    archive: str | None = None
    """The one file that is downloaded, where there is one: people who fetched it by hand have it in their folder."""
    accepts: str
    """For the person who has to bring the set: what may lie in the folder."""


def _provide(
    data_set: _DataSet,
    directory: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None,
    max_images: int | None,
    seed: int,
    progress: Progress | None,
) -> Path:
    if max_images is not None and max_images < 1:
        raise DataError(f"max_images must be at least 1, got {max_images}")
    target = Path(directory)
    record = {"dataset": data_set.name, "max_images": max_images, "seed": seed if max_images is not None else None}
    if (target / _RECORD).is_file():
        found = _read_record(target / _RECORD)
        if found != record:
            raise DataError(f"{printable(target)} holds {found}, not {record}: remove it or choose another folder")
        return target
    check_free(target)  # now, not after a download
    if data_root is None:
        with _scratch(target) as scratch:
            _download(data_set, scratch)
            _write(data_set.read(scratch), target, record, max_images, seed, progress)
        return target
    root = Path(data_root)
    roots = (root, root / data_set.name)
    samples = next(filter(None, map(data_set.read, roots)), [])
    if samples:
        _write(samples, target, record, max_images, seed, progress)
        return target
    archives = [folder / data_set.archive for folder in roots] if data_set.archive else []
    archive = next((path for path in archives if path.is_file()), None)
    if archive is None:
        raise DataError(f"found no {data_set.name} in {printable(root)}: expected there {data_set.accepts}")
    with _scratch(target) as scratch:
        shutil.copyfile(archive, scratch / archive.name)
        _download(data_set, scratch)  # unpacks what is there already, when its checksum is right
        _write(data_set.read(scratch), target, record, max_images, seed, progress)
    return target


def _write(
    samples: list[Sample],
    target: Path,
    record: dict[str, str | int | None],
    max_images: int | None,
    seed: int,
    progress: Progress | None,
) -> None:
    if max_images is not None:
        groups = [(sample.split, sample.label) for sample in samples]
        samples = [samples[row] for row in stratified_choice(groups, max_images, np.random.default_rng(seed))]
    with publish(target) as staging:
        for folder in {(sample.split, sample.label) for sample in samples}:
            staging.joinpath(*folder).mkdir(parents=True)
        for num_written, sample in enumerate(samples, start=1):
            sample.write(staging / sample.split / sample.label / sample.stem)
            if progress is not None and (num_written % 100 == 0 or num_written == len(samples)):
                progress(num_written, len(samples))
        (staging / _RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")


def _read_record(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "something unreadable"


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Give a folder beside the target, as the system's temporary folder may be small, and remove it afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.", suffix=".download", dir=target.parent, ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)


def _download(data_set: _DataSet, directory: Path) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout belongs to results
            data_set.download(directory)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # all that torchvision raises here
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise DataError(
            f"could not download {data_set.name} ({reason}): "
            f"connect to the network, or pass --data-root with {data_set.accepts}"
        ) from error


def _read_fashion_mnist(root: Path) -> list[Sample]:
    return read_idx_folder(root) or read_idx_folder(root / "FashionMNIST" / "raw") or read_class_folders(root)


def _download_fashion_mnist(root: Path) -> None:
    from vitembed._torchvision import import_torchvision

    import_torchvision().datasets.FashionMNIST(root, download=True)


def _read_cifar10(root: Path) -> list[Sample]:
    if not (root / "cifar-10-batches-py").is_dir():
        return read_class_folders(root)
    from vitembed._torchvision import import_torchvision

    datasets = import_torchvision().datasets
    samples: list[Sample] = []
    for split in ("train", "test"):
        try:
            # The batches are pickles: torchvision unpickles only those whose checksum is the published one.
            batches = datasets.CIFAR10(root, train=split == "train", download=False)
        except RuntimeError as error:
            raise DataError(f"{printable(root / 'cifar-10-batches-py')} is damaged: {error}") from error
        samples += from_arrays(split, batches.data, (batches.classes[label] for label in batches.targets))
    return samples


def _download_cifar10(root: Path) -> None:
    from vitembed._torchvision import import_torchvision

    import_torchvision().datasets.CIFAR10(root, download=True)


def _read_imagenette(root: Path) -> list[Sample]:
    for name in ("imagenette2-160", "imagenette2-320", "imagenette2"):
        if samples := read_class_folders(root / name):
            return samples
    return read_class_folders(root)


def _download_imagenette(root: Path) -> None:
    from vitembed._torchvision import import_torchvision

    import_torchvision().datasets.Imagenette(root, size="160px", download=True)


_FASHION_MNIST = _DataSet(
    name="fashion-mnist",
    read=_read_fashion_mnist,
    download=_download_fashion_mnist,
    accepts="its four *-ubyte or *-ubyte.gz files, torchvision's FashionMNIST/raw, or {train,test}/CLASS folders",
)
_CIFAR10 = _DataSet(
    name="cifar10",
    read=_read_cifar10,
    download=_download_cifar10,
    archive="cifar-10-python.tar.gz",
    accepts="cifar-10-batches-py, cifar-10-python.tar.gz, or {train,test}/CLASS folders",
)
_IMAGENETTE = _DataSet(
    name="imagenette",
    read=_read_imagenette,
    download=_download_imagenette,
    archive="imagenette2-160.tgz",
    accepts="imagenette2-160, imagenette2-160.tgz, or {train,val}/CLASS folders",
)
