"""Runs lightly-train in an interpreter of its own: ``python lightly_train_worker.py JOB.json``.

lightly-train (AGPL) is used as a program beside ours: nothing here is imported by the bake-off, and only the exported
state dict comes back.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

MOMENTS: list[float] = []
"""CPU time of this process at each pass through a backbone."""


def note_moment(module: object, given: object) -> None:
    """A hook; at the top of the module, as lightly-train pickles the model with its hooks."""
    MOMENTS.append(time.process_time())


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(1)
    # torchvision's wheels do not load beside a CPU-only torch without this file of ours, which needs nothing else.
    spec = importlib.util.spec_from_file_location("torchvision_beside_cpu_torch", job["import_torchvision"])
    helper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helper)
    helper.import_torchvision()
    import lightly_train
    import timm

    def train(out: str, max_steps: int) -> float:
        """CPU-seconds per step; starting up and exporting lie outside of it."""
        torch.manual_seed(job["seed"])
        model = timm.create_model("vit_tiny_patch16_224", **job["model"], num_classes=0, dynamic_img_size=True)
        model.patch_embed.register_forward_pre_hook(note_moment)
        MOMENTS.clear()
        lightly_train.pretrain(
            out=out,
            data=job["files"],
            model=model,
            method="dino",
            epochs=max(1, -(-max_steps * job["batch_size"] // len(job["files"]))),
            batch_size=job["batch_size"],
            num_workers=0,
            devices=1,
            accelerator="cpu",
            precision="32-true",
            seed=job["seed"],
            transform_args=job["transform_args"],
            trainer_args={"max_steps": max_steps},
            **job["arguments"],
        )
        starts = MOMENTS[:: len(MOMENTS) // max_steps]
        return (starts[-1] - starts[1]) / (len(starts) - 2)  # the first step also sets things up

    trial = job["calibration_steps"]
    seconds_per_step = train(f"{job['out']}/calibration", trial)
    steps = max(3, int(job["cpu_seconds"] / seconds_per_step))
    measured = train(f"{job['out']}/run", steps)
    facts = {"steps": steps, "images": steps * job["batch_size"], "cpu_seconds": steps * measured}
    Path(job["out"], "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main()
