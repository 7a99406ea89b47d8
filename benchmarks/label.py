"""Label as you go: how many labels it takes, and whether the expected accuracy can be believed.

    python benchmarks/label.py curve vectors.npz              # accuracy against labels, ours and others
    python benchmarks/label.py honest vectors.npz --runs 200  # how often the 95 % interval holds the truth
    OMP_NUM_THREADS=1 python benchmarks/label.py speed        # seconds per round in a pool of 80,000 x 384

``vectors.npz`` is what ``vitembed embed IMAGES -o vectors.npz`` writes of images in class folders; the emoji of
``vitembed demo`` will do. Contestants of ``curve`` see the same pool (60 % of the images) and learn the same probe;
accuracy is on the other 40 %. Per contestant: labels needed for 90 % of the accuracy that all labels of the pool give.
``speed`` is processor time, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from vitembed.embeddings import Embeddings, unit_rows
from vitembed.probe.labelling import session as labelling
from vitembed.probe.labelling.choosing import typical
from vitembed.probe.labelling.fitting import C, fit_probe
from vitembed.probe.labelling.session import LabelSession

ROUND = 10


def read(path):
    found = Embeddings.load(path)
    labels = found.labels if found.labels is not None else np.array([Path(name).parent.name for name in found.ids])
    return unit_rows(found.vectors), labels.astype(str)


def fitted(vectors, labels):
    return fit_probe(vectors, labels, device="cpu")


def ours(vectors, labels, budget, seed):
    """Rows in the order in which a session with a perfect person labels them."""
    session = LabelSession(vectors, sorted(set(labels)), seed=seed)
    rows = []
    while len(rows) < budget and len(batch := session.ask(ROUND)):
        session.answer(batch, labels[batch])
        rows += batch.tolist()
    return np.array(rows)


def at_random(vectors, labels, budget, seed):
    return np.random.default_rng(seed).permutation(len(labels))[:budget]


def by_entropy(vectors, labels, budget, seed):
    """The textbook: a random start, then the images of the highest entropy."""
    rows = at_random(vectors, labels, 2 * ROUND, seed)
    while len(rows) < budget:
        if len(set(labels[rows])) < 2:
            score = np.random.default_rng(len(rows)).random(len(labels))
        else:
            log_prob = fitted(vectors[rows], labels[rows]).predict_log_proba(vectors)
            score = -(np.exp(log_prob) * log_prob).sum(axis=1)
        score[rows] = -1
        rows = np.r_[rows, np.argsort(-score)[:ROUND]]
    return rows


def by_typicality(vectors, labels, budget, seed):
    rng = np.random.default_rng(seed)
    rows, available = np.zeros(0, dtype=np.int64), np.ones(len(labels), dtype=bool)
    while len(rows) < budget:
        rows = np.r_[rows, typical(vectors, ROUND, labelled=rows, available=available, rng=rng)[:ROUND]]
        available[rows] = False
    return rows


CONTESTANTS = {"vitembed": ours, "random": at_random, "entropy": by_entropy, "typical only": by_typicality}


def curve(args, console):
    vectors, labels = read(args.vectors)
    steps = [n for n in (20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000, 1500) if n <= args.budget]
    found = {name: [] for name in CONTESTANTS}
    full = []
    for seed in range(args.runs):
        order = np.random.default_rng([7, seed]).permutation(len(labels))
        pool, test = np.split(order, [int(0.6 * len(order))])
        full.append(fitted(vectors[pool], labels[pool]).score(vectors[test], labels[test]))
        for name, contestant in CONTESTANTS.items():
            rows = pool[contestant(vectors[pool], labels[pool], args.budget, seed)]
            found[name].append(
                [
                    fitted(vectors[rows[:n]], labels[rows[:n]]).score(vectors[test], labels[test])
                    if len(set(labels[rows[:n]])) > 1
                    else np.nan
                    for n in steps
                ]
            )
    title = f"accuracy in %, mean of {args.runs} (standard error); all labels of the pool: {100 * np.mean(full):.1f}"
    table = Table("contestant", *map(str, steps), "labels for 90 %", title=title)
    for name, runs in found.items():
        points = np.array(runs)
        mean, error = np.nanmean(points, axis=0), np.nanstd(points, axis=0, ddof=1) / np.sqrt(len(points))
        cells = [f"{100 * m:.1f} ({100 * e:.1f})" for m, e in zip(mean, error, strict=True)]
        table.add_row(name, *cells, needed(steps, mean, 0.9 * float(np.mean(full))))
    console.print(table)


def needed(steps, mean, goal):
    """Labels at which the mean curve passes the goal, between two steps on a straight line."""
    over = np.flatnonzero(mean >= goal)
    if not len(over):
        return f"> {steps[-1]}"
    at = int(over[0])
    if at == 0:
        return f"<= {steps[0]}"
    share = (goal - mean[at - 1]) / (mean[at] - mean[at - 1])
    return f"{steps[at - 1] + share * (steps[at] - steps[at - 1]):.0f}"


def honest(args, console):
    """Intervals against the accuracy of that very probe on the rest of the pool, and on images outside it."""
    vectors, labels = read(args.vectors)
    checkpoints = [n for n in (50, 100, 200, 300) if n <= args.budget]
    seen = {n: [] for n in checkpoints}
    for seed in range(args.runs):
        order = np.random.default_rng([11, seed]).permutation(len(labels))[: args.pool + 2000]
        pool, fresh = order[: args.pool], order[args.pool :]
        x, y = vectors[pool], labels[pool]
        session = LabelSession(x, sorted(set(labels)), seed=seed)
        for n in checkpoints:
            while session.num_labelled < n:
                batch = session.ask(min(ROUND, n - session.num_labelled))
                session.answer(batch, y[batch])
            expected, probe = session.expected_accuracy(), session.probe()
            if expected.accuracy is None:
                continue
            rest = [row for row, label in enumerate(session.labels) if label is None]
            asked = np.setdiff1d(np.arange(len(y)), rest)
            seen[n].append(
                (
                    expected.accuracy,
                    *expected.ci95,
                    probe.score(x[rest], y[rest]),
                    probe.score(vectors[fresh], labels[fresh]) if len(fresh) else np.nan,
                    of_all(x[asked], y[asked]),
                )
            )
    table = Table(
        "labels", "at random", "expected", "truth: rest", "truth: new", "interval holds rest", "holds new",
        "of all labels, out of fold", title=f"means of {args.runs} sessions in pools of {args.pool:,}, in %",
    )  # fmt: skip
    for n, rows in seen.items():
        if not rows:
            table.add_row(str(n), "", "too few to tell", *[""] * 5)
            continue
        accuracy, low, high, rest, new, naive = np.array(rows).T
        holds = [f"{100 * np.mean((low <= truth) & (truth <= high)):.0f}" for truth in (rest, new)]
        means = [f"{100 * np.mean(each):.1f}" for each in (accuracy, rest, new)]
        table.add_row(str(n), f"about {n * labelling.RANDOM_SHARE:.0f}", *means, *holds, f"{100 * np.mean(naive):.1f}")
    console.print(table)


def of_all(vectors, labels):
    """What cross-validation over all labels would say, the informative ones too."""
    from vitembed.probe.evaluation.label_errors import out_of_fold

    names, targets = np.unique(labels, return_inverse=True)
    prob = out_of_fold(vectors, targets, C=C)
    return float(np.mean(prob.argmax(axis=1) == targets)) if len(names) > 1 else np.nan


def speed(args, console):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, args.dim))
    y = rng.integers(0, 20, size=args.pool)
    x = (centres[y] + 1.5 * rng.standard_normal((args.pool, args.dim))).astype(np.float32)
    names = np.array([f"class {number}" for number in range(20)])

    def timed(what, call):
        start = time.process_time()
        result = call()
        took.append((what, time.process_time() - start))
        return result

    took = []
    session = timed("opening", lambda: LabelSession(x, names))
    for _ in range(args.rounds):
        phase = "typical ones" if session.num_labelled < labelling.num_typical(20) else "unsure ones"
        rows = timed(f"choosing 8 {phase}", lambda: session.ask(8))
        timed("an answer", lambda: session.answer(rows[:1], names[y[rows[:1]]]))  # noqa: B023
        session.answer(rows[1:], names[y[rows[1:]]])
        if session.is_fitted():
            timed("fitting, expected accuracy", session.expected_accuracy)
    table = Table("what", "CPU seconds, median", "most", title=f"{args.pool:,} x {args.dim}, {args.rounds} rounds of 8")
    for what in dict.fromkeys(name for name, _ in took):
        seconds = [second for name, second in took if name == what]
        table.add_row(what, f"{np.median(seconds):.2f}", f"{max(seconds):.2f}")
    console.print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curve", "honest", "speed"])
    parser.add_argument("vectors", nargs="?")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--budget", type=int, default=300)
    parser.add_argument("--pool", type=int)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    if args.what != "speed" and args.vectors is None:
        parser.error("name a vector file")
    args.pool = args.pool or {"speed": 80_000, "honest": 1_500}.get(args.what)
    warnings.simplefilter("ignore")
    console = Console(width=max(120, int(os.environ.get("COLUMNS", "150"))))
    {"curve": curve, "honest": honest, "speed": speed}[args.what](args, console)


if __name__ == "__main__":
    main()
