"""The product lightly-train, its ``dino`` method, on the same files, backbone and CPU time."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import vitembed
from vitembed.config import ModelConfig
from vitembed.errors import ConfigError
from vitembed.model.vit import VisionTransformer

BATCH_SIZE = 128  # its default


def train_product(
    files: Sequence[Path], model: ModelConfig, seconds: float, *, python: str, seed: int, settings: Sequence[str] = ()
) -> tuple[dict[str, VisionTransformer], dict[str, Any]]:
    """Train for ``seconds`` of CPU time; the exported encoder, and facts about the run.

    A few steps tell what a step costs, a second run then has as many as fit into the budget, so that its schedules end
    with it. Starting up, listing the files and exporting are not counted. Views have the size of ours (small ones in
    its own proportion, 96 of 224, in whole patches); all else is its default. ``settings``: ``batch_size=N`` or
    ``small=0`` (no small views).

    Raises:
        ConfigError: If the interpreter does not run lightly-train.
    """
    # timm's plain ViT of these sizes, which is what its users have: no stem, learned positions.
    vit = replace(model.vit(), stem="patch", pos_embed="learned", num_registers=0, init_values=None)
    given = dict(setting.split("=", 1) for setting in settings)
    small = max(1, round(model.img_size * 96 / 224 / model.patch_size)) * model.patch_size
    local = {"view_size": [small, small]} if given.get("small") != "0" else None
    with tempfile.TemporaryDirectory(prefix="lightly-train-") as scratch:
        job = {
            "import_torchvision": str(Path(vitembed.__file__).with_name("_torchvision.py")),
            "files": [str(path) for path in files],
            "out": scratch,
            "seed": seed,
            "batch_size": int(given.get("batch_size", BATCH_SIZE)),
            "calibration_steps": 6,
            "cpu_seconds": seconds,
            "arguments": {},
            "transform_args": {"image_size": [model.img_size, model.img_size], "local_view": local},
            "model": {
                "img_size": vit.img_size,
                "patch_size": vit.patch_size,
                "embed_dim": vit.embed_dim,
                "depth": vit.depth,
                "num_heads": vit.num_heads,
            },
        }
        (Path(scratch) / "job.json").write_text(json.dumps(job), encoding="utf-8")
        worker = Path(__file__).with_name("lightly_train_worker.py")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
            "LIGHTLY_TRAIN_CACHE_DIR": f"{scratch}/cache",
        }
        done = subprocess.run(
            [python, str(worker), f"{scratch}/job.json"], env=environment, cwd=scratch, capture_output=True, text=True
        )
        if done.returncode:
            raise ConfigError(f"lightly-train failed in {python}: {done.stderr.strip()[-2000:]}")
        facts = json.loads((Path(scratch) / "facts.json").read_text(encoding="utf-8"))
        exported = Path(scratch) / "run" / "exported_models" / "exported_last.pt"
        weights = torch.load(exported, map_location="cpu", weights_only=True)
    encoder = VisionTransformer(vit)
    encoder.load_state_dict(weights)
    return {"teacher": encoder}, facts
