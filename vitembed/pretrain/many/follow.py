"""What a process does that is not the first: it trains by the first one's plan, and writes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitembed.config import PretrainConfig
from vitembed.errors import DataError
from vitembed.images.cache import ImageCache
from vitembed.images.cache_place import open_cache
from vitembed.images.decode import DecodeOptions
from vitembed.images.source import ImageRef, find_images
from vitembed.pretrain.decoding import decode_options
from vitembed.pretrain.keep.image_list import read_image_list
from vitembed.pretrain.keep.run_folder import data_key
from vitembed.pretrain.many.processes import Process, Share
from vitembed.pretrain.onward.parent import read_parent
from vitembed.recipes import config_from_dict
from vitembed.workspace import Workspace


def train_by_plan(plan: dict[str, Any], process: Process | None = None) -> None:
    """Train beside the first process, by what that decided; nothing is written.

    Args:
        plan: The first process's.
        process: Which one this is; none: as ``LOCAL_RANK`` says, on one machine.

    Raises:
        DataError: If the images are not those that the first process found.
        FailedElsewhere: If the run fails.
    """
    started = time.monotonic()
    config = config_from_dict(PretrainConfig, plan["config"])
    refs = find_images(plan["inputs"]).refs
    if plan.get("recorded"):
        refs = [ImageRef(image.path) for image in read_image_list(Path(plan["run_dir"])) or []]
    if data_key(refs) != plan["data_key"]:
        raise DataError("the images are not the same on every process: all need the same files under the same paths")
    workspace = Workspace(Path(plan["workspace"]))
    parent = None if plan["model"] is None else read_parent(plan["model"], workspace)
    options = decode_options(config.data, None if parent is None else parent.preprocess)
    cache = _shared_cache(plan["cache"], refs, config, workspace, options)
    run_dir = Path(plan["run_dir"])
    rank, launcher = (int(os.environ["LOCAL_RANK"]), "") if process is None else (process.rank, process.launcher)

    from vitembed.pretrain.fit import fit

    fit(
        config,
        cache,
        run_dir,
        checkpoint=None if plan["checkpoint"] is None else run_dir / plan["checkpoint"],
        started=started,
        show=False,
        parent=parent,
        share=Share(rank, plan["devices"], plan["num_nodes"], launcher, plan=plan),
    )


def _shared_cache(
    place: str, refs: Sequence[ImageRef], config: PretrainConfig, workspace: Workspace, options: DecodeOptions
) -> ImageCache:
    """The cache that the first process has built."""
    return open_cache(
        place,
        refs,
        workspace.cache_dir,
        size=config.cache_size,
        options=options,
        num_workers=config.data.num_workers,
        progress=None,
    )
