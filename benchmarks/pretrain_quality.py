r"""The bake-off: our recipes beside other people's methods, same backbone, data, augmentation family and CPU time.

    python benchmarks/pretrain_quality.py                                  # two small runs on the demo's emoji
    python benchmarks/pretrain_quality.py --data cifar10 --data-root CIFAR --minutes 2,4,8 --out runs.jsonl \
        --report docs/bakeoff.md
    python benchmarks/pretrain_quality.py --data cifar10 --data-root CIFAR --minutes 8 --seeds 0,1,2 --out runs.jsonl \
        --methods ours:nano,ours:nano~no-patch,dino~batch_size=64 model.patch_size=4

Methods: ``ours:CONFIG``, ``simclr``, ``mocov3``, ``dino``, ``visreg``, ``mae``, ``ibot``, ``msn`` (losses and heads
from lightly), ``lightly-train`` (the product, in its own interpreter), ``pixels`` and ``untrained`` (floors).
``~key=value`` after a name changes a setting of that method; ``~no-patch``, ``~no-mask``, ``~no-spread``, ``~no-cls``
take a term of ours away. ``key=value`` on its own goes to all: ``model.*`` also to the peers' backbone.

Each peer runs at the smallest budget with each ``--lr-scale`` times its documented learning rate (wider while the best
is at an end), and the best by k-NN is used at the larger budgets. Ours are not tuned here: they are what ships.

CPU time of one thread counts (ours with the whitening at the end), decoding and scoring do not. Scores: k-NN (k = 20,
T = 0.07, cosine) and a linear probe on the cls vector, 10,000 training images against 5,000 test images; k-NN also with
no method whitened and with every method whitened alike. Every run is one line of ``--out``; a run that is there already
is not repeated, so an interrupted sweep goes on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vitembed._torchvision import import_torchvision

import_torchvision()  # before Lightning

from bakeoff.data import labels_of, load_data
from bakeoff.ours import ABLATIONS, train_ours
from bakeoff.report import by_data, markdown_report, svg_curves
from bakeoff.score import encoder_scores, pixel_scores
from vitembed.config import PretrainConfig
from vitembed.errors import ConfigError, VitembedError
from vitembed.model.vit import VisionTransformer
from vitembed.recipes import load_config

PEER_NAMES = ("simclr", "mocov3", "dino", "visreg", "mae", "ibot", "msn")
FLOORS = ("pixels", "untrained")
# The sizes at which the sets' images lie: larger cached squares would only be blown up.
BACKBONE = {
    "cifar10": ["model.img_size=32", "model.patch_size=8", "data.cache_size=32"],
    "fashion": ["model.img_size=32", "model.patch_size=8", "data.cache_size=32"],
    "emoji": ["model.img_size=32", "model.patch_size=8", "data.cache_size=48"],
}
OTHER_BACKBONE = ["model.img_size=64", "model.patch_size=16"]


@dataclass(frozen=True)
class Job:
    """One run."""

    data: str
    method: str
    minutes: float
    seed: int
    lr_scale: float
    settings: tuple[str, ...]
    data_root: str | None
    cache: str
    max_images: int | None
    lightly_train_python: str | None

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two runs the same."""
        return (
            *(Path(self.data).name, self.max_images, self.method, self.minutes, self.seed, self.lr_scale),
            tuple(self.settings),
        )


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return (
        *(record.get(name) for name in ("data", "max_images", "method", "minutes", "seed", "lr_scale")),
        tuple(record["settings"]),
    )


def config_of(job: Job, name: str, changes: Iterable[str]) -> PretrainConfig:
    """A recipe of ours on the backbone that all share."""
    given = ["model.size=nano", "model.stem=conv", *BACKBONE.get(job.data, OTHER_BACKBONE)]
    return load_config(PretrainConfig, name, [*given, *job.settings, *changes, f"seed={job.seed}"])


def run(job: Job) -> dict[str, Any]:
    """Train and score; the line for ``--out``."""
    torch.set_num_threads(1)
    name, *changes = job.method.split("~")
    data_root = Path(job.data_root) if job.data_root else None
    data = load_data(job.data, data_root, Path(job.cache), max_images=job.max_images)
    backbone = config_of(job, "nano", [])
    pixels = data.scoring_pixels(backbone.model.img_size)
    labels = (labels_of(data.bank), labels_of(data.queries))
    record: dict[str, Any] = {**asdict(job), "data": Path(job.data).name, "num_train": len(data.train)}
    for private in ("data_root", "cache", "lightly_train_python"):
        del record[private]
    model = backbone.model
    record["backbone"] = f"{model.size}, {model.img_size} px, {model.patch_size}-px patches, {model.stem} stem"
    started = time.time()
    encoders: dict[str, VisionTransformer] = {}
    facts: dict[str, Any] = {}
    try:
        if name == "untrained":
            torch.manual_seed(job.seed)
            encoders = {"vit": VisionTransformer(backbone.model.vit())}
        elif name.startswith("ours:"):
            config = config_of(job, name.partition(":")[2], [s for c in changes for s in ABLATIONS.get(c, [c])])
            cache = data.cache(config.cache_size)
            encoders, facts = train_ours(config, cache, 60 * job.minutes, lr_scale=job.lr_scale)
        elif name == "lightly-train":
            from bakeoff.lightly_train_product import train_product

            assert job.lightly_train_python is not None
            encoders, facts = train_product(
                data.train,
                backbone.model,
                60 * job.minutes,
                python=job.lightly_train_python,
                seed=job.seed,
                settings=changes,
            )
        elif name != "pixels":
            from bakeoff.recipes import RECIPES, with_settings
            from bakeoff.train import train_peer

            recipe = with_settings(RECIPES[name], changes)
            cache = data.cache(backbone.cache_size)
            encoders, facts = train_peer(
                name, recipe, backbone.model, cache, 60 * job.minutes, seed=job.seed, lr_scale=job.lr_scale
            )
    except FloatingPointError as error:
        return {**record, "knn": 0.0, "failed": str(error)}
    scores = pixel_scores(pixels, labels) if name == "pixels" else encoder_scores(encoders, pixels, labels)
    if facts:
        facts["images_per_second"] = facts["images"] / facts["cpu_seconds"]
    numbers = {**scores, **facts, "wall_seconds": time.time() - started}
    return {**record, **{k: round(v, 3) if isinstance(v, float) else v for k, v in numbers.items()}}


class Sweep:
    """Runs jobs, ``num_jobs`` at once, and keeps each result on disk as it comes."""

    def __init__(self, out: Path, num_jobs: int) -> None:
        self.out = out
        self.num_jobs = num_jobs
        lines = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
        self.records = {key_of(record): record for record in map(json.loads, lines)}

    def results(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """The result of each job, from earlier or made now."""
        todo = {job.key: job for job in jobs if job.key not in self.records}
        for record in self._run(list(todo.values())):
            self.records[key_of(record)] = record
            with self.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(line_of(record), flush=True)
        return [self.records[job.key] for job in jobs]

    def _run(self, jobs: list[Job]) -> Iterator[dict[str, Any]]:
        if self.num_jobs == 1 or len(jobs) < 2:
            yield from map(run, jobs)
            return
        # Fresh processes: each has its own CPU clock.
        with multiprocessing.get_context("spawn").Pool(self.num_jobs, maxtasksperchild=1) as pool:
            yield from pool.imap_unordered(run, jobs)


def line_of(record: dict[str, Any]) -> str:
    """A run in one line, for people who watch."""
    head = f"{record['data']:8s} {record['method']:32s} {record['minutes']:5g} min  seed {record['seed']}"
    if record["lr_scale"] != 1:
        head += f"  lr x{record['lr_scale']:g}"
    if "failed" in record:
        return f"{head}  FAILED: {record['failed']}"
    tail = f"  k-NN {record['knn']:5.1f}  linear {record['linear']:5.1f}  rank {record['rankme']:5.1f}"
    if "images" in record:
        tail += f"  {record['images']:,} images, {record['images_per_second']:.0f}/s, {record['steps']} steps"
    return head + tail + (f"  ({record['encoder']})" if record.get("encoder") in ("student", "teacher") else "")


def is_peer(method: str) -> bool:
    return method.partition("~")[0] in (*PEER_NAMES, "lightly-train")


def tuned_scale(sweep: Sweep, job_of: Any, method: str, minutes: float, seed: int, scales: list[float]) -> float:
    """The multiple of the documented learning rate with the best k-NN; the range grows while the best is at its end."""
    tried = sorted(scales)
    while True:
        records = sweep.results([job_of(method, minutes, seed, scale) for scale in tried])
        best = max(zip(tried, records, strict=True), key=lambda pair: pair[1]["knn"])[0]
        if len(tried) < 2 or len(tried) > len(scales) + 3:
            return best
        step = tried[1] / tried[0]
        if best == tried[0]:
            tried = [best / step, *tried]
        elif best == tried[-1]:
            tried = [*tried, best * step]
        else:
            return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="cifar10, fashion, emoji or a folder of class folders; none: a short look")
    parser.add_argument("--data-root", type=Path, help="where cifar10 or fashion lie")
    parser.add_argument("--max-images", type=int, help="learn from (and vote with) so many images only")
    parser.add_argument("--minutes", default="2,4,8", help="budgets in CPU-minutes")
    parser.add_argument("--methods", default=",".join(["ours:nano", "ours:mae", *PEER_NAMES, *FLOORS]))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--lr-scale", default="0.25,1,4", help="multiples of each peer's learning rate; 1: no tuning")
    parser.add_argument("--out", type=Path, help="JSON lines, one per run")
    parser.add_argument("--report", type=Path, help="Markdown file; the curves go beside it as SVG")
    parser.add_argument("--cache", type=Path, default=Path("build/bakeoff"), help="folder for decoded images")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, a core each")
    parser.add_argument("--lightly-train-python", help="Python of an environment with lightly-train")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if asked.data is None:
            asked.data, asked.minutes, asked.lr_scale = "emoji", "0.1", "1"
            asked.methods, asked.cache = "ours:nano,simclr,pixels,untrained", Path(scratch)
        out = asked.out or Path(scratch, "runs.jsonl")
        sweep = Sweep(out, asked.jobs)
        bake(sweep, asked)
        records = list(sweep.records.values())
        report = markdown_report(records)
        if asked.report is not None:
            asked.report.parent.mkdir(parents=True, exist_ok=True)
            asked.report.write_text(report, encoding="utf-8")
            for (name, count), runs in by_data(records).items():
                figure = asked.report.with_name(f"{asked.report.stem}-{name}-{count}.svg")
                figure.write_text(svg_curves(runs), encoding="utf-8")
        print(report)


def bake(sweep: Sweep, asked: argparse.Namespace) -> None:
    """All runs of the sweep."""
    methods = asked.methods.split(",")
    for method in methods:
        name = method.partition("~")[0]
        if not (is_peer(method) or name in FLOORS or name.startswith("ours:")):
            known = ", ".join(["ours:CONFIG", *PEER_NAMES, "lightly-train", *FLOORS])
            raise ConfigError(f"unknown method {name!r}: expected one of {known}")
        if name == "lightly-train" and not asked.lightly_train_python:
            raise ConfigError(
                "lightly-train runs in an environment of its own: name its Python, --lightly-train-python"
            )
    if any(method.partition("~")[0] in PEER_NAMES for method in methods) and find_spec("lightly") is None:
        raise ConfigError("the peers' losses come from lightly: pip install 'vitembed[bench]' timm, or name --methods")
    seeds = [int(part) for part in asked.seeds.split(",")]
    budgets = sorted(float(part) for part in asked.minutes.split(","))
    scales = [float(part) for part in asked.lr_scale.split(",")]

    def job_of(method: str, minutes: float, seed: int, lr_scale: float = 1.0) -> Job:
        return Job(
            data=asked.data,
            method=method,
            minutes=minutes,
            seed=seed,
            lr_scale=lr_scale,
            settings=tuple(asked.settings),
            data_root=str(asked.data_root) if asked.data_root else None,
            cache=str(asked.cache),
            max_images=asked.max_images,
            lightly_train_python=asked.lightly_train_python,
        )

    sweep.results([job_of(floor, 0.0, 0) for floor in methods if floor in FLOORS])
    best = {}
    for method in filter(is_peer, methods):
        # The product is taken as it comes: it has one recipe for all, and each run of it is long.
        own = [1.0] if method.startswith("lightly-train") else scales
        best[method] = tuned_scale(sweep, job_of, method, budgets[0], seeds[0], own)
        if len(own) > 1:
            print(f"{asked.data} {method}: learning rate x{best[method]:g} of the documented one", flush=True)
    sweep.results(
        [
            job_of(method, minutes, seed, best.get(method, 1.0))
            for minutes in budgets
            for seed in seeds
            for method in methods
            if method not in FLOORS
        ]
    )


if __name__ == "__main__":
    try:
        main()
    except VitembedError as error:
        sys.exit(f"Error: {error}")
