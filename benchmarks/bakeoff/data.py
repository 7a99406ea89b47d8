"""The data sets of the bake-off: decoded once, kept on disk, the same split for every method."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitembed.demo.datasets import cifar10, fashion_mnist
from vitembed.demo.emoji import emoji
from vitembed.demo.scoreboard import pixels_of
from vitembed.errors import DataError
from vitembed.images.cache import ImageCache
from vitembed.images.source import ImageRef, find_images

NUM_BANK, NUM_QUERIES = 10_000, 5_000
_PROVIDED = {"cifar10": cifar10, "fashion": fashion_mnist}


@dataclass(frozen=True)
class BakeoffData:
    """One data set, ready to train on and to score with."""

    name: str
    train: list[Path]
    """What encoders learn from, without labels."""
    bank: list[Path]
    """Labelled images that vote: at most 10,000 of ``train``, drawn with a fixed seed."""
    queries: list[Path]
    """At most 5,000 of the test images, drawn with the same seed."""
    cache_dir: Path

    def cache(self, size: int) -> ImageCache:
        """The training images as squares of ``size`` pixels, on disk after the first call."""
        refs = [ImageRef(str(path)) for path in self.train]
        return ImageCache.build(refs, self.cache_dir / "images", size=size)

    def scoring_pixels(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Bank and queries as the encoders see them: uint8 [n, side, side, 3] each, on disk after the first call."""
        key = "\n".join(map(str, [side, *self.bank, *self.queries]))
        path = self.cache_dir / f"scoring-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished.npz")
            np.savez(unfinished, bank=pixels_of(self.bank, side), queries=pixels_of(self.queries, side))
            unfinished.replace(path)
        with np.load(path) as arrays:
            return arrays["bank"], arrays["queries"]


def labels_of(paths: list[Path]) -> np.ndarray:
    """The class of each image: the name of its folder."""
    return np.array([path.parent.name for path in paths])


def load_data(name: str, data_root: Path | None, cache_dir: Path, *, max_images: int | None = None) -> BakeoffData:
    """Find a data set: ``emoji`` (ships), ``cifar10``, ``fashion``, or a folder of class folders.

    Args:
        name: One of the names, or a folder: with ``train`` and ``test`` (or ``val``) in it, or with the class folders
            themselves, of which a fifth is then kept for the queries.
        data_root: Where ``cifar10`` or ``fashion`` lie; without it torchvision downloads them.
        cache_dir: Holds decoded images.
        max_images: Learn from (and vote with) so many of the training images only, drawn with a fixed seed.

    Raises:
        DataError: If there is no such set.
    """
    if name == "emoji":  # two artists drew the same things: one votes, the other asks
        drawn = emoji(cache_dir / "emoji")
        return _drawn(name, drawn.google + drawn.twitter, drawn.google, drawn.twitter, cache_dir, max_images)
    root = Path(name)
    if name in _PROVIDED:
        root = data_root if data_root is not None and (data_root / "train").is_dir() else cache_dir / name / "files"
        if root != data_root:
            _PROVIDED[name](root, data_root)
    elif not root.is_dir():
        raise DataError(f"no data set {name!r}: expected emoji, cifar10, fashion or a folder of class folders")
    test_root = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if (root / "train").is_dir() and test_root is not None:
        train, test = _files(root / "train"), _files(test_root)
        return _drawn(root.name if name not in _PROVIDED else name, train, train, test, cache_dir, max_images)
    files = _files(root)
    order = np.random.default_rng(0).permutation(len(files))
    test = [files[i] for i in sorted(order[: len(files) // 5])]
    train = [files[i] for i in sorted(order[len(files) // 5 :])]
    return _drawn(root.name, train, train, test, cache_dir, max_images)


def _files(root: Path) -> list[Path]:
    return [Path(ref.path) for ref in find_images([root]).refs]


def _drawn(
    name: str, train: list[Path], bank: list[Path], test: list[Path], cache_dir: Path, max_images: int | None
) -> BakeoffData:
    rng = np.random.default_rng(0)
    votes = [bank[i] for i in rng.permutation(len(bank))]
    queries = [test[i] for i in rng.permutation(len(test))[:NUM_QUERIES]]
    if max_images is not None:  # after the draws: the queries are the same however few images there are to learn from
        kept = np.random.default_rng(1).permutation(len(train))[:max_images]
        train = [train[i] for i in sorted(kept)]
        learned_from = set(train)
        votes = [path for path in votes if path in learned_from]
    return BakeoffData(name, train, votes[:NUM_BANK], queries, cache_dir / name)
