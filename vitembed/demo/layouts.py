"""The shapes in which image data sets lie on people's disks, read into one: images with a split and a class each."""

from __future__ import annotations

import gzip
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitembed.errors import DataError, printable

FASHION_CLASSES = (
    "t-shirt",  # T-shirt/top
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "english-springer",
    "n02979186": "cassette-player",
    "n03000684": "chain-saw",
    "n03028079": "church",
    "n03394916": "french-horn",
    "n03417042": "garbage-truck",
    "n03425413": "gas-pump",
    "n03445777": "golf-ball",
    "n03888257": "parachute",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a labelled set."""

    split: str
    """``train`` or ``test``."""
    label: str
    """Name of the class folder."""
    stem: str
    """File name without suffix, unique within the class folder."""
    write: Callable[[Path], None]
    """Writes the image to this path plus the suffix of its format."""


def read_class_folders(root: Path) -> list[Sample]:
    """Samples of ``root/{train,test or val}/CLASS/FILE``; empty unless both splits are there."""
    train, test = root / "train", root / ("test" if (root / "test").is_dir() else "val")
    if not (train.is_dir() and test.is_dir()):
        return []
    return [
        Sample(split, IMAGENETTE_CLASSES.get(folder.name, folder.name), path.stem, _copier(path))
        for split, splits in (("train", train), ("test", test))
        for folder in sorted(splits.iterdir())
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".")
    ]


def read_idx_folder(root: Path) -> list[Sample]:
    """Samples of Fashion-MNIST's four IDX files, gzipped or not, in ``root``; empty unless all four are there.

    Raises:
        DataError: If a file is damaged.
    """
    pairs: list[tuple[str, Path, Path]] = []
    for prefix, split in (("train", "train"), ("t10k", "test")):
        images = _first_file(root / f"{prefix}-images-idx3-ubyte", root / f"{prefix}-images-idx3-ubyte.gz")
        labels = _first_file(root / f"{prefix}-labels-idx1-ubyte", root / f"{prefix}-labels-idx1-ubyte.gz")
        if images is None or labels is None:
            return []
        pairs.append((split, images, labels))
    samples: list[Sample] = []
    for split, images, labels in pairs:
        pixels, classes = read_idx(images), read_idx(labels)
        if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
            raise DataError(f"{printable(images)} holds {pixels.shape} values and its labels {classes.shape}")
        if classes.size and classes.max() >= len(FASHION_CLASSES):
            raise DataError(f"{printable(labels)} holds label {classes.max()}, Fashion-MNIST ends at 9")
        samples += from_arrays(split, pixels, (FASHION_CLASSES[label] for label in classes))
    return samples


def from_arrays(split: str, pixels: UInt8[np.ndarray, "n h w *c"], labels: Iterable[str]) -> Iterator[Sample]:
    """Samples of images in memory; files are named by row and written as PNG."""
    for row, label in enumerate(labels):
        yield Sample(split, label, f"{row:05d}", _drawer(pixels[row]))


def read_idx(path: Path) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: If it is no such file, or shorter than it says.

    Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{printable(path)} cannot be read: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{printable(path)} is not an IDX file of unsigned bytes")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) - start != count:
        raise DataError(f"{printable(path)} holds {len(data) - start} values, its header says {count}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _copier(source: Path) -> Callable[[Path], None]:
    def copy(path: Path) -> None:
        shutil.copyfile(source, path.with_name(path.name + source.suffix))

    return copy


def _drawer(pixels: np.ndarray) -> Callable[[Path], None]:
    def draw(path: Path) -> None:
        Image.fromarray(pixels).save(path.with_name(path.name + ".png"))

    return draw
