"""A folder of everything that a folder can hold, through the real decoding: nothing stops it or goes wrong."""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vitembed.collection.collection import Collection
from vitembed.images.loader import load_batches
from vitembed.images.preprocess import Preprocess

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files")


class RealDecoding:
    """Decodes as an ``Encoder`` does, in processes; its vector is the picture itself at 8 x 8, about its mean."""

    fingerprint = "8by8" * 16
    embed_dim = 192
    preprocess = Preprocess(img_size=8, resize="squash")
    isolated = True

    def __init__(self):
        self.seen = []
        self.before_batches = None

    def stream(self, refs, *, batch_size=64, num_workers=None):
        self.seen += [ref.path for ref in refs]
        if self.before_batches is not None:
            self.before_batches()
        batches = load_batches(
            refs, self.preprocess.load_image, batch_size=batch_size, num_workers=1, isolated=self.isolated
        )
        for batch in batches:
            flat = batch.images.reshape(len(batch.images), 192).astype(np.float32)
            yield SimpleNamespace(
                indices=batch.indices,
                vectors=flat - flat.mean(axis=1, keepdims=True),
                bad=batch.bad,
                model_seconds=0.0,
                image_sizes=batch.image_sizes,
            )


class InThisProcess(RealDecoding):
    isolated = False


@pytest.fixture
def open_index(tmp_path):
    opened = []

    def _open():
        opened.append(Collection.create(tmp_path / "index", fingerprint=RealDecoding.fingerprint, dim=192))
        return opened[-1]

    yield _open
    for collection in opened:
        collection.close()


def picture(seed, size=(64, 48)):
    """Smooth, and different in every corner."""
    cells = np.random.default_rng(seed).integers(20, 236, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def png_bomb(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 9999)) + chunk(b"IEND", b"")


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_one_folder_of_everything(tmp_path, open_index):
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    good = {}

    def put(name, data):
        path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else os.fsencode(name))
        with open(path, "wb") as file:
            file.write(data)
        return os.fsdecode(path)

    # Good ones, of every uncomfortable kind. The truth is Pillow's own plain decode.
    good[put("plain.png", encoded(picture(0), "PNG"))] = picture(0)
    grey16 = Image.fromarray(np.asarray(picture(1).convert("L")).astype(np.uint16) * 257)
    good[put("grey 16 bit.png", encoded(grey16, "PNG"))] = picture(1).convert("L").convert("RGB")
    cmyk = encoded(picture(2).convert("CMYK"), "JPEG", quality=95)
    good[put("cmyk.jpg", cmyk)] = Image.open(io.BytesIO(cmyk)).convert("RGB")
    frames = [picture(3), picture(4), picture(5)]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    good[put("animated.gif", animated)] = Image.open(io.BytesIO(animated)).convert("RGB")
    good[put(b"not utf8 \xff\xfe.png", encoded(picture(6), "PNG"))] = picture(6)
    good[put("new\nline.png", encoded(picture(7), "PNG"))] = picture(7)
    good[put("same.png", encoded(picture(8), "PNG"))] = picture(8)
    good[put("deep/same.png", encoded(picture(9), "PNG"))] = picture(9)
    good[put("deep/er/no suffix at all", encoded(picture(10), "PNG"))] = picture(10)
    good[put("lies.png", encoded(picture(11), "JPEG", quality=95))] = picture(11)
    # Bad ones.
    whole = encoded(picture(12), "JPEG")
    bad = {
        put("zero.jpg", b""): "zero bytes",
        put("cut.jpg", whole[: len(whole) // 2]): "truncated",
        put("cut.png", encoded(picture(13), "PNG")[:-40]): "truncated",
        put("text.jpg", b"dear diary"): "not an image",
        put("bomb.png", png_bomb(200_000, 200_000)): "too large: 200000 x 200000 px",
        put("half bomb.png", png_bomb(9_000, 9_000)): "truncated",
    }
    # No images at all.
    put("notes.txt", b"dear diary")
    os.mkfifo(folder / "pipe.jpg")
    os.symlink(folder, folder / "deep" / "loop")
    os.symlink("ouroboros.jpg", folder / "ouroboros.jpg")
    bad[str(folder / "ouroboros.jpg")] = "cannot be read"
    with socket.socket(socket.AF_UNIX) as plug:
        os.chdir(folder)
        plug.bind("socket.png")

        collection, encoder = open_index(), RealDecoding()
        report = collection.update(encoder, [folder], batch_size=4)
        assert collection.paths() == sorted(good)
        assert {error.path for error in report.bad} == set(bad)
        for error in report.bad:
            assert error.reason.startswith(bad[error.path])
        for path, image in good.items():
            expected = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC), np.float32).reshape(-1)
            expected -= expected.mean()
            assert collection.vector(path) @ expected / np.linalg.norm(expected) > 0.995, path
            assert collection.search(collection.vector(path), k=1)[0].path == path
            row = collection.get(path)
            assert (row.width, row.height) == (64, 48), path
        # Once more: nothing is decoded again, the bad ones neither, and the report is the same.
        encoder.seen.clear()
        again = collection.update(encoder, [folder])
        assert encoder.seen == []
        assert [str(error) for error in again.bad] == [str(error) for error in report.bad]
        assert (again.unchanged, again.added, again.changed) == (len(good), 0, 0)
        # With links followed the loop ends, too.
        assert collection.update(encoder, [folder], follow_symlinks=True).unchanged == len(good)


def test_all_orientations_meet_the_upright_one(tmp_path, open_index):
    upright = picture(20)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that stores an upright image turned that way
    (tmp_path / "photos").mkdir()
    for orientation in range(1, 9):
        stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / "photos" / f"{orientation}.jpg", quality=95, exif=exif)
    collection = open_index()
    collection.update(InThisProcess(), [tmp_path / "photos"])
    found = collection.embeddings()
    assert (found.vectors @ found.vectors[0] > 0.99).all()
    assert {(collection.get(path).width, collection.get(path).height) for path in found.ids} == {(64, 48)}


def test_whole_batches_of_bad_files(tmp_path, open_index):
    (tmp_path / "photos").mkdir()
    for number in range(9):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    picture(0).save(tmp_path / "photos" / "z.png")
    collection = open_index()
    report = collection.update(InThisProcess(), [tmp_path / "photos"], batch_size=3)
    assert (report.added, len(report.bad)) == (1, 9)


def test_files_that_vanish_or_change_while_they_are_read(tmp_path, open_index):
    """Between the walk and the decoding: one is gone, one is other content, one is cut off."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(6):
        picture(seed).save(photos / f"{seed}.png")

    def meddle():
        (photos / "1.png").unlink()
        picture(31).save(photos / "2.png")
        os.truncate(photos / "3.png", 100)

    collection, encoder = open_index(), InThisProcess()
    encoder.before_batches = meddle
    report = collection.update(encoder, [photos])
    assert [(os.path.basename(error.path), error.reason) for error in report.bad] == [
        ("1.png", "no such file"),
        ("3.png", "truncated"),
    ]
    # The one that changed counts as not known: the next update looks at it again, whatever was read of it.
    encoder.before_batches = None
    encoder.seen.clear()
    picture(32).save(photos / "3.png")
    report = collection.update(encoder, [photos])
    assert sorted(map(os.path.basename, encoder.seen)) == ["2.png", "3.png"]
    assert report.bad == []
    for name, seed in (("2.png", 31), ("3.png", 32)):
        expected = np.asarray(picture(seed).resize((8, 8), Image.Resampling.BICUBIC), np.float32).reshape(-1)
        expected -= expected.mean()
        assert collection.vector(photos / name) @ expected / np.linalg.norm(expected) > 0.999
    assert collection.get(photos / "1.png") is None


def test_an_index_that_cannot_be_written_still_answers(tmp_path, open_index, permissions_bind):
    (tmp_path / "photos").mkdir()
    picture(0).save(tmp_path / "photos" / "0.png")
    collection = open_index()
    collection.update(InThisProcess(), [tmp_path / "photos"])
    collection.close()
    for path in [*(tmp_path / "index").iterdir(), tmp_path / "index"]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with Collection.open(tmp_path / "index") as closed:
            assert len(closed.search(closed.vector(tmp_path / "photos" / "0.png"), k=1)) == 1
    finally:
        (tmp_path / "index").chmod(0o755)
