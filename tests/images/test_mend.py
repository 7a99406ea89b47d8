"""Files whose end or text is missing or damaged: whole pixels are an image with a note, half ones only if asked for."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pytest
from PIL import Image, ImageFile

from vitembed.errors import BadImage
from vitembed.images.decode import HALF, DecodeOptions, decode, decode_image
from vitembed.images.loaded import note_lines
from vitembed.images.loader import load_batches
from vitembed.images.mend import NO_END
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef


@pytest.fixture
def rich(photo) -> Image.Image:
    """With grain to its last corner, so that a missing block shows."""
    large = np.asarray(Image.fromarray(photo).resize((270, 180))).astype(np.int16)
    grain = np.random.default_rng(0).normal(0, 20, large.shape)
    return Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))


JPEGS = [{}, {"progressive": True}, {"quality": 98, "subsampling": 0}, {"restart_marker_blocks": 8}]


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end(put, draw, rich, options, mode):
    if mode == "CMYK":
        options = {key: value for key, value in options.items() if key != "subsampling"}
    data = draw.encoded(rich.convert(mode), "JPEG", **options)
    whole = decode(put(data))
    for tail in (b"", b"\xff", b"\0" * 3000, b"\xff" * 9):
        decoded = decode_image(put(data[:-2] + tail))
        np.testing.assert_array_equal(np.array(decoded.image), whole)
        assert decoded.notes == (NO_END,)


@pytest.mark.parametrize("options", JPEGS)
def test_a_jpeg_without_some_of_its_pixels(put, draw, rich, options):
    data = draw.encoded(rich, "JPEG", **options)
    for lost in (12, 30, 300, len(data) // 2):
        for tail in (b"", b"\0" * lost, b"\xff\xff"):
            with pytest.raises(BadImage, match="truncated"):
                decode(put(data[:-lost] + tail))


def test_a_progressive_jpeg_without_its_last_scan(put, draw, rich):
    data = draw.encoded(rich, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(BadImage, match="truncated"):
        decode(put(data[:last]))


def chunks(png: bytes) -> list[bytes]:
    found, place = [], 8
    while place < len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        found.append(png[place:end])
        place = end
    return found


def test_a_png_with_a_damaged_chunk(put, draw, photo):
    png = draw.encoded(Image.fromarray(photo), "PNG")
    head, *pixels, end = chunks(png)
    bad = draw.png_chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0"
    for parts in ([head, bad, *pixels, end], [head, *pixels, bad, end], [head, *pixels, bad]):
        decoded = decode_image(put(png[:8] + b"".join(parts)))
        np.testing.assert_array_equal(np.array(decoded.image), photo)
        if parts[1] is bad:  # behind the pixels nobody looks
            assert decoded.notes == ("damaged tEXt chunk, pixels whole",)
    for parts in ([head, *pixels], [head, *pixels, end[:7]], [head, *pixels[:-1], pixels[-1][:-2]]):
        decoded = decode_image(put(png[:8] + b"".join(parts)))
        np.testing.assert_array_equal(np.array(decoded.image), photo)
        assert decoded.notes == (NO_END,)
    hurt = bytearray(b"".join(pixels))
    hurt[40] ^= 1
    transparent = draw.png_chunk(b"tRNS", bytes(6))[:-1] + b"\x07"
    for parts in ([head, bytes(hurt), end], [head, transparent, *pixels, end], [head, b"".join(pixels)[:-30]]):
        with pytest.raises(BadImage, match="damaged|truncated"):
            decode(put(png[:8] + b"".join(parts)))


def test_other_formats_without_their_end(put, draw, photo):
    gif = draw.encoded(Image.fromarray(photo), "GIF")
    assert decode_image(put(gif)).notes == ()
    assert decode_image(put(gif[:-1])).notes == (NO_END,)
    webp = draw.encoded(Image.fromarray(photo), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode(put(webp + b"trailing")), photo)
    tiff = draw.encoded(Image.fromarray(photo), "TIFF")
    odd = bytearray(tiff)
    start = struct.unpack("<I", tiff[4:8])[0]
    entries = range(start + 2, start + 2 + 12 * struct.unpack("<H", tiff[start : start + 2])[0], 12)
    place = next(at for at in entries if struct.unpack("<H", tiff[at : at + 2])[0] in (278, 284))
    odd[place : place + 8] = struct.pack("<HHI", 34000, 99, 7)  # of a type that there is not
    assert decode(put(bytes(odd))).shape == photo.shape


@pytest.mark.parametrize(
    ("format_name", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("BMP", {}), ("GIF", {})]
)
def test_half_images_where_they_are_asked_for(put, draw, rich, format_name, options):
    data = draw.encoded(rich, format_name, **options)
    half = put(data[: len(data) * 3 // 5])
    with pytest.raises(BadImage, match="truncated"):
        decode(half)
    decoded = decode_image(half, DecodeOptions(tolerant=True))
    assert HALF in decoded.notes
    assert decoded.full_size == rich.size
    there = slice(-40, None) if format_name == "BMP" else slice(0, 40)
    part, whole = np.asarray(decoded.image)[there].astype(float), decode(put(data))[there]
    assert np.abs(part - whole).mean() < (25 if options or format_name == "GIF" else 1)
    for ref in (put(data[:20]), put(b"no image at all"), put(b"")):
        with pytest.raises(BadImage):
            decode(ref, DecodeOptions(tolerant=True))
    # Of a whole image nothing changes, and nothing of what a fingerprint is made of.
    np.testing.assert_array_equal(decode(put(data), DecodeOptions(tolerant=True)), decode(put(data)))


def test_tolerance_is_of_one_image_alone(put, draw, rich):
    data = draw.encoded(rich, "JPEG")
    whole, half = put(data, "whole.jpg"), put(data[: len(data) // 2], "half.jpg")
    outcomes: list[str] = []

    def work(ref: ImageRef, tolerant: bool) -> None:
        for _ in range(15):
            try:
                outcomes.append(f"{tolerant} {len(decode_image(ref, DecodeOptions(tolerant=tolerant)).notes)}")
            except BadImage as error:
                outcomes.append(f"{tolerant} {error.reason}")

    threads = [
        threading.Thread(target=work, args=(ref, tolerant)) for ref in (whole, half) for tolerant in (True, False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {outcome: outcomes.count(outcome) for outcome in outcomes} == {
        "True 0": 15, "False 0": 15, "True 1": 15, "False truncated": 15,
    }  # fmt: skip
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("num_workers", [0, 1])
def test_notes_come_with_their_images(tmp_path, draw, rich, num_workers):
    jpeg = draw.encoded(rich, "JPEG")
    contents = [jpeg, jpeg[:-2], jpeg[:900], jpeg, jpeg[:-2]]
    refs = [ImageRef(str(tmp_path / f"{number}.jpg")) for number in range(len(contents))]
    for ref, content in zip(refs, contents, strict=True):
        with open(ref.path, "wb") as file:
            file.write(content)
    load = Preprocess(img_size=16).load_image
    batches = list(load_batches(refs, load, batch_size=3, num_workers=num_workers, isolated=True))
    notes = [note for batch in batches for note in batch.notes]
    assert notes == [(1, NO_END), (4, NO_END)]
    assert [position for batch in batches for position, _ in batch.bad] == [2]
    assert all((batch.images.reshape(len(batch.images), -1).std(axis=1) > 0).all() for batch in batches)
    assert note_lines([(refs[place].path, words) for place, words in notes] * 2) == [
        f"4 images: {NO_END} (1.jpg, 4.jpg, 1.jpg and 1 more)"
    ]
