"""How fast pretraining is, beside what it could be and beside its peers: a table per claim, in less than five minutes.

    python benchmarks/pretrain_speed.py [--only pipeline augmentation cache masked memory utilisation compile]

Every ratio is the median of pairs run in turn. Photos are cut from scikit-learn's two sample photos.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from vitembed._torchvision import import_torchvision

import_torchvision()  # before Lightning, lightly and the worker processes

import torch

from speed.augmentation import augmentation
from speed.caching import cache_against_decode, workers_against_one
from speed.model import (
    channels_last_against_first,
    compiled_against_eager,
    masked_against_whole,
    peak_memory,
    utilisation,
)
from speed.photos import write_photos
from speed.pipeline import STEPS, pretrain_against_bare

AT_32 = ["model.img_size=32", "model.patch_size=8"]
AT_96 = ["model.img_size=96", "model.patch_size=8", "model.stem=patch"]


def pipeline(scratch: Path) -> None:
    print("\nvitembed pretrain (Lightning, callbacks, cache) against the bare step on tensors in memory")
    print("photos       model                       cache  images/s  bare images/s  ratio  in processor time")
    folders = {
        "640 x 480": write_photos(scratch / "small", 400, (640, 480)),
        "2000 x 1500": write_photos(scratch / "large", 120, (2000, 1500)),
    }
    cases = [
        ("640 x 480", "disk", "nano, 64 px, conv stem", ["optim.batch_size=32"]),
        ("640 x 480", "ram", "nano, 32 px, conv stem", ["optim.batch_size=32", *AT_32]),
        ("2000 x 1500", "disk", "nano, 64 px, conv stem", ["optim.batch_size=32"]),
    ]
    for number, (photos, cache, model, settings) in enumerate(cases):
        work = scratch / f"work{number}"
        pair, cpu, batch = pretrain_against_bare(folders[photos], work, [*settings, f"data.cache={cache}"])
        ours, bare = STEPS * batch / pair.first, STEPS * batch / pair.second
        print(
            f"{photos:12} {model:27} {cache:5} {ours:9.0f} {bare:14.0f} {pair.ratio:6.2f} {cpu.ratio:18.2f}", flush=True
        )


def augment(scratch: Path) -> None:
    print(
        "\naugmentation in batches, all threads, against one image at a time in 2 worker processes, of decoded images;"
    )
    print("per CPU second: one thread against the peer's transform alone, without worker processes")
    print("px   peer                                ours img/s  peer img/s  ratio  per CPU second: ours  peer  ratio")
    for side, num_images in ((32, 512), (96, 256), (224, 64)):
        for peer, (wall, alone) in augmentation(side, num_images).items():
            ours, theirs = (num_images / seconds for seconds in wall[:2])
            cpu, their_cpu = (min(64, num_images) / seconds for seconds in alone[:2])
            print(f"{side:<4} {peer:35} {ours:10.0f} {theirs:11.0f} {wall.ratio:6.1f}", end="")
            print(f" {cpu:21.0f} {their_cpu:5.0f} {alone.ratio:6.1f}", flush=True)


def cache(scratch: Path) -> None:
    print(
        "\nbuilding the cache against decoding alone (scaled JPEG decode, as many threads), all processes against one"
    )
    print("photos             images/s  decode alone images/s  ratio  in processor time  all processes against one")
    for name, count, size in (("640 x 480", 1500, (640, 480)), ("4000 x 3000", 60, (4000, 3000))):
        folder = write_photos(scratch / f"photos{size[0]}", count, size)
        pair, cpu = cache_against_decode(folder, scratch / f"caches{size[0]}", 96)
        cores = workers_against_one(folder, 96)
        built, decoded = (count / seconds for seconds in pair[:2])
        print(
            f"{name:18} {built:8.0f} {decoded:22.0f} {pair.ratio:6.2f} {cpu.ratio:18.2f} {cores.ratio:24.2f}",
            flush=True,
        )


def masked(scratch: Path) -> None:
    print("\na step that hides patches against one that sees all (cls terms alone), in processor time and in FLOPs")
    print("model                       hidden  times faster  times fewer FLOPs")
    for model, settings, batch in (
        ("nano, 64 px, conv stem", [], 32),
        ("nano, 64 px, patch stem", ["model.stem=patch"], 32),
        ("tiny, 96 px, patch stem", ["model.size=tiny", *AT_96], 8),
    ):
        for ratio in (0.5, 0.75):
            pair, fewer = masked_against_whole(settings, ratio, batch)
            print(f"{model:27} {ratio:6.0%} {pair.ratio:13.2f} {fewer:18.2f}", flush=True)


def stem(scratch: Path) -> None:
    print("\na step with the convolutional stem in channels-last against channels-first, in processor time")
    print("model                       batch  times faster")
    for model, settings in (("nano, 32 px, 8-px patches", AT_32), ("nano, 64 px, 16-px patches", [])):
        pair = channels_last_against_first(settings, 256)
        print(f"{model:27} {256:5} {pair.ratio:13.2f}", flush=True)


def memory(scratch: Path) -> None:
    print("\npeak memory of two steps in a process of its own, and the estimate (step_memory)")
    print("recipe, images per step      measured MB  estimated MB")
    for recipe, batch in (("nano", 64), ("nano", 256), ("small", 4)):
        measured, estimated = peak_memory(recipe, batch, [], path=str(Path(__file__).parent))
        print(f"{recipe}, {batch:<21} {measured / 1e6:12.0f} {estimated / 1e6:13.0f}", flush=True)


def flops_used(scratch: Path) -> None:
    print("\nmodel FLOPs of a step over the rate of a 1024-wide fp32 matrix multiplication")
    print("model                        batch  share  matmul GFLOP per CPU second")
    for model, settings, batch in (
        ("nano, 64 px, conv stem", [], 64),
        ("small, 96 px, patch stem", ["model.size=small", *AT_96], 8),
    ):
        share, rate = utilisation(settings, batch)
        print(f"{model:27} {batch:6} {share:6.0%} {rate / 1e9:28.0f}", flush=True)


def compiling(scratch: Path) -> None:
    print("\ntorch.compile of a block (forward and backward) against eager")
    print("block                        compile s  times faster")
    pair, took = compiled_against_eager(64, 8, 64)
    print(f"{'nano, 64 px, conv stem':27} {took:10.0f} {pair.ratio:13.2f}", flush=True)


PARTS = {
    "pipeline": pipeline,
    "augmentation": augment,
    "cache": cache,
    "masked": masked,
    "stem": stem,
    "memory": memory,
    "utilisation": flops_used,
    "compile": compiling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    asked = parser.parse_args().only
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in asked:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            PARTS[name](Path(scratch))
        print(f"({name}: {time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
