"""Which JPEG decoder, and threads or processes: what the choices in images/decode.py and images/loader.py rest on.

    python benchmarks/decode_ways.py [--runs 5] [--workers 2]

First one 12 MP photograph by Pillow in full, Pillow scaled (draft, what we use) and simplejpeg scaled
(pip install simplejpeg), with the largest difference between the scaled two. Then images per second from file to 224 px
for three sizes: in the caller's thread, by threads, and by processes, the latter with and without their start.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from decode import camera_file
from vitembed.images.loader import load_batches
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef


def median_ms(decode: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        decode()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def compare_decoders(folder: Path, runs: int) -> None:
    try:
        import simplejpeg
    except ImportError:
        simplejpeg = None
    print("12 MP JPEG to at least 448 px, decoding alone    Pillow full  Pillow draft  simplejpeg  largest difference")
    for kind in ("baseline", "progressive"):
        path = camera_file(load_sample_images().images[0], folder / f"{kind}.jpg", progressive=kind == "progressive")
        data = path.read_bytes()

        def by_pillow(draft: bool, data: bytes = data) -> Image.Image:
            image = Image.open(io.BytesIO(data))
            if draft:
                image.draft(None, (448, 448))
            image.load()
            return image

        row = [median_ms(lambda: by_pillow(False), runs), median_ms(lambda: by_pillow(True), runs)]
        if simplejpeg is None:
            print(f"{kind:45} {row[0]:10.0f} ms {row[1]:10.0f} ms  not installed")
            continue

        def by_simplejpeg(data: bytes = data) -> np.ndarray:
            return simplejpeg.decode_jpeg(data, min_height=448, min_width=448)

        row.append(median_ms(by_simplejpeg, runs))
        difference = np.abs(np.asarray(by_pillow(True)).astype(int) - by_simplejpeg()).max()
        print(f"{kind:45} {row[0]:10.0f} ms {row[1]:10.0f} ms {row[2]:8.0f} ms {difference:18d}")


def compare_workers(folder: Path, workers: int) -> None:
    photo = Image.fromarray(load_sample_images().images[0])
    preprocess = Preprocess()
    print(f"\nimages/s from file to 224 px, {workers} workers        here  threads  processes  with their start")
    for name, size, count in (("32 x 32", (32, 32), 3000), ("640 x 480", (640, 480), 800), ("12 MP", None, 80)):
        path = folder / "baseline.jpg"
        if size is not None:
            path = folder / f"{name}.jpg"
            photo.resize(size).save(path, quality=90)
        refs = [ImageRef(str(path))] * count

        def speed(num_workers: int, isolated: bool, warm: bool, refs: list[ImageRef] = refs) -> float:
            batches = load_batches(
                refs, preprocess.load_image, batch_size=16, num_workers=num_workers, prefetch=3, isolated=isolated
            )
            start, done = time.perf_counter(), 0
            if warm:
                next(batches)
                start = time.perf_counter()
            for batch in batches:
                done += len(batch.indices)
            return done / (time.perf_counter() - start)

        row = [speed(0, False, False), speed(workers, False, True), speed(workers, True, True)]
        row.append(speed(workers, True, False))
        print(f"{name:42} {row[0]:10.0f} {row[1]:8.0f} {row[2]:10.0f} {row[3]:17.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_decoders(Path(folder), options.runs)
        compare_workers(Path(folder), options.workers)


if __name__ == "__main__":
    main()
