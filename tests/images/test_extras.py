"""HEIC and RAW: where their extra is installed against its own decoder, where it is not one line that says so."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from vitembed.collection.collection import Collection
from vitembed.errors import BadImage
from vitembed.images import extras
from vitembed.images.decode import DecodeOptions, decode, decode_image
from vitembed.images.source import ImageRef, sniff

HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def reason(path):
    with pytest.raises(BadImage) as caught:
        decode(ImageRef(str(path)))
    return caught.value.reason


def dng(pattern: np.ndarray, orientation: int = 1) -> bytes:
    """A minimal camera file: uncompressed 16-bit Bayer cells (RGGB) of uint16 [h, w], by the DNG specification 1.4."""
    height, width = pattern.shape
    short, long, byte, text, rational, srational = 3, 4, 1, 2, 5, 10
    matrix = b"".join(struct.pack("<2i", int(row == column), 1) for row in range(3) for column in range(3))
    pixels = pattern.astype("<u2").tobytes()
    tags = [
        (254, long, 1, struct.pack("<I", 0)),
        (256, long, 1, struct.pack("<I", width)),
        (257, long, 1, struct.pack("<I", height)),
        (258, short, 1, struct.pack("<HH", 16, 0)),
        (259, short, 1, struct.pack("<HH", 1, 0)),
        (262, short, 1, struct.pack("<HH", 32803, 0)),
        (271, text, 5, b"Test\0"),
        (272, text, 5, b"Test\0"),
        (273, long, 1, b"PLACE"),
        (274, short, 1, struct.pack("<HH", orientation, 0)),
        (277, short, 1, struct.pack("<HH", 1, 0)),
        (278, long, 1, struct.pack("<I", height)),
        (279, long, 1, struct.pack("<I", len(pixels))),
        (33421, short, 2, struct.pack("<HH", 2, 2)),
        (33422, byte, 4, bytes([0, 1, 1, 2])),
        (50706, byte, 4, bytes([1, 4, 0, 0])),
        (50708, text, 5, b"Test\0"),
        (50717, long, 1, struct.pack("<I", 65535)),
        (50721, srational, 9, matrix),
        (50728, rational, 3, struct.pack("<6I", 1, 1, 1, 1, 1, 1)),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    rest = b""
    entries = b""
    total = sum(len(data) + len(data) % 2 for _, _, _, data in tags if len(data) > 4 and data != b"PLACE")
    for tag, kind, count, data in tags:
        value = struct.pack("<I", start + total) if data == b"PLACE" else data
        if len(value) > 4:
            rest_at = start + len(rest)
            rest += value + b"\0" * (len(value) % 2)
            value = struct.pack("<I", rest_at)
        entries += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + rest + pixels


@pytest.fixture
def heic(tmp_path):
    module = pytest.importorskip("pillow_heif")

    def write(image, name="photo.heic", **options):
        try:
            module.from_pillow(image).save(tmp_path / name, quality=95, **options)
        except (RuntimeError, OSError) as error:  # built without an encoder
            pytest.skip(str(error))
        return tmp_path / name

    return write


def test_heic(heic, photo, tmp_path):
    path = heic(Image.fromarray(photo))
    assert sniff(str(path)) == "HEIF"
    decoded = decode_image(ImageRef(str(path)))
    assert decoded.full_size == (90, 60)
    assert np.abs(np.asarray(decoded.image).astype(int) - photo).mean() < 3
    assert "HEIF" not in Image.OPEN  # the program's own list is left alone
    (tmp_path / "cut.heic").write_bytes(path.read_bytes()[:-300])
    assert reason(tmp_path / "cut.heic")
    (tmp_path / "head.heic").write_bytes(HEIC_HEAD)
    assert reason(tmp_path / "head.heic")


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_heic_stands_upright(heic, photo, orientation):
    stored = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(photo).transpose(stored)
    path = heic(image, exif=exif.tobytes())
    decoded = decode_image(ImageRef(str(path)))
    assert decoded.full_size == (90, 60)
    assert np.abs(np.asarray(decoded.image).astype(int) - photo).mean() < 3


def test_raw_is_developed_upright(tmp_path):
    """A red-to-blue sensor: red comes out at the left and blue at the right, whichever way the camera was held."""
    pytest.importorskip("rawpy")
    pattern = np.zeros((80, 120), np.uint16)
    pattern[0::2, 0:60:2] = 40_000  # red cells
    pattern[1::2, 61::2] = 40_000  # blue cells
    for orientation, size in ((1, (120, 80)), (6, (80, 120))):
        path = tmp_path / f"{orientation}.dng"
        path.write_bytes(dng(pattern, orientation))
        assert sniff(str(path)) == "RAW"
        decoded = decode_image(ImageRef(str(path)))
        assert decoded.full_size == size
        assert decoded.image.size == size
        pixels = np.asarray(decoded.image).astype(int)
        first, last = (pixels[:, :40], pixels[:, -40:]) if orientation == 1 else (pixels[:40], pixels[-40:])
        assert first[..., 0].mean() > 4 * first[..., 2].mean() + 10
        assert last[..., 2].mean() > 4 * last[..., 0].mean() + 10
        half = decode_image(ImageRef(str(path)), target_px=20)
        assert half.image.size == (size[0] // 2, size[1] // 2)
        assert half.full_size == size
        assert decode_image(ImageRef(str(path)), DecodeOptions(draft=False), target_px=20).image.size == size
    (tmp_path / "cut.dng").write_bytes(dng(pattern)[:400])
    assert reason(tmp_path / "cut.dng")


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.dng", b"II*\0"),
        ("a.NEF", b"MM\0*"),
        ("any", b"II*\0\x10\0\0\0CR\2\0"),
        ("any", b"FUJIFILMCCD-RAW 0201"),
        ("any", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"),
    ],
)
def test_raw_is_told_from_tiff(tmp_path, name, head):
    (tmp_path / name).write_bytes(head.ljust(64, b"\0"))
    assert sniff(str(tmp_path / name)) == "RAW"
    (tmp_path / "scan.tif").write_bytes(b"II*\0".ljust(64, b"\0"))
    assert sniff(str(tmp_path / "scan.tif")) == "TIFF"


def test_without_the_extra_the_reason_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD)
    (tmp_path / "a.dng").write_bytes(b"II*\0".ljust(64, b"\0"))
    assert reason(tmp_path / "a.heic") == "HEIF: needs the extra heic (pip install 'vitembed[heic]')"
    assert reason(tmp_path / "a.dng") == "RAW: needs the extra raw (pip install 'vitembed[raw]')"


def test_an_image_is_tried_again_once_its_extra_is_there(tmp_path, monkeypatch):
    from types import SimpleNamespace

    class Asked:
        fingerprint, embed_dim = "x", 2
        asked = 0

        def stream(self, refs, *, batch_size=64, num_workers=None):
            self.asked += 1
            bad = []
            for place, ref in enumerate(refs):
                try:
                    decode(ref)
                except BadImage as error:
                    bad.append((place, error))
            empty = np.zeros((0, 2), np.float32)
            yield SimpleNamespace(indices=np.zeros(0, np.int64), vectors=empty, bad=bad, model_seconds=0.0)

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.heic").write_bytes(HEIC_HEAD)
    encoder = Asked()
    with Collection.create(tmp_path / "index", fingerprint="x", dim=2) as collection:
        installed = extras.importlib.util.find_spec
        monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
        for _ in range(2):
            (error,) = collection.update(encoder, [photos]).bad
            assert "needs the extra heic" in error.reason
        assert encoder.asked == 1
        monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: name == "pillow_heif" or installed(name))
        (error,) = collection.update(encoder, [photos]).bad
        assert encoder.asked == 2
        assert "needs the extra" not in error.reason or not installed("pillow_heif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("by_itself", [True, False])
def test_heic_is_turned_once(heic, photo, tmp_path, monkeypatch, orientation, by_itself):
    """By its own rotation and mirror where it has them, else by its EXIF, as viewers show it."""
    module = pytest.importorskip("pillow_heif")
    undone = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(photo) if undone is None else Image.fromarray(photo).transpose(undone)
    if by_itself:
        path = heic(image, exif=exif.tobytes())
    else:
        path = tmp_path / "photo.heic"
        with monkeypatch.context() as patch:  # what Pillow knows of formats stays as it is
            for name in ("OPEN", "SAVE", "SAVE_ALL", "MIME", "EXTENSION"):
                patch.setattr(Image, name, dict(getattr(Image, name)))
            patch.setattr(Image, "ID", [*Image.ID])
            module.register_heif_opener()
            image.save(path, "HEIF", exif=exif, quality=95)
        assert b"irot" not in path.read_bytes()
    decoded = decode_image(ImageRef(str(path)))
    assert decoded.full_size == (90, 60)
    assert np.abs(np.asarray(decoded.image).astype(int) - photo).mean() < 3
    if not by_itself and orientation > 1:  # older models keep it as they had it
        before = decode_image(ImageRef(str(path)), DecodeOptions(rules=1, depth="full"))
        assert before.image.size == image.size
        assert np.abs(np.asarray(before.image).astype(int) - np.asarray(image)).mean() < 3
