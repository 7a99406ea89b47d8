"""Labels for the monitors, where there are any: they judge the encoder and never teach it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int

from vitembed.config import MonitorConfig
from vitembed.errors import DataError, printable
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.model.whitening import whitened_vectors
from vitembed.pretrain.watch.pool import Encode, Pool
from vitembed.probe.labels import read_labelled
from vitembed.probe.split import SPLIT_NAMES, given_split, stratified_split

_MIN_PER_CLASS = 4
"""Folders with fewer images on average are albums, not classes."""
_MIN_LABELLED = 0.9
"""Share of the images that must lie in a class folder before folders are taken for classes."""
_PENALTY = 0.1
"""The linear probe's ``C``: fixed, so that the points of a run differ in the vectors alone."""


@dataclass(frozen=True, eq=False)
class LabelledPool:
    """Images with labels: a bank to compare with and queries to be named."""

    pool: Pool
    targets: npt.NDArray[np.int64]
    """Class of each image of the pool, [n]."""
    is_query: npt.NDArray[np.bool_]
    """[n]; the others are the bank."""
    classes: tuple[str, ...]
    """Names, sorted."""
    source: str
    """Where the labels come from, in words."""

    @property
    def majority(self) -> float:
        """Share of the queries that the most common class of the bank would get right; 0..1."""
        common = int(np.bincount(self.targets[~self.is_query], minlength=len(self.classes)).argmax())
        return float((self.targets[self.is_query] == common).mean())

    @property
    def num_queries(self) -> int:
        """Images that are named."""
        return int(self.is_query.sum())

    def scores(self, encode: Encode, *, whiten: float = 0.0) -> dict[str, float]:
        """Accuracy of k-NN (k = 20, T = 0.07, cosine) and of a linear probe on the cls vectors; each 0..1.

        Args:
            encode: The encoder, as it is trained.
            whiten: How far its vectors will be whitened when it is exported; here by the bank's.

        Source: Wu et al. 2018, arXiv:1805.01978, section 3.4, with the k of DINOv2's protocol.
        """
        from sklearn.exceptions import ConvergenceWarning

        from vitembed.probe.knn import KNNProbe
        from vitembed.probe.linear import LinearProbe

        vectors = self.pool.vectors(encode)
        is_query = torch.from_numpy(self.is_query)
        vectors = whitened_vectors(vectors, whiten, learned_from=vectors[~is_query])
        bank, queries = vectors[~is_query].numpy(), vectors[is_query].numpy()
        known, asked = self.targets[~self.is_query], self.targets[self.is_query]
        knn = KNNProbe(k=20, temperature=0.07, device="cpu").fit(bank, known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a monitor needs no more digits
            linear = LinearProbe(C=_PENALTY, max_iter=200, device="cpu").fit(bank, known)
        return {"knn": knn.score(queries, asked), "linear": linear.score(queries, asked)}


def find_labels(
    config: MonitorConfig,
    inputs: Sequence[str | os.PathLike[str]],
    cache: ImageCache,
    preprocess: Preprocess,
    decode: Callable[[Sequence[ImageRef]], ImageCache],
) -> tuple[LabelledPool | None, str]:
    """The labels that ``monitor.labels`` asks for, and a line that says which they are.

    Args:
        config: Which labels, and how many images at most.
        inputs: What the user trains on.
        cache: Its decoded images.
        preprocess: How the encoder sees whole images.
        decode: Makes a cache of labelled images that are not among those trained on.

    Raises:
        DataError: If labels are asked for and cannot be used. Class folders that cannot are left alone, with a line.
    """
    if config.labels == "none":
        return None, "no labels are used (monitor.labels=none)"
    if config.labels != "auto":
        return _from_path(config, cache, preprocess, decode)
    found = _folder_labels(inputs, cache.refs)
    if isinstance(found, str):
        return None, f"no labels: {found} (monitor.labels=PATH names some)"
    labels, split = found
    try:
        pool = _draw(config, cache, np.arange(len(cache)), labels, split, preprocess, "class sub-folders")
    except DataError as error:
        return None, f"no labels: the sub-folders cannot be used as classes: {error}"
    names = ", ".join(pool.classes[:3]) + (", ..." if len(pool.classes) > 3 else "")
    return pool, (
        f"the {len(pool.classes)} sub-folders are taken as classes ({names}) to judge by k-NN, never to learn from; "
        "if they are no classes: monitor.labels=none"
    )


def _from_path(
    config: MonitorConfig,
    cache: ImageCache,
    preprocess: Preprocess,
    decode: Callable[[Sequence[ImageRef]], ImageCache],
) -> tuple[LabelledPool, str]:
    given = read_labelled(config.labels)
    row_of = {ref: row for row, ref in enumerate(cache.refs)}
    known = np.array([ref in row_of for ref in given.refs])
    source = printable(config.labels)
    if known.mean() >= 0.5:  # labels of the images trained on, or of some of them
        rows = np.array([row_of[ref] for ref in given.refs if ref in row_of], dtype=np.int64)
        split = None if given.split is None else given.split[known]
        pool = _draw(config, cache, rows, given.labels[known], split, preprocess, source)
        missing = int((~known).sum())
        note = f" ({missing} labelled images are not among those trained on and are left out)" if missing else ""
        return pool, f"{len(rows)} labels from {source}{note}"
    chosen, is_query = _choose(config, given.labels, given.split)
    labelled = decode([given.refs[i] for i in chosen])
    row_of = {ref: row for row, ref in enumerate(labelled.refs)}
    kept = np.array([given.refs[i] in row_of for i in chosen])
    rows = np.array([row_of[given.refs[i]] for i in chosen if given.refs[i] in row_of], dtype=np.int64)
    pool = _pool(labelled, rows, given.labels[chosen][kept], is_query[kept], preprocess, source)
    lost = len(given.bad) + int((~kept).sum())
    note = f" ({lost} that cannot be read are left out)" if lost else ""
    return pool, f"{len(given)} labelled images from {source}{note}"


def _folder_labels(
    inputs: Sequence[str | os.PathLike[str]], refs: Sequence[ImageRef]
) -> tuple[np.ndarray, np.ndarray | None] | str:
    """Label of each image by the sub-folder it lies in ("" outside), and the part of a split; or why there are none."""
    roots = [os.path.join(os.path.abspath(os.fsdecode(item)), "") for item in inputs]  # noqa: PTH100, PTH118  as refs
    if not all(os.path.isdir(root) for root in roots):  # noqa: PTH112
        return "images were named one by one, not as folders"
    below = [ref.path[len(next((r for r in roots if ref.path.startswith(r)), ref.path)) :] for ref in refs]
    parts = [path.split(os.sep)[:-1] for path in below]  # noqa: PTH206  names need not be UTF-8
    tops = {part[0].lower() for part in parts if part}
    split = None
    # train and test folders of class folders (also when only one of them was named as input)
    if tops and tops <= set(SPLIT_NAMES):
        split = np.array([SPLIT_NAMES[part[0].lower()] if part else "" for part in parts])
        parts = [part[1:] for part in parts]
        if len(np.unique(split[split != ""])) < 2:
            split = None
    labels = np.array([printable(part[0]) if part else "" for part in parts])
    num_labelled = int((labels != "").sum())
    classes = np.unique(labels[labels != ""])
    if not len(classes):
        return "the images do not lie in class sub-folders"
    if num_labelled < _MIN_LABELLED * len(refs):
        return f"{len(refs) - num_labelled:,} of {len(refs):,} images lie outside the sub-folders"
    if len(classes) < 2:
        return f"all images lie in one sub-folder ({classes[0]}), and labels need two or more classes"
    if num_labelled < _MIN_PER_CLASS * len(classes):
        return (
            f"{num_labelled:,} images in {len(classes):,} sub-folders are too few of each for classes: expected "
            f"{_MIN_PER_CLASS} or more on average"
        )
    return labels, split


def _draw(
    config: MonitorConfig,
    cache: ImageCache,
    rows: npt.NDArray[np.int64],
    labels: np.ndarray,
    split: np.ndarray | None,
    preprocess: Preprocess,
    source: str,
) -> LabelledPool:
    inside = labels != ""
    rows, labels = rows[inside], labels[inside]
    chosen, is_query = _choose(config, labels, None if split is None else split[inside])
    return _pool(cache, rows[chosen], labels[chosen], is_query, preprocess, source)


def _choose(
    config: MonitorConfig, labels: np.ndarray, split: np.ndarray | None
) -> tuple[Int[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
    """Bank and queries, drawn at random and always the same way: places in ``labels``, and which are queries."""
    rng = np.random.default_rng(0)
    _, targets = np.unique(labels, return_inverse=True)
    if split is not None:
        tested, _ = given_split(split, len(labels))
    else:
        share = config.num_queries / (config.num_queries + config.num_bank)
        tested = stratified_split(targets, test_share=share, rng=rng)
    parts = []
    for places, num in ((np.flatnonzero(~tested), config.num_bank), (np.flatnonzero(tested), config.num_queries)):
        parts.append(np.sort(rng.choice(places, size=min(num, len(places)), replace=False)))
    chosen = np.concatenate(parts)
    return chosen, tested[chosen]


def _pool(
    cache: ImageCache,
    rows: npt.NDArray[np.int64],
    labels: np.ndarray,
    is_query: npt.NDArray[np.bool_],
    preprocess: Preprocess,
    source: str,
) -> LabelledPool:
    classes, targets = np.unique(labels, return_inverse=True)
    if len(np.unique(targets[~is_query])) < 2 or not is_query.any():
        raise DataError(
            f"{source}: {len(rows)} labelled images of {len(classes)} classes are too few to judge by: "
            "expected at least 2 classes with 2 images each (monitor.labels=none does without)"
        )
    names = tuple(str(name) for name in classes)
    return LabelledPool(Pool(cache, rows, preprocess), targets.astype(np.int64), is_query, names, source)
