"""What fine-tuning is worth: against the probe on the frozen encoder, against no pretraining, against a plain loop.

All on the same split, so that differences are paired::

    python benchmarks/finetune.py --data ./cifar --model .vitembed/model --passes 20
    python benchmarks/finetune.py --data emoji --model .vitembed/model --passes 30 --only finetune scratch

``--data emoji`` takes the nine categories of the packaged emoji. ``plain`` is what one writes without this package:
AdamW at one rate with warm-up and cosine, crops and mirroring, one linear layer, no phase for the head, no mixing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from vitembed._torchvision import import_torchvision

import_torchvision()

import numpy as np
import torch
import torch.nn.functional as F

import vitembed
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.vit import ClassHead, VisionTransformer
from vitembed.pretrain.schedule import lr_factor
from vitembed.pretrain.supervised.module import start_vit
from vitembed.probe.evaluation.paired import compare_all
from vitembed.probe.labelled_vectors import embed_labelled
from vitembed.probe.labels import read_labelled
from vitembed.probe.report import ProbeReport, evaluate
from vitembed.workspace import find_workspace

WAYS = ("finetune", "linear_head", "scratch", "plain")
FROM_NOTHING = ["optim.head_warmup_share=0", "optim.layer_decay=1", "optim.encoder_lr_scale=1"]


def main() -> None:
    """Run the ways that were asked for, print a table and one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="emoji, or a labelled folder as vitembed probe takes it")
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--passes", type=int, help="over the training images; none: what finetune chooses")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of finetune")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with tempfile.TemporaryDirectory() as temp:
        work = Path(temp)
        data = emoji_folder(work) if args.data == "emoji" else Path(args.data)
        settings = [*([f"optim.max_epochs={args.passes}"] if args.passes else []), *args.set]
        for way in args.only:
            started = time.monotonic()
            line = {"way": way, **run_way(way, data, args.model, settings, args.passes or 20, args.seed, work)}
            print(json.dumps({**line, "seconds": round(time.monotonic() - started, 1)}), flush=True)


def emoji_folder(work: Path) -> Path:
    """The packaged emoji of one artist, in class folders."""
    from vitembed.demo.emoji import emoji

    emoji(work / "emoji")
    return work / "emoji" / "google"


def run_way(
    way: str, data: Path, model: str, settings: list[str], passes: int, seed: int, work: Path
) -> dict[str, Any]:
    """Accuracies of one way and its difference to the frozen encoder's linear probe."""
    if way == "plain":
        return plain_loop(data, model, passes, seed)
    if way == "scratch":
        saved = read_model(model)
        torch.manual_seed(seed)
        vit = VisionTransformer(dataclasses.replace(saved.vit.config, cls_proj=False))
        start = save_model(work / "scratch", vit, saved.preprocess)
        settings = [*settings, *FROM_NOTHING]
    else:
        start = Path(model)
        settings = [*settings, *(["model.head=linear"] if way == "linear_head" else [])]
    result = vitembed.finetune(
        data,
        model=start,
        overrides=settings,
        workspace=find_workspace(work / "work", create=True),
        name=way,
        seed=seed,
        progress=False,
    )
    found = result.report
    scores = {key: round(100 * found[key]["accuracy"], 1) for key in ("majority", "knn", "linear", "finetuned")}
    test = found["tests"][0]
    interval = [round(100 * end, 1) for end in test["ci95"]]
    return {
        **scores,
        "difference": round(100 * test["difference"], 1),
        "ci95": interval,
        "p": test["p"],
        "num_train": found["num_train"],
        "num_test": found["num_test"],
        "steps": result.num_steps,
        "training_seconds": round(result.seconds, 1),
        "verdict": result.verdict,
    }


def plain_loop(data: Path, model: str, passes: int, seed: int) -> dict[str, Any]:
    """A textbook loop from the same encoder, on the same split."""
    found = embed_labelled(read_labelled(data), [vitembed.load(model)])
    report = evaluate(found.embeddings[0], split=found.images.split, groups=found.images.groups, seed=seed)
    saved = read_model(model)
    pixels = torch.from_numpy(np.stack([saved.preprocess.load(ref) for ref in found.images.refs]))
    answers = train_plainly(report, pixels, start_vit(saved, img_size=saved.preprocess.img_size, drop_path_rate=0.0),
                            saved.preprocess, passes, seed)  # fmt: skip
    truth = report.fitted.targets[report.fitted.test]
    pair = [("linear", report.fitted.answers["linear"] == truth), ("plain", answers == truth)]
    (test,) = compare_all(pair, seed=seed)
    return {
        "linear": round(100 * report.linear.accuracy, 1),
        "finetuned": round(100 * float((answers == truth).mean()), 1),
        "difference": round(100 * test.difference, 1),
        "ci95": [round(100 * end, 1) for end in test.ci95],
        "p": test.p,
    }


def train_plainly(
    report: ProbeReport, pixels: torch.Tensor, vit: VisionTransformer, preprocess: Preprocess, passes: int, seed: int
) -> np.ndarray:
    """Answers on the test images after training on all others."""
    torch.manual_seed(seed)
    fitted = report.fitted
    head = ClassHead(vit.config.embed_dim, len(fitted.names))
    network = torch.nn.ModuleList([vit, head]).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.05)
    train, labels = np.flatnonzero(~fitted.is_test), torch.from_numpy(fitted.targets)
    mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (preprocess.mean, preprocess.std))
    size, side = 64, preprocess.img_size
    total = passes * (len(train) // size)
    step = 0
    for _ in range(passes):
        for rows in torch.randperm(len(train))[: len(train) // size * size].split(size):
            x = pixels[train[rows.numpy()]].permute(0, 3, 1, 2).float() / 255
            top, left = (int(value) for value in torch.randint(0, side // 4 + 1, (2,)))
            x = F.pad(x, [side // 8] * 4, mode="reflect")[:, :, top : top + side, left : left + side]
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
            loss = F.cross_entropy(head(vit((x - mean) / std).cls), labels[train[rows.numpy()]])
            for group in optimizer.param_groups:
                group["lr"] = 3e-4 * lr_factor((step + 1) / total, warmup_share=0.1, min_ratio=0.0)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 3.0)
            optimizer.step()
            step += 1
    network.eval()
    with torch.no_grad():
        parts = pixels[fitted.test].permute(0, 3, 1, 2).float().div(255).split(256)
        return torch.cat([head(vit((x - mean) / std).cls).argmax(1) for x in parts]).numpy()


if __name__ == "__main__":
    main()
