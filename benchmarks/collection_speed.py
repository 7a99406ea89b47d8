"""Times of a collection: open and search among many vectors, and the second run over an unchanged folder.

    python benchmarks/collection_speed.py [--vectors 100000] [--dim 384] [--files 20000]

No model is involved: vectors are random, images are 8 x 8 pixels and the encoder draws lots.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from vitembed.collection.ann import CACHE_FILE
from vitembed.collection.collection import Collection
from vitembed.embeddings import Embeddings

REPEATS = 7


class Lots:
    """An encoder that costs nothing."""

    fingerprint = "f" * 64
    embed_dim = 384

    def stream(self, refs, *, batch_size=64, num_workers=None):
        for start in range(0, len(refs), batch_size):
            part = range(start, min(start + batch_size, len(refs)))
            vectors = np.random.default_rng(start).standard_normal((len(part), 384)).astype(np.float32)
            yield SimpleNamespace(
                indices=np.array(part), vectors=vectors, bad=[], decode_seconds=0.0, model_seconds=0.0
            )


def milliseconds(function) -> str:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - start))
    return f"median {statistics.median(times):8.1f} ms   (min {min(times):.1f}, max {max(times):.1f}, {REPEATS} runs)"


def vectors(folder: Path, num_vectors: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, dim)).astype(np.float32)
    data = centres[rng.integers(0, 1000, num_vectors)] + rng.standard_normal((num_vectors, dim)).astype(np.float32)
    given = Embeddings(data, [f"/photos/{row % 97}/{row:07}.jpg" for row in range(num_vectors)], "f" * 64)
    start = time.perf_counter()
    with Collection.create(folder, fingerprint="f" * 64, dim=dim) as collection:
        collection.update_from(given)
    print(f"write {num_vectors} x {dim} with cache        {time.perf_counter() - start:8.1f} s")
    query = data[5]

    def open_and_search() -> None:
        with Collection.open(folder) as opened:
            opened.search(query, k=10)

    def lose_and_search() -> None:
        (folder / CACHE_FILE).unlink()
        open_and_search()

    print(f"open + first search, warm disk      {milliseconds(open_and_search)}")
    with Collection.open(folder) as opened:
        opened.search(query)
        print(f"search again in the same process    {milliseconds(lambda: opened.search(query, k=10))}")
        queries = data[:100]
        print(f"100 searches in one call            {milliseconds(lambda: opened.search_many(queries, k=10))}")
        rows = Embeddings(-data[:500], given.ids[:500], "f" * 64)
        opened.update_from(rows)
    print(f"open + search, 500 rows changed     {milliseconds(open_and_search)}")
    print(f"open + search, cache lost           {milliseconds(lose_and_search)}")
    code = (
        "import numpy as np; from vitembed.collection.collection import Collection\n"
        f"with Collection.open({str(folder)!r}) as collection: collection.search(np.ones({dim}))"
    )
    command = [sys.executable, "-c", code]
    print(f"whole process: import, open, search {milliseconds(lambda: subprocess.run(command, check=True))}")


def files(folder: Path, num_files: int) -> None:
    for number in range(num_files):
        path = folder / "photos" / f"{number % 97:02}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    with Collection.create(folder / ".vitembed" / "index", fingerprint="f" * 64, dim=384) as collection:
        encoder = Lots()
        start = time.perf_counter()
        report = collection.update(encoder, [folder / "photos"])
        print(f"first run over {num_files} files          {time.perf_counter() - start:8.1f} s, {report.added} added")

        def again() -> None:
            assert collection.update(encoder, [folder / "photos"]).unchanged == num_files

        print(f"second run, nothing changed         {milliseconds(again)}")
        (folder / "photos").rename(folder / "pictures")
        start = time.perf_counter()
        report = collection.update(encoder, [folder])
        print(f"whole folder renamed                {time.perf_counter() - start:8.1f} s, {report.moved} moved")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--files", type=int, default=20_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        vectors(Path(scratch) / "vectors", chosen.vectors, chosen.dim)
        files(Path(scratch) / "files", chosen.files)
