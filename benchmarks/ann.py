"""Search among 10^5 and 10^6 vectors: ours, exact and approximate, beside FAISS, hnswlib, usearch and autofaiss.

    python benchmarks/ann.py [--num 100000 1000000] [--dim 384] [--vectors FILE] [--quick]
                             [--peers faiss hnswlib usearch autofaiss] [--autofaiss-python PYTHON]

Vectors are unit, drawn around centres of unequal weight with directions of unequal strength, as embeddings have them
(uniform noise has no near neighbours to be found); with ``--vectors`` they are real ones (.npy, or any file that
``vitembed embed -o`` writes), and as many of them as there are. Queries are not among them. Every contestant builds and
searches in processes of its own: "open+1st" is a fresh process's time from opening the index to the first answer (its
imports are not counted), "query" the median of one query at a time after that. autofaiss brings faiss-cpu, which cannot
live beside faiss-gpu: give it a virtual environment of its own and name its python.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

K = 10
NUM_QUERIES = 200
OURS = ("vitembed exact", "vitembed auto", "vitembed target 5 ms")
PEERS = {"faiss": "faiss flat", "hnswlib": "hnswlib M16 ef64", "usearch": "usearch f16", "autofaiss": "autofaiss"}


# What is searched for.


def clustered(num: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit float32 ``[num + NUM_QUERIES, dim]``, made in chunks; the last rows are the queries."""
    rng = np.random.default_rng(seed)
    num_centres = max(100, num // 200)
    strength = (np.arange(1, dim + 1) ** -0.5).astype(np.float32)  # a spectrum that falls, as trained encoders' does
    centres = rng.standard_normal((num_centres, dim), dtype=np.float32) * strength
    weights = 1 / np.arange(1, num_centres + 1) ** 0.5
    total = num + NUM_QUERIES
    found = np.empty((total, dim), np.float32)
    for start in range(0, total, 50_000):
        size = min(50_000, total - start)
        centre = rng.choice(num_centres, size, p=weights / weights.sum())
        rows = centres[centre] + 0.7 * strength * rng.standard_normal((size, dim), dtype=np.float32)
        found[start : start + size] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def given(file: Path, num: int) -> np.ndarray:
    """Real vectors, shuffled."""
    if file.suffix == ".npy":
        vectors = np.load(file, mmap_mode="r", allow_pickle=False)
    else:
        from vitembed.embeddings import Embeddings

        vectors = Embeddings.load(file).vectors
    order = np.random.default_rng(0).permutation(len(vectors))[: num + NUM_QUERIES]
    rows = np.asarray(vectors[np.sort(order)], np.float32)[np.random.default_rng(1).permutation(len(order))]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The K nearest by brute force, in NumPy."""
    scores = np.full((len(queries), 0), 0, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for start in range(0, len(vectors), 50_000):
        part = queries @ vectors[start : start + 50_000].T
        scores = np.hstack([scores, part])
        rows = np.hstack([rows, np.broadcast_to(np.arange(start, start + part.shape[1]), part.shape)])
        best = np.argsort(-scores, axis=1)[:, :K]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
    return rows


# The contestants: each builds into a folder, and opens it to a function from one query to rows.


def build_vitembed(folder: Path, vectors: np.ndarray, name: str) -> dict[str, object]:
    from vitembed import Collection, Embeddings
    from vitembed.collection.ann import AnnSettings

    kinds = {"exact": AnnSettings(family="exact"), "auto": AnnSettings(), "target 5 ms": AnnSettings(target_ms=5)}
    store = folder.parent / "vitembed-store"
    facts: dict[str, object] = {}
    with Collection.create(store, fingerprint="bench", dim=vectors.shape[1]) as collection:
        if not len(collection):
            start = time.perf_counter()
            collection.update_from(Embeddings(vectors, [f"{row:08}" for row in range(len(vectors))], "bench"))
            facts["store_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        report = collection.build_ann(
            kinds[name.removeprefix("vitembed ")], say=lambda line: print(f"  {line}", file=sys.stderr)
        )
        facts["build_seconds"] = time.perf_counter() - start
        print("\n".join(f"  {line}" for line in report.lines()), file=sys.stderr)
    files = ["vectors.faiss"] if report.exact else ["vectors.faiss", "approx.faiss"]
    facts["bytes"] = sum((store / file).stat().st_size for file in files)
    facts["note"] = "exact" if report.exact else f"{report.family}, {report.num_probes} lists"
    return facts


def open_vitembed(folder: Path, name: str):
    from vitembed import Collection

    collection = Collection.open(folder.parent / "vitembed-store")
    return lambda query: [int(hit.path) for hit in collection.search(query, k=K, exact=name == OURS[0])]


def build_faiss(folder: Path, vectors: np.ndarray, name: str) -> dict[str, object]:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(folder / "index"))
    return {"note": "brute force, memory-mapped"}


def open_faiss(folder: Path, name: str):
    import faiss

    index = faiss.read_index(str(folder / "index"), faiss.IO_FLAG_MMAP_IFC)
    return lambda query: index.search(query[None], K)[1][0]


def build_hnswlib(folder: Path, vectors: np.ndarray, name: str) -> dict[str, object]:
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=200, M=16)
    index.add_items(vectors)
    index.save_index(str(folder / "index"))
    return {"note": "ef_construction 200"}


def open_hnswlib(folder: Path, name: str):
    import hnswlib

    index = hnswlib.Index(space="ip", dim=int((folder / "dim").read_text()))
    index.load_index(str(folder / "index"))
    index.set_ef(64)
    return lambda query: index.knn_query(query, k=K)[0][0]


def build_usearch(folder: Path, vectors: np.ndarray, name: str) -> dict[str, object]:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16")
    index.add(np.arange(len(vectors)), vectors)
    index.save(str(folder / "index"))
    return {"note": "defaults, memory-mapped"}


def open_usearch(folder: Path, name: str):
    from usearch.index import Index

    index = Index.restore(str(folder / "index"), view=True)
    return lambda query: index.search(query, K).keys


def build_autofaiss(folder: Path, vectors: np.ndarray, name: str) -> dict[str, object]:
    from autofaiss import build_index

    build_index(
        vectors,
        save_on_disk=True,
        index_path=str(folder / "index"),
        index_infos_path=str(folder / "infos.json"),
        metric_type="ip",
        verbose=40,
        max_index_memory_usage="4GB",
        current_memory_available="8GB",
    )
    infos = json.loads((folder / "infos.json").read_text())
    return {"note": f"chose {infos['index_key']} {infos['index_param']}"}


def open_autofaiss(folder: Path, name: str):
    import faiss

    infos = json.loads((folder / "infos.json").read_text())
    index = faiss.read_index(str(folder / "index"))
    faiss.ParameterSpace().set_index_parameters(index, infos["index_param"])
    return lambda query: index.search(query[None], K)[1][0]


BUILD = {"vitembed": build_vitembed, "faiss": build_faiss, "hnswlib": build_hnswlib, "usearch": build_usearch,
         "autofaiss": build_autofaiss}  # fmt: skip
OPEN = {"vitembed": open_vitembed, "faiss": open_faiss, "hnswlib": open_hnswlib, "usearch": open_usearch,
        "autofaiss": open_autofaiss}  # fmt: skip


def peak_memory() -> int:
    """Of this process in bytes, mapped files included."""
    try:  # what getrusage says counts the parent's memory at the fork as well
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def contestant(phase: str, name: str, folder: Path) -> None:
    """One phase of one contestant, in this process; prints one line of JSON."""
    key = name.split()[0]
    found: dict[str, object]
    if phase == "build":
        vectors = np.load(folder.parent / "vectors.npy", mmap_mode="r")
        vectors = np.ascontiguousarray(vectors)
        start = time.perf_counter()
        found = BUILD[key](folder, vectors, name)
        found.setdefault("build_seconds", time.perf_counter() - start)
        found.setdefault("bytes", (folder / "index").stat().st_size if (folder / "index").exists() else 0)
        (folder / "dim").write_text(str(vectors.shape[1]))
    else:
        queries, truth = np.load(folder.parent / "queries.npy"), np.load(folder.parent / "truth.npy")
        __import__("vitembed.collection.nearest" if key == "vitembed" else "faiss" if key == "autofaiss" else key)
        if key == "vitembed":
            __import__("vitembed.collection.ann.approx")
        start = time.perf_counter()
        ask = OPEN[key](folder, name)
        answers = [ask(queries[0])]
        first = time.perf_counter() - start
        times = []
        for query in queries[1:]:
            start = time.perf_counter()
            answers.append(ask(query))
            times.append(time.perf_counter() - start)
        hits = [len({*map(int, answer)} & {*row.tolist()}) for answer, row in zip(answers, truth, strict=True)]
        found = {
            "first_ms": 1000 * first,
            "query_ms": 1000 * statistics.median(times),
            "recall": sum(hits) / truth.size,
        }
    found[f"{phase}_rss"] = peak_memory()
    print(json.dumps(found))


def run(name: str, place: Path, python: str) -> dict[str, object]:
    """Both phases of a contestant in processes of its own."""
    folder = place / name.replace(" ", "-")
    folder.mkdir()
    found: dict[str, object] = {"name": name}
    for phase in ("build", "search"):
        command = [python, __file__, "--contestant", name, "--phase", phase, "--folder", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(done.stderr if not done.returncode and name in OURS else "", end="", file=sys.stderr, flush=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            return {"name": name, "failed": last[0]}
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def show(found: list[dict[str, object]], num: int, dim: int) -> None:
    print(f"\n{num:,} x {dim}, k = {K}, {NUM_QUERIES} queries; in brackets: times the first row's")
    head = ("", "build s", "open+1st ms", "query ms", "recall@10", "MB on disk", "peak MB build", "search", "")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    base = next((row for row in found if "query_ms" in row), None)
    for row in found:
        if "failed" in row:
            print(f"| {row['name']} | not measured: {row['failed']} |" + " |" * 7)
            continue
        assert base is not None
        ratio = row["query_ms"] / base["query_ms"]
        build = f"{row['build_seconds']:.1f}" + (
            f" (+ {row['store_seconds']:.0f} store)" if "store_seconds" in row else ""
        )
        cells = [row["name"], build, f"{row['first_ms']:.1f}", f"{row['query_ms']:.2f} ({ratio:.2f})"]
        cells += [f"{row['recall']:.3f}", *(f"{row[key] / 1e6:.0f}" for key in ("bytes", "build_rss", "search_rss"))]
        print("| " + " | ".join([*cells, str(row["note"])]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--vectors", type=Path, help="real embeddings in place of drawn ones")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peers-only", action="store_true", help="leave ours out")
    parser.add_argument("--quick", action="store_true", help="20,000 x 64: whether it runs at all")
    parser.add_argument("--autofaiss-python", default=sys.executable, help="of an environment with autofaiss")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary one")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        contestant(args.phase, args.contestant, args.folder)
        return
    for num in [20_000] if args.quick else args.num:
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="vitembed-ann-") as temporary:
            place = Path(temporary)
            every = given(args.vectors, num) if args.vectors else clustered(num, 64 if args.quick else args.dim)
            vectors, queries = every[:-NUM_QUERIES], every[-NUM_QUERIES:]
            np.save(place / "vectors.npy", vectors)
            np.save(place / "queries.npy", queries)
            np.save(place / "truth.npy", nearest(vectors, queries))
            shape = vectors.shape
            del every, vectors
            rows = [] if args.peers_only else [run(name, place, sys.executable) for name in OURS]
            for peer in args.peers:
                rows.append(run(PEERS[peer], place, args.autofaiss_python if peer == "autofaiss" else sys.executable))
            show(rows, *shape)


if __name__ == "__main__":
    main()
