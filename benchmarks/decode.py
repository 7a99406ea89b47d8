"""Large JPEGs to model pixels: scaled decode against Pillow's full decode, in turn, with the difference in pixels.

    python benchmarks/decode.py [--runs 5] [--gpu]

Two real photographs (scikit-learn's samples), enlarged to 12 MP with noise so that they compress like camera files.
The last column has each way in a row, as an index decodes: after a full decode a scaled one finds its memory cold.
Below each baseline file: how far from the scaled decode the averages are that a GPU makes of a full one
(``vitembed.images.decode_gpu``), here of Pillow's full decode, with ``--gpu`` of nvJPEG's on the first CUDA device, and
then its time too.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from vitembed.images.decode_gpu import NUM_COMPARED, GpuJpegs
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef


def camera_file(photo: np.ndarray, path: Path, *, progressive: bool) -> Path:
    large = np.asarray(Image.fromarray(photo).resize((4000, 3000), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = np.random.default_rng(0).normal(0, 6, large.shape).astype(np.int16)
    Image.fromarray(np.clip(large + noise, 0, 255).astype(np.uint8)).save(path, quality=90, progressive=progressive)
    return path


def seconds(preprocess: Preprocess, path: Path) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    pixels = preprocess.load(ImageRef(str(path)))
    return time.perf_counter() - start, pixels


def by_pillow(data: torch.Tensor) -> torch.Tensor:
    """In the place of nvJPEG: a full decode, [3, h, w]."""
    with Image.open(io.BytesIO(data.numpy().tobytes())) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def show_averages(gpu: GpuJpegs, path: Path, near: np.ndarray, runs: int, *, timed: bool) -> None:
    times = []
    for _ in range(NUM_COMPARED + runs):  # the first ones are decoded both ways
        start = time.perf_counter()
        pixels = gpu(ImageRef(str(path))).pixels
        times.append(time.perf_counter() - start)
    difference = np.abs(pixels.astype(float) - near).mean()
    taken = f", {1000 * statistics.median(times[NUM_COMPARED:]):.1f} ms by the GPU" if timed else ""
    print(f"            averages of a full decode: {difference:.2f}/255 off the scaled one{taken}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    runs = options.runs
    gpu = GpuJpegs(Preprocess(), "cuda:0", decoder=None if options.gpu else by_pillow)
    gpu.prepare()
    full, scaled = Preprocess(draft=False), Preprocess(draft=True)
    print("12 MP JPEG to 224 px      full ms  scaled ms  ratio of pairs (median)  mean abs difference /255  in a row")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("baseline", "progressive"):
            for number, photo in enumerate(load_sample_images().images, start=1):
                path = camera_file(photo, Path(folder, f"{kind}{number}.jpg"), progressive=kind == "progressive")
                pairs = []
                for _ in range(runs):
                    (slow, exact), (fast, near) = seconds(full, path), seconds(scaled, path)
                    pairs.append((slow, fast))
                ratio = statistics.median(slow / fast for slow, fast in pairs)
                slow, fast = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
                difference = np.abs(exact.astype(float) - near).mean()
                many = [statistics.median(seconds(way, path)[0] for _ in range(runs + 1)) for way in (full, scaled)]
                print(
                    f"{kind:11} photo {number}      {slow:9.0f} {fast:10.0f} {ratio:24.1f} {difference:25.2f}"
                    f" {many[0] / many[1]:9.1f}"
                )
                if kind == "baseline":
                    show_averages(gpu, path, near, runs, timed=options.gpu)


if __name__ == "__main__":
    main()
