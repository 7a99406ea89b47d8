r"""Trials of the objective at a budget of CPU-minutes, evaluation not counted: what docs/experiments.md reports.

    python benchmarks/pretrain_trials.py --minutes 2 --config emoji objective.mask_ratio=0.25
    python benchmarks/pretrain_trials.py --minutes 3 --images CIFAR/train --test CIFAR/test --config nano \
        model.img_size=32 model.patch_size=8 data.cache_size=32

Without ``--images``: the demo's emoji, scored by edited copies (a), the other artist (b) and the category. With it:
class folders, scored by k-NN (k = 20, T = 0.07) and a linear probe on the cls vector of ``--test``. One thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vitembed._torchvision import import_torchvision

import_torchvision()  # before Lightning

from vitembed.config import PretrainConfig
from vitembed.demo.edits import write_edited_copies
from vitembed.demo.emoji import emoji
from vitembed.demo.scoreboard import pixels_of
from vitembed.demo.truth import category_scores, retrieval
from vitembed.images.augment import random_views
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitembed.images.source import find_images
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.batches import BatchStream
from vitembed.pretrain.module import parameter_groups
from vitembed.pretrain.objective import MaskedViews
from vitembed.pretrain.schedule import lr_factor, scaled_lr
from vitembed.probe.knn import KNNProbe
from vitembed.probe.linear import LinearProbe
from vitembed.recipes import load_config


def train(config: PretrainConfig, inputs: list[Path], budget_seconds: float) -> tuple[Encoder, dict]:
    cache = ImageCache.in_memory(find_images(inputs).refs, size=config.cache_size)
    stream = BatchStream(cache, batch_size=config.optim.batch_size, seed=config.seed)
    torch.manual_seed(config.seed)
    objective = MaskedViews(VisionTransformer(config.model.vit()), config.objective)
    peak = scaled_lr(config.optim, stream.batch_size)
    groups = parameter_groups(objective, config.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=config.optim.betas, fused=True)
    mean, std = torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), torch.tensor(IMAGENET_STD).reshape(3, 1, 1)
    generator = torch.Generator().manual_seed(config.seed)
    start, step, output = time.process_time(), 0, None
    while (spent := time.process_time() - start) < budget_seconds:
        factor = lr_factor(spent / budget_seconds, warmup_share=config.optim.warmup_share, min_ratio=0.0)
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
        batch = stream.batch(step)
        views = [
            random_views(
                batch["images"], batch["aspect"], config.augment, img_size=config.model.img_size, generator=generator
            )
            for _ in range(config.objective.num_views)
        ]
        output = objective((torch.stack(views) - mean) / std, generator)
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.optim.grad_clip)
        optimizer.step()
        step += 1
    facts = {
        "steps": step,
        "images": step * stream.batch_size,
        **{k: round(float(v), 3) for k, v in output.terms.items()},
    }
    return Encoder(objective.vit, Preprocess(img_size=config.model.img_size)), facts


def embed(encoder: Encoder, paths: list[Path]) -> np.ndarray:
    pixels = pixels_of(paths, encoder.preprocess.img_size)
    return np.concatenate([encoder.embed_arrays(pixels[i : i + 500]) for i in range(0, len(pixels), 500)])


def emoji_scores(encoder: Encoder, data, edited: list[Path]) -> dict:
    google, twitter, copies = (embed(encoder, list(paths)) for paths in (data.google, data.twitter, edited))
    labels, groups = [*data.categories] * 2, [*data.names] * 2
    category = category_scores(np.concatenate([google, twitter]), labels, groups=groups, ks=(5,), linear=False)
    return {
        "a_R@1": retrieval(copies, google)["recall@1"]["value"],
        "b_R@1": retrieval(google, twitter)["recall@1"]["value"],
        "5-NN": category["knn5"]["accuracy"],
    }


def folder_scores(encoder: Encoder, train_dir: Path, test_dir: Path) -> dict:
    rng = np.random.default_rng(0)
    parts = []
    for root, most in ((train_dir, 10_000), (test_dir, 5_000)):
        paths = [Path(ref.path) for ref in find_images([root]).refs]
        paths = [paths[i] for i in rng.permutation(len(paths))[:most]]
        parts.append((embed(encoder, paths), np.array([path.parent.name for path in paths])))
    (bank, bank_labels), (queries, labels) = parts
    return {
        "k-NN": float(KNNProbe(k=20).fit(bank, bank_labels).score(queries, labels)),
        "linear": float(LinearProbe(C=0.1).fit(bank, bank_labels).score(queries, labels)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--config", default="emoji")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(PretrainConfig, asked.config, asked.settings)
    with tempfile.TemporaryDirectory() as scratch:
        if asked.images is None:
            data = emoji(Path(scratch, "emoji"))
            edited = write_edited_copies(data.google, Path(scratch, "edited"), np.random.default_rng(0))
            encoder, facts = train(config, [data.google[0].parents[1], data.twitter[0].parents[1]], 60 * asked.minutes)
            scores = emoji_scores(encoder, data, edited)
        else:
            encoder, facts = train(config, [asked.images], 60 * asked.minutes)
            scores = folder_scores(encoder, asked.images, asked.test)
    print(json.dumps({"settings": asked.settings, **facts, **{k: round(v, 3) for k, v in scores.items()}}))


if __name__ == "__main__":
    main()
