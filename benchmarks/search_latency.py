"""How long a search takes: in the library, under filters, and as a whole command with and without torch.

    python benchmarks/search_latency.py [--vectors 100000] [--dim 384] [--workspace DIR --query FRESH.jpg]

Vectors are drawn around 1,000 centres. With a workspace (a model and an index) and an image that is not indexed, the
command itself is timed too: the same query through the graph beside the index, and through the model (--model). Where
``rclip`` is on the path, its start (``rclip --help``) is timed beside; its weights are downloaded at first use, so a
query of it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.collection.finding.duplicates import find_duplicates
from vitembed.embeddings import Embeddings
from vitembed.workspace import find_workspace

REPEATS = 9


def milliseconds(function, repeats: int = REPEATS) -> str:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return f"median {statistics.median(times):9.1f} ms   (min {min(times):.1f}, max {max(times):.1f}, {repeats} runs)"


def library(folder: Path, num_vectors: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, dim)).astype(np.float32)
    data = centres[rng.integers(0, 1000, num_vectors)] + rng.standard_normal((num_vectors, dim)).astype(np.float32)
    names = [f"/photos/{row % 97}/{row:07}.{'png' if row % 10 == 0 else 'jpg'}" for row in range(num_vectors)]
    with Collection.create(folder, fingerprint="f" * 64, dim=dim, root="/photos") as collection:
        collection.update_from(Embeddings(data, names, "f" * 64))
        query = data[5]
        print(f"background counted anew               {milliseconds(collection.background, 1)}")

    def open_and(**options):
        def run() -> None:
            with Collection.open(folder) as opened:
                opened.search(query, **options)

        return run

    print(f"open + search                         {milliseconds(open_and(k=10))}")
    with Collection.open(folder) as opened:
        opened.search(query)
        for name, options in {
            "search": {},
            "search --where name ~ *.png (1/10)": {"where": "name ~ *.png"},
            "search --where folder = 5 (1/97)": {"where": "folder = 5"},
            "search --unique": {"unique": 0.98},
        }.items():
            print(f"{name:37} {milliseconds(lambda options=options: opened.search(query, k=10, **options))}")
        print(f"background, from its file             {milliseconds(opened.background)}")
        if num_vectors <= 100_000:
            print(f"dupes, all pairs                      {milliseconds(lambda: find_duplicates(opened), 1)}")


def command(workspace: Path, query: Path) -> None:
    place = find_workspace(workspace)
    with Collection.open(place.index_dir) as collection:
        known = collection.paths()[0]
        print(f"\nwhole command, index of {len(collection):,} images x {collection.dim}")
    seal = json.loads((place.index_dir / "query.json").read_bytes())
    assert seal["usable"], seal["problem"]
    start = [sys.executable, "-m", "vitembed_cli", "search"]
    where = ["--workspace", os.fspath(workspace), "-k", "10"]
    rows = {
        "indexed image, no encoder": [*start, known, *where],
        "fresh image, graph beside the index": [*start, os.fspath(query), *where],
        "fresh image, model through torch": [*start, os.fspath(query), *where, "--model", os.fspath(place.model_dir)],
        "vitembed --help": [sys.executable, "-m", "vitembed_cli", "--help"],
    }
    if shutil.which("rclip"):
        rows["rclip --help"] = ["rclip", "--help"]
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(5):  # interleaved: what else the machine does meets all of them alike
        for name, arguments in rows.items():
            begin = time.perf_counter()
            subprocess.run(arguments, check=True, capture_output=True)
            times[name].append(time.perf_counter() - begin)
    for name, seconds in times.items():
        print(
            f"{name:37} median {statistics.median(seconds):6.2f} s   (min {min(seconds):.2f}, max {max(seconds):.2f})"
        )
    print(f"cosine of the graph's vectors with the model's, at worst: {seal['cosine']:.7f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--workspace", type=Path)
    parser.add_argument("--query", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        library(Path(scratch) / "index", chosen.vectors, chosen.dim)
    if chosen.workspace is not None and chosen.query is not None:
        command(chosen.workspace, chosen.query)
