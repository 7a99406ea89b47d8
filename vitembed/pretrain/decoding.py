"""The images of a run, decoded once, with words on where they are kept and how far it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vitembed.config import DataConfig
from vitembed.errors import DataError, printable
from vitembed.images.cache import ImageCache
from vitembed.images.cache_place import choose_place, open_cache
from vitembed.images.decode import DecodeOptions
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.pretrain.watch.status import DecodeBar
from vitembed.workspace import Workspace

log = logging.getLogger("vitembed")

_CHUNK = 64
_SAME_LEVELS = 0.5
"""Pictures that differ by less than this (mean, of 255) are the same one."""


def decode_options(config: DataConfig, preprocess: Preprocess | None) -> DecodeOptions:
    """How a run decodes: as its model will, when it embeds.

    Args:
        config: The run's.
        preprocess: Of the trained model that it starts from, if it does.
    """
    options = (preprocess or Preprocess(depth=config.depth)).decode_options
    return replace(options, tolerant=config.tolerant)


def decode_once(
    refs: Sequence[ImageRef],
    config: DataConfig,
    workspace: Workspace,
    progress: bool,
    *,
    size: int,
    alone: bool,
    preprocess: Preprocess | None = None,
) -> tuple[ImageCache, str]:
    """Decode every image once; and where they are kept: ``ram``, ``disk`` (other processes find them) or ``off``.

    Args:
        refs: The images.
        config: Where to keep them, and who decodes.
        workspace: Whose cache it is on disk.
        progress: Whether to show progress on stderr.
        size: Side of the kept squares in pixels.
        alone: Whether one process uses them.
        preprocess: Of the trained model that the run starts from, which decodes as that does.
    """
    place, words = choose_place(len(refs), size, workspace.cache_dir, asked=config.cache, alone=alone)
    log.info("decoding %d images once, to %d px: %s", len(refs), size, words)
    with DecodeBar(len(refs), show=progress) as bar:
        cache = open_cache(
            place,
            refs,
            workspace.cache_dir,
            size=size,
            options=decode_options(config, preprocess),
            num_workers=config.num_workers,
            progress=bar.update,
        )
    return cache, place


def refuse_one_picture(cache: ImageCache) -> None:
    """Refuse images that are all the same picture: nothing can be told apart, so nothing would be learned.

    Raises:
        DataError: If they are.
    """
    first = cache.images[np.arange(1)].astype(np.int16)
    for start in range(0, len(cache), _CHUNK):
        rows = cache.images[np.arange(start, min(start + _CHUNK, len(cache)))]
        if (np.abs(rows.astype(np.int16) - first).mean(axis=(1, 2, 3)) >= _SAME_LEVELS).any():
            return
    raise DataError(
        f"all {len(cache):,} images are the same picture, such as {printable(cache.refs[0].path)} and "
        f"{printable(cache.refs[-1].path)}: an encoder learns from how images differ, so nothing would be learned"
    )
