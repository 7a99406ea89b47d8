r"""What whitening in part adds to a cls vector: k-NN by share, and by how many images the map is learned from.

    python benchmarks/whitening.py                                    # a short look, on the demo's emoji
    python benchmarks/whitening.py --data cifar10 --data-root CIFAR --minutes 2
    python benchmarks/whitening.py --data cifar10 --data-root CIFAR --minutes 2 --method simclr --lr-scale 16
    python benchmarks/whitening.py --data cifar10 --data-root CIFAR --minutes 4 --max-images 2500

Trains once, without whitening, for so many CPU-minutes of one thread, and scores the same vectors with each share. For
the emoji also by their truth: an edited copy finds its original, one artist's drawing the other's.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from vitembed._torchvision import import_torchvision

import_torchvision()  # before Lightning

from bakeoff.data import BakeoffData, labels_of, load_data
from bakeoff.ours import train_ours
from bakeoff.score import knn_score, vectors_of
from pretrain_quality import Job, config_of
from vitembed.demo.edits import write_edited_copies
from vitembed.demo.emoji import emoji
from vitembed.demo.scoreboard import pixels_of
from vitembed.demo.truth import retrieval
from vitembed.errors import VitembedError
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import whitened_vectors

SHARES = (None, 0.0, 0.25, 0.5, 0.75, 1.0)
"""None: as trained; 0: centred."""
COUNTS = (64, 200, 1000, 4096)


def mapped(vectors: np.ndarray, bank: np.ndarray, share: float | None) -> np.ndarray:
    """Vectors by the map that the bank's teach."""
    if share is None:
        return vectors
    if share == 0.0:
        return vectors - bank.mean(axis=0)
    return whitened_vectors(torch.from_numpy(vectors), share, learned_from=torch.from_numpy(bank)).numpy()


def train(asked: argparse.Namespace, job: Job, cache_dir: Path) -> tuple[VisionTransformer, BakeoffData]:
    data = load_data(job.data, asked.data_root, cache_dir, max_images=asked.max_images)
    if asked.method.startswith("ours:"):
        name = asked.method.partition(":")[2]
        config = config_of(job, name, ["model.whiten=0"])
        encoders, _ = train_ours(config, data.cache(config.cache_size), 60 * asked.minutes)
    else:
        from bakeoff.recipes import RECIPES
        from bakeoff.train import train_peer

        config = config_of(job, "nano", [])
        encoders, _ = train_peer(
            asked.method,
            RECIPES[asked.method],
            config.model,
            data.cache(config.cache_size),
            60 * asked.minutes,
            seed=0,
            lr_scale=asked.lr_scale,
        )
    return next(iter(encoders.values())), data


def emoji_truth(vit: VisionTransformer) -> dict[str, list[float]]:
    """R@1 by share: edited copies, and the other artist's drawings."""
    with tempfile.TemporaryDirectory() as scratch:
        data = emoji(Path(scratch, "emoji"))
        edited = write_edited_copies(data.google, Path(scratch, "edited"), np.random.default_rng(0))
        google, twitter, copies = (
            vectors_of(vit, pixels_of(list(paths), vit.config.img_size))["cls"]
            for paths in (data.google, data.twitter, edited)
        )
    both = np.concatenate([google, twitter])
    rows: dict[str, list[float]] = {"edited copy R@1": [], "other artist R@1": []}
    for share in SHARES:
        g, t, c = (mapped(part, both, share) for part in (google, twitter, copies))
        rows["edited copy R@1"].append(retrieval(c, g)["recall@1"]["value"])
        rows["other artist R@1"].append(retrieval(g, t)["recall@1"]["value"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="emoji", help="cifar10, fashion, emoji or a folder of class folders")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--minutes", type=float, default=0.1)
    parser.add_argument("--method", default="ours:nano", help="ours:CONFIG, or a peer of pretrain_quality.py")
    parser.add_argument("--lr-scale", type=float, default=1.0)
    parser.add_argument("--cache", type=Path, help="folder for decoded images")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            data=asked.data, method=asked.method, minutes=asked.minutes, seed=0, lr_scale=asked.lr_scale,
            settings=tuple(asked.settings), data_root=str(asked.data_root) if asked.data_root else None,
            cache=str(asked.cache or scratch), max_images=asked.max_images, lightly_train_python=None,
        )  # fmt: skip
        vit, data = train(asked, job, asked.cache or Path(scratch))
        bank_labels, labels = labels_of(data.bank), labels_of(data.queries)
        bank, queries = (vectors_of(vit, part)["cls"] for part in data.scoring_pixels(vit.config.img_size))
    heads = ["as trained", "centred", *(f"share {share:g}" for share in SHARES[2:])]
    print(f"{asked.data}, {asked.method}, {asked.minutes:g} CPU-minutes, {len(data.train):,} images to learn from\n")
    print("| | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(heads))
    scores = [knn_score(mapped(bank, bank, s), bank_labels, mapped(queries, bank, s), labels) for s in SHARES]
    print("| k-NN, % | " + " | ".join(f"{score:.1f}" for score in scores) + " |")
    if asked.data == "emoji":
        for name, values in emoji_truth(vit).items():
            print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    print("\nk-NN with share 0.5, by how many images the map is learned from:", end=" ")
    order = np.random.default_rng(0).permutation(len(bank))
    found = []
    for count in [*(count for count in COUNTS if count < len(bank)), len(bank)]:
        some = bank[order[:count]]
        score = knn_score(mapped(bank, some, 0.5), bank_labels, mapped(queries, some, 0.5), labels)
        found.append(f"{count:,}: {score:.1f}")
    print(", ".join(found))


if __name__ == "__main__":
    try:
        main()
    except VitembedError as error:
        sys.exit(f"Error: {error}")
