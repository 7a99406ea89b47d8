"""Planted label errors: how many of the labels that we doubt are wrong, and how many of the wrong ones we doubt.

    python benchmarks/label_errors.py                                     # scikit-learn's digits
    python benchmarks/label_errors.py --vectors emoji.npz cifar.npz       # what vitembed embed wrote, in class folders

A share of the labels is changed to another class at random. Beside our rule stands plain confident learning (Northcutt
et al. 2021, arXiv:1911.00068, the confident joint), on the same out-of-fold probabilities.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from vitembed.embeddings import Embeddings
from vitembed.probe.evaluation.label_errors import confident_disagreement, out_of_fold


def confident_joint(prob, targets):
    """Rows off the diagonal of the confident joint, the rule as published."""
    given = prob[np.arange(len(prob)), targets]
    bars = np.array([given[targets == label].mean() for label in range(prob.shape[1])])
    reached = np.where(prob >= bars, prob, -1.0)
    return np.flatnonzero((reached.argmax(axis=1) != targets) & (reached.max(axis=1) > 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, nargs="*", default=[], help="embeddings of images in class folders")
    parser.add_argument("--most", type=int, default=2500, help="images of each set, drawn at random")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--C", type=float, default=1e-2)
    args = parser.parse_args()
    digits, labels = load_digits(return_X_y=True)
    sets = {"digits": (digits, labels)}
    for path in args.vectors:
        found = Embeddings.load(path)
        names = np.unique([Path(name).parent.name for name in found.ids], return_inverse=True)[1]
        drawn = np.random.default_rng(1).permutation(len(names))[: args.most]
        sets[path.stem] = (found.vectors[drawn], names[drawn])
    table = Table(title="doubted labels: number, share of them that is wrong, share of the wrong ones that is doubted")
    for column in ("set", "wrong", "ours", "of them wrong", "found", "confident joint", "of them wrong", "found"):
        table.add_column(column, justify="left" if column == "set" else "right")
    rng = np.random.default_rng(0)
    for name, (vectors, truth) in sets.items():
        num_classes = int(truth.max()) + 1
        for share in args.shares:
            wrong = rng.random(len(truth)) < share
            targets = truth.copy()
            targets[wrong] = (truth[wrong] + rng.integers(1, num_classes, size=wrong.sum())) % num_classes
            prob = out_of_fold(vectors, targets, C=args.C)
            cells = []
            for rows in ([e.row for e in confident_disagreement(prob, targets)], confident_joint(prob, targets)):
                hit = wrong[rows]
                cells += [
                    str(len(rows)),
                    f"{hit.mean() if len(hit) else 0:.2f}",
                    f"{hit.sum() / max(1, wrong.sum()):.2f}",
                ]
            table.add_row(name, f"{100 * share:g} %", *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
