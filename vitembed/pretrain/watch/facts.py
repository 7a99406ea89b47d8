"""What a run is about, for those who report on it: not needed to train."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitembed import __version__
from vitembed.config import PretrainConfig, to_dict
from vitembed.errors import BadImage
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.pretrain.watch.labelled import LabelledPool, find_labels

log = logging.getLogger("vitembed")


@dataclass(frozen=True, eq=False, kw_only=True)
class RunFacts:
    """Facts about a run that its settings do not tell."""

    name: str = "model"
    """Of the run."""
    inputs: Sequence[str] = ()
    """What the user named as images."""
    bad: Sequence[BadImage] = ()
    """Files that were left out, with reasons."""
    labelled: LabelledPool | None = None
    """Images to judge by."""
    labels_note: str = "no labels"
    """Where the labels come from, or why there are none."""
    model_dir: Path | None = None
    """Where the model will be."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """What is said of the run in every model folder that comes from it."""


def gather_facts(
    config: PretrainConfig,
    cache: ImageCache,
    *,
    name: str,
    inputs: Sequence[str],
    bad: Sequence[BadImage],
    model_dir: Path,
    preprocess: Preprocess,
    decode: Callable[[Sequence[ImageRef]], ImageCache],
) -> RunFacts:
    """Everything that the report says of a run, labels found and told in the log.

    Args:
        config: The run.
        cache: The images trained on.
        name: Of the run.
        inputs: What the user named as images.
        bad: Files that were left out.
        model_dir: Where the model will be.
        preprocess: How the exported encoder sees images.
        decode: Makes a cache of labelled images that are not among those trained on.

    Raises:
        DataError: If labels are asked for and cannot be used.
    """
    labelled, note = find_labels(config.monitor, inputs, cache, preprocess, decode)
    log.info("monitors: %s", note)
    return RunFacts(
        name=name,
        inputs=inputs,
        bad=bad,
        labelled=labelled,
        labels_note=note,
        model_dir=model_dir,
        provenance={
            "made_by": f"vitembed {__version__} pretrain",
            "num_images": len(cache),
            "config": to_dict(config),
        },
    )
