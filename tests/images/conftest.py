"""Images drawn for the tests of this room; nothing is read from elsewhere."""

from __future__ import annotations

import importlib
import io
import struct
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vitembed.images import cache as cache_module
from vitembed.images.source import ImageRef


@pytest.fixture
def photo() -> np.ndarray:
    """uint8 [60, 90, 3], smooth, with a different colour in every corner, so that any turn or flip shows."""
    y, x = np.mgrid[0:60, 0:90]
    return np.stack([x * 255 // 89, y * 255 // 59, 255 - x * 200 // 89], axis=-1).astype(np.uint8)


@pytest.fixture(scope="session")
def beside():
    """Imports a module of this folder such that decoding processes, which get this one's path, find it too."""
    folder = str(Path(__file__).parent)
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture
def solid_folder(tmp_path: Path) -> Path:
    """a.png ... l.png, each of its own grey (10, 20, ... 120), every third file broken in another way."""
    folder = tmp_path / "solid"
    folder.mkdir()
    for i, name in enumerate("abcdefghijkl"):
        image = Image.fromarray(np.full((20, 30, 3), 10 * (i + 1), np.uint8))
        image.save(folder / f"{name}.png")
    whole = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(whole[:-30])
    (folder / "f.png").write_bytes(b"")
    (folder / "i.png").write_bytes(b"this is no image at all")
    (folder / "l.png").write_bytes(png_header(200_000, 200_000))
    return folder


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, pixels: bytes, before_pixels: bytes = b"") -> bytes:
    """A hand-made RGB PNG."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(pixels))
    return b"\x89PNG\r\n\x1a\n" + head + before_pixels + body + png_chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    return png(width, height, 8, b"\0" * 64)


def png_16_bit_rgb(values: np.ndarray, before_pixels: bytes = b"") -> bytes:
    """A PNG of uint16 [h, w, 3], which Pillow reads but does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, rows, before_pixels)


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def tiff_exif(orientation: int) -> bytes:
    """A hand-made EXIF block of one tag: little-endian TIFF header, one IFD entry of type SHORT."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def jpeg_with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with a hand-made APP1 segment right behind its start."""
    payload = tiff_exif(orientation)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


@pytest.fixture
def draw() -> SimpleNamespace:
    """The functions above, as test modules cannot import a conftest."""
    return SimpleNamespace(
        png_chunk=png_chunk,
        png_16_bit_rgb=png_16_bit_rgb,
        png_header=png_header,
        encoded=encoded,
        tiff_exif=tiff_exif,
        jpeg_with_orientation=jpeg_with_orientation,
    )


@pytest.fixture
def decoded(monkeypatch) -> list[ImageRef]:
    """Which images a cache decodes, as it does: in threads here, as what processes do cannot be counted."""
    seen: list[ImageRef] = []
    real = cache_module.load_batches

    def counting(refs, load, **options):
        def counted(ref):
            seen.append(ref)
            return load(ref)

        return real(refs, counted, **options | {"isolated": False})

    monkeypatch.setattr(cache_module, "load_batches", counting)
    return seen


@pytest.fixture
def put(tmp_path):
    """Write bytes to a file and give its reference."""

    def write(data: bytes, name: str = "image") -> ImageRef:
        (tmp_path / name).write_bytes(data)
        return ImageRef(str(tmp_path / name))

    return write
