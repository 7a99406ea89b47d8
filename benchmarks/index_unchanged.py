"""Bringing an unchanged folder up to date: 100,000 files against their catalogue, by stat calls alone.

    python benchmarks/index_unchanged.py [--files 100000] [--dim 384] [--runs 5]

Files are empty names with a size (sparse), 1,000 to a folder; the catalogue holds a random vector for each. Says how
long an update takes when nothing has changed, what of that is walking, and whether any file of the index was written.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from vitembed.collection.collection import Collection
from vitembed.images.source import FileEntry, walk


class NoEncoder:
    """Has a face, and is never to be asked for a vector."""

    fingerprint = "unchanged"

    def __init__(self, dim: int) -> None:
        self.embed_dim = dim

    def stream(self, refs, *, batch_size=64, num_workers=None):
        raise AssertionError(f"asked to embed {len(refs)} images")


def make_files(folder: Path, num_files: int) -> list[FileEntry]:
    for number in range(num_files):
        if number % 1000 == 0:
            (folder / f"{number // 1000:04}").mkdir(parents=True)
        path = folder / f"{number // 1000:04}" / f"photo_{number:06}.jpg"
        path.touch()
        os.truncate(path, 2_000_000 + number)
    return walk([folder]).entries


def fill(collection: Collection, entries: list[FileEntry], dim: int) -> None:
    rng = np.random.default_rng(0)
    catalog = collection._catalog
    with catalog.write():
        for number, entry in enumerate(entries):
            vector = rng.standard_normal(dim).astype(np.float32)
            catalog.insert(
                entry.path,
                size=entry.size,
                mtime_ns=entry.mtime_ns,
                content_hash=number.to_bytes(20, "little"),
                image_size=(4000, 3000),
                vector=vector / np.linalg.norm(vector),
            )


def stats(directory: Path) -> dict[str, tuple[int, int]]:
    # SQLite makes and removes -wal and -shm whenever a file is opened, also to read.
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.iterdir()
        if not path.name.endswith(("-wal", "-shm"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        photos, index = Path(top, "photos"), Path(top, ".vitembed", "index")
        entries = make_files(photos, options.files)
        encoder = NoEncoder(options.dim)

        def opened() -> Collection:
            return Collection.create(index, fingerprint=encoder.fingerprint, dim=options.dim)

        with opened() as collection:
            fill(collection, entries, options.dim)
            collection._nearest.publish()
        before = stats(index)
        walks, updates, processor = [], [], []
        for _ in range(options.runs):
            start = time.perf_counter()
            walk([photos])
            walks.append(time.perf_counter() - start)
            start, used = time.perf_counter(), time.process_time()
            with opened() as collection:
                report = collection.update(encoder, [photos])
            updates.append(time.perf_counter() - start)
            processor.append(time.process_time() - used)
            assert report.unchanged == options.files
        written = [name for name, stat in stats(index).items() if stat != before.get(name)]
        print(f"{options.files:,} unchanged files, {options.dim}-d, {options.runs} runs")
        print(f"  update, with opening   {statistics.median(updates):.2f} s (worst {max(updates):.2f})")
        print(f"  processor time of it   {statistics.median(processor):.2f} s, which a busy machine does not stretch")
        print(f"  of that walk and stat  {statistics.median(walks):.2f} s")
        print(f"  files written          {', '.join(written) or 'none'}")


if __name__ == "__main__":
    main()
