"""Random damage, for a bounded time, of what comes from outside: image files, and FAISS files past their checksum."""

from __future__ import annotations

import io
import os
import sys
import time

import numpy as np
import pytest
from PIL import Image

from vitembed.collection.ann import CACHE_FILE, CacheKey
from vitembed.errors import BadImage, DataError
from vitembed.images.decode import DecodeOptions, decode
from vitembed.images.source import ImageRef

SECONDS = float(os.environ.get("VITEMBED_FUZZ_SECONDS", "2"))
KINDS = ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "ICO", "TGA", "AVIF")


def mutated(data, rng):
    """A few of: bytes changed, a stretch doubled, a stretch gone, the end cut off."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        start = int(rng.integers(len(data))) if len(data) > 1 else 0
        end = min(len(data), start + int(rng.integers(1, 64)))
        what = rng.integers(5)
        if what <= 1:
            for place in rng.integers(start, max(end, start + 1), 4).tolist():
                if place < len(data):
                    data[place] = int(rng.integers(256))
        elif what == 2:
            data[start:start] = data[start:end]
        elif what == 3 and len(data) > 100:
            del data[start:end]
        elif what == 4 and rng.random() < 0.3:
            del data[max(start, 20) :]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
def test_decode(tmp_path):
    """Pixels of the right kind or a BadImage, nothing else, and never long."""
    rng = np.random.default_rng(int(time.time()) if "VITEMBED_FUZZ_SECONDS" in os.environ else 11)
    smooth = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize((60, 50))
    originals = []
    for kind in KINDS:
        buffer = io.BytesIO()
        smooth.save(buffer, kind, **({"progressive": True} if kind == "JPEG" else {}))
        originals.append((kind, buffer.getvalue()))
    deadline, num_tried, num_good = time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < deadline:
        kind, data = originals[num_tried % len(originals)]
        path = tmp_path / f"fuzzed.{kind.lower()}"
        path.write_bytes(mutated(data, rng))
        start, reason = time.monotonic(), "good"
        try:
            pixels = decode(ImageRef(str(path)), DecodeOptions(), target_px=16)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            num_good += 1
        except BadImage as error:
            reason = error.reason
        assert reason
        assert "\n" not in reason
        assert time.monotonic() - start < 20, path.read_bytes()
        num_tried += 1
    assert num_tried > 30
    assert num_good


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("vector_type", ["float16", "float32"])
def test_cache_reader_behind_the_checksum(vector_type, old_place, tmp_path, tools):
    """A forger can make the checksum right: then FAISS must refuse, or give an index of the one class and size."""
    from vitembed.collection.ann.scan import Scan, read_scan

    key = CacheKey(collection_id="x", fingerprint="y", dim=48, vector_type=vector_type)
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((30, 48)).astype(np.float32)
    whole = tmp_path / CACHE_FILE
    with whole.open("wb") as file:
        Scan.build([(np.arange(30), vectors)], 48, "s", vector_type).write(file)
    data = whole.read_bytes()

    def read_many():
        numbers = np.random.default_rng(6)
        deadline, num_tried = time.monotonic() + SECONDS / 2, 0
        while time.monotonic() < deadline or num_tried < 50:
            # Mostly in the header, where the sizes stand.
            head = mutated(data[:120], numbers) if numbers.random() < 0.7 else data[:120]
            path = tmp_path / f"{num_tried}.faiss"
            path.write_bytes(head + (data[120:] if numbers.random() < 0.8 else mutated(data[120:], numbers)))
            try:
                index = read_scan(path, path.stat().st_size, 30, key)
                index.search(vectors[:1], 5)
            except DataError:
                pass
            path.unlink()
            num_tried += 1

    assert tools.in_child(read_many) == 0
