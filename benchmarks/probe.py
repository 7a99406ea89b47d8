"""Probes beside scikit-learn and FAISS: same answers, how much time.

    python benchmarks/probe.py --n 20000 --d 384 --classes 100
    python benchmarks/probe.py --quick                             # a look whether it runs, half a minute

Vectors are drawn from classes with a shared, strongly correlated covariance (a power-law spectrum, as embeddings have).
Each pair of contestants runs in turn, ``--runs`` times; the ratio is the median of the paired ratios, peer's time over
ours, so above 1 is faster than the peer; it is given of wall time and of processor time, which a busy machine
disturbs less. Peers: scikit-learn's ``LogisticRegression`` (L-BFGS) on standardised vectors of float32, its fast case,
along a path with ``warm_start``, and (``--cv``) ``LogisticRegressionCV``; ``RidgeClassifierCV``;
``KNeighborsClassifier(metric="cosine")``; and a batch search in FAISS's ``IndexFlatIP``. On a busy machine set
``OMP_NUM_THREADS=1``: threads that wait for each other drown every contestant.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifierCV
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitembed.probe.knn import KNNProbe, nearest, unit_rows
from vitembed.probe.linear import DINOV2_C_PATH, LinearProbe
from vitembed.probe.ridge import RidgeProbe


def draw(n, d, classes, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) * np.arange(1, d + 1) ** -0.7
    labels = rng.integers(0, classes, size=n)
    centres = 0.25 * rng.standard_normal((classes, d))
    return ((centres[labels] + rng.standard_normal((n, d))) @ mix.T).astype(np.float32), labels


def timed(call):
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def paired(ours, peer, runs):
    """Median wall seconds of both, median ratios of wall and CPU time, and both results; who goes first alternates."""
    mine, theirs = [], []
    for run in range(runs):
        for side in ("mine", "theirs") if run % 2 == 0 else ("theirs", "mine"):
            if side == "mine":
                *times, our_result = timed(ours)
                mine.append(times)
            else:
                *times, peer_result = timed(peer)
                theirs.append(times)
    wall, cpu = (statistics.median(b[i] / a[i] for a, b in zip(mine, theirs, strict=True)) for i in (0, 1))
    seconds = (statistics.median(times[0] for times in side) for side in (mine, theirs))
    return (*seconds, (wall, cpu), our_result, peer_result)


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
    parser.add_argument(
        "--peer-tol", type=float, nargs="*", default=[1e-4], help="scikit-learn's tolerance on the path"
    )
    parser.add_argument("--cv", action="store_true", help="also five-fold cross-validation beside LogisticRegressionCV")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="small sizes, one run, a short path")
    args = parser.parse_args()
    if args.quick:
        args.n, args.queries, args.d, args.classes = 2000, 1000, 64, 10
        args.C, args.path, args.runs = [0.1], "short", 1
    warnings.filterwarnings("ignore", module="sklearn")

    vectors, labels = draw(args.n + args.queries, args.d, args.classes)
    X, y, Q, truth = vectors[: args.n], labels[: args.n], vectors[args.n :], labels[args.n :]
    table = Table(title=f"{args.n:,} x {args.d}, {args.classes} classes, {args.queries:,} test vectors")
    for column in ("what", "ours s", "peer s", "ratio", "CPU ratio", "ours", "peer", "difference"):
        table.add_column(column, justify="left" if column == "what" else "right")

    def add(what, result, ours, peer, digits=4):
        mine, theirs, (wall, cpu), *_ = result
        values = (f"{ours:.{digits}f}", f"{peer:.{digits}f}", f"{ours - peer:+.{digits}f}")
        table.add_row(what, f"{mine:.3f}", f"{theirs:.3f}", f"{wall:.1f}", f"{cpu:.1f}", *values)

    def peer_at(C, tol=1e-4):
        return make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=tol, max_iter=args.max_iter))

    for C in args.C:
        result = paired(lambda C=C: LinearProbe(C=C).fit(X, y), lambda C=C: peer_at(C).fit(X, y), args.runs)
        add(f"logistic regression, C={C:g}: accuracy", result, result[3].score(Q, truth), result[4].score(Q, truth))

    if args.path != "none":
        path = DINOV2_C_PATH if args.path == "dinov2" else tuple(10.0 ** np.arange(-4.0, 2.0))

        def peer_path(tol):
            # The same procedure: each C on four fifths, from the last one's solution; the most accurate on the rest;
            # refitted on all from where it was.
            held = StratifiedShuffleSplit(1, test_size=0.2, random_state=0)
            train, rest = next(held.split(X, y))
            model = LogisticRegression(tol=tol, max_iter=args.max_iter, warm_start=True)
            scaler = StandardScaler().fit(X[train])
            best = (-1.0, None, None)
            for C in path:
                model.set_params(C=C).fit(scaler.transform(X[train]), y[train])
                accuracy = model.score(scaler.transform(X[rest]), y[rest])
                if accuracy > best[0]:
                    best = (accuracy, C, (model.coef_.copy(), model.intercept_.copy()))
            model.coef_, model.intercept_ = best[2]
            scaler = StandardScaler().fit(X)
            return make_pipeline(scaler, model.set_params(C=best[1]).fit(scaler.transform(X), y))

        for tol in args.peer_tol:
            result = paired(
                lambda: LinearProbe(Cs=path, num_holdouts=1).fit(X, y), lambda tol=tol: peer_path(tol), args.path_runs
            )
            ours, peer = (result[side].score(Q, truth) for side in (3, 4))
            add(f"C chosen from {len(path)}, refit; peer's tol {tol:g}: accuracy", result, ours, peer)

        if args.cv:
            held = [*StratifiedKFold(5).split(X, y)]
            result = paired(
                lambda: LinearProbe(Cs=path, num_holdouts=5).fit(X, y),
                lambda: make_pipeline(
                    StandardScaler(),
                    LogisticRegressionCV(Cs=path, cv=held, tol=args.peer_tol[0], max_iter=args.max_iter),
                ).fit(X, y),
                args.path_runs,
            )
            ours, peer = (result[side].score(Q, truth) for side in (3, 4))
            add(f"C chosen from {len(path)} by 5-fold cross-validation, refit: accuracy", result, ours, peer)

    alphas = 10.0 ** np.arange(-1.0, 6.0)
    result = paired(
        lambda: RidgeProbe(alphas=alphas).fit(X, y),
        lambda: make_pipeline(StandardScaler(), RidgeClassifierCV(alphas)).fit(X, y),
        args.runs,
    )
    add(
        f"ridge, best of {len(alphas)} by leaving out each: accuracy",
        result,
        *(result[i].score(Q, truth) for i in (3, 4)),
    )

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
