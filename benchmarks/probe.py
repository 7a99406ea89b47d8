"""Linear and k-NN probes beside scikit-learn and FAISS: same answers, how much time.

    python benchmarks/probe.py --n 20000 --d 384 --classes 100

Vectors are drawn from classes with a shared, strongly correlated covariance (a power-law spectrum, as embeddings have).
Each pair of contestants runs in turn, ``--runs`` times; the ratio is the median of the paired ratios, peer's time over
ours, so above 1 is faster than the peer. Peers: scikit-learn's ``LogisticRegression`` (L-BFGS, default tolerance) on
standardised vectors, ``KNeighborsClassifier(metric="cosine")``, and a batch search in FAISS's ``IndexFlatIP``. On a
busy machine set ``OMP_NUM_THREADS=1``: threads that wait for each other drown every contestant.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitembed.probe.knn import KNNProbe, nearest, unit_rows
from vitembed.probe.linear import DINOV2_C_PATH, LinearProbe


def draw(n, d, classes, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) * np.arange(1, d + 1) ** -0.7
    labels = rng.integers(0, classes, size=n)
    centres = 0.25 * rng.standard_normal((classes, d))
    return ((centres[labels] + rng.standard_normal((n, d))) @ mix.T).astype(np.float32), labels


def timed(call):
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def paired(ours, peer, runs):
    """Median seconds of both, median ratio, and both results; who goes first alternates."""
    mine, theirs = [], []
    for run in range(runs):
        for side in ("mine", "theirs") if run % 2 == 0 else ("theirs", "mine"):
            if side == "mine":
                seconds, our_result = timed(ours)
                mine.append(seconds)
            else:
                seconds, peer_result = timed(peer)
                theirs.append(seconds)
    ratio = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
    return statistics.median(mine), statistics.median(theirs), ratio, our_result, peer_result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4000, help="training vectors")
    parser.add_argument("--queries", type=int, default=2000, help="test vectors")
    parser.add_argument("--d", type=int, default=192)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--C", type=float, nargs="*", default=[0.001, 0.1, 10.0])
    parser.add_argument("--path", choices=["none", "short", "dinov2"], default="dinov2", help="the path of C to time")
    parser.add_argument("--max-iter", type=int, default=1000, help="scikit-learn's most iterations at each C")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--path-runs", type=int, default=1)
    parser.add_argument("--k", type=int, default=20)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="sklearn")

    vectors, labels = draw(args.n + args.queries, args.d, args.classes)
    X, y, Q, truth = vectors[: args.n], labels[: args.n], vectors[args.n :], labels[args.n :]
    table = Table(title=f"{args.n:,} x {args.d}, {args.classes} classes, {args.queries:,} test vectors")
    for column in ("what", "ours s", "peer s", "peer / ours", "ours", "peer", "difference"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def add(what, result, ours, peer, digits=4):
        mine, theirs, ratio, *_ = result
        values = (f"{ours:.{digits}f}", f"{peer:.{digits}f}", f"{ours - peer:+.{digits}f}")
        table.add_row(what, f"{mine:.3f}", f"{theirs:.3f}", f"{ratio:.1f}", *values)

    def peer_at(C, tol=1e-4):
        return make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=tol, max_iter=args.max_iter))

    for C in args.C:
        result = paired(lambda C=C: LinearProbe(C=C).fit(X, y), lambda C=C: peer_at(C).fit(X, y), args.runs)
        add(f"logistic regression, C={C:g}: accuracy", result, result[3].score(Q, truth), result[4].score(Q, truth))

    if args.path != "none":
        path = DINOV2_C_PATH if args.path == "dinov2" else tuple(10.0 ** np.arange(-4.0, 2.0))

        def peer_path():
            # DINOv2's procedure: fit each C on nine tenths, keep the one most accurate on the rest, fit on all.
            held = np.random.default_rng(0).random(len(X)) < 0.1
            accuracies = [peer_at(C).fit(X[~held], y[~held]).score(X[held], y[held]) for C in path]
            return peer_at(path[int(np.argmax(accuracies))]).fit(X, y)

        result = paired(lambda: LinearProbe(Cs=path).fit(X, y), peer_path, args.path_runs)
        ours, peer = (result[side].score(Q, truth) for side in (3, 4))
        add(f"C chosen from {len(path)}, refit: accuracy", result, ours, peer)

    def ours_knn():
        return KNNProbe(args.k).fit(X, y).score(Q, truth)

    def peer_knn():
        return KNeighborsClassifier(args.k, metric="cosine", algorithm="brute").fit(X, y).score(Q, truth)

    result = paired(ours_knn, peer_knn, args.runs)
    add(f"{args.k}-NN, beside scikit-learn: accuracy", result, result[3], result[4])

    bank, queries = unit_rows(X), unit_rows(Q)

    def faiss_search():
        import faiss

        index = faiss.IndexFlatIP(args.d)
        index.add(bank)
        return index.search(queries, args.k)

    result = paired(lambda: nearest(queries, bank, args.k), faiss_search, args.runs)
    same = np.mean([len(np.intersect1d(a, b)) / args.k for a, b in zip(result[3][1], result[4][1], strict=True)])
    add(f"{args.k} nearest, beside FAISS: share in common", result, float(same), 1.0)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
