"""Every file that claims to be a picture is an image or is listed with a reason: over all that Pillow knows."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from PIL import Image

from vitembed.images.decode import decode
from vitembed.images.formats import IMAGE_SUFFIXES, KNOWN_FORMATS, REFUSED, claims_image
from vitembed.images.source import ImageRef, find_images

NO_PICTURES = {"MPEG", "HDF5", "GRIB", "BUFR", "IPTC"}
"""Of Pillow's formats: video and data, which it only recognises."""


def test_all_of_pillows_formats_and_suffixes_are_known():
    Image.init()
    assert set(Image.OPEN) - NO_PICTURES - KNOWN_FORMATS == {"HEIF"} & set(Image.OPEN)
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name not in NO_PICTURES}
    assert suffixes <= IMAGE_SUFFIXES
    assert set(REFUSED) & set(Image.OPEN) <= {"EPS", "WMF", "FPX"}


def test_no_suffix_is_passed_over(tmp_path):
    for suffix in sorted(IMAGE_SUFFIXES):
        (tmp_path / f"x{suffix}").write_bytes(b"nothing that anybody knows, as text or as numbers")
    for name in ("y.txt", "y", "y.mp4"):
        (tmp_path / name).write_bytes(b"another thing")
    listing = find_images([tmp_path])
    assert listing.refs == []
    assert len(listing.bad) == len(IMAGE_SUFFIXES)
    assert listing.num_other == 3


PICTURE = np.stack(np.broadcast_arrays(*np.ogrid[0:16:1, 0:24:1], 9), axis=2).astype(np.uint8) * 9


@pytest.mark.parametrize("name", ["DIB", "IM", "SPIDER", "PALM", "EPS", "PDF", "MSP", "TGA", "PCX", "BLP", "SGI"])
def test_what_pillow_writes_is_read_or_listed(tmp_path, name):
    Image.init()
    image = Image.fromarray(PICTURE)
    mode = {"SPIDER": "F", "MSP": "1", "XBM": "1", "BLP": "P", "PALM": "P"}.get(name, "RGB")
    suffix = {"MSP": ".msp", "BLP": ".blp", "SPIDER": ".spider", "SGI": ".sgi"}.get(name, f".{name.lower()}")
    path = tmp_path / f"picture{suffix}"
    image.convert(mode).save(path, name)
    listing = find_images([tmp_path])
    if name in REFUSED:
        assert [error.reason for error in listing.bad] == [REFUSED[name]]
        return
    assert [ref.path for ref in listing.refs] == [str(path)]
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB")) if mode != "F" else None
    pixels = decode(ImageRef(str(path)))
    assert pixels.shape == PICTURE.shape
    if expected is not None:
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("suffix", ["", ".dat"])
def test_a_dib_is_known_by_its_head(tmp_path, suffix):
    path = tmp_path / f"clipboard{suffix}"
    Image.fromarray(PICTURE).save(path, "DIB")
    assert len(find_images([tmp_path]).refs) == 1


HEADS = {
    "EPS": b"\xc5\xd0\xd3\xc6\x20\0\0\0", "PDF": b"%PDF-1.7\n", "WMF": b"\xd7\xcd\xc6\x9a\0\0", "EXR": b"v/1\1\2\0\0\0",
    "SVG": b"<?xml version=\"1.0\"?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC \"-//W3C//DTD SVG 1.1//EN\">\n<svg/>",
    "HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n", "JXR": b"II\xbc\1\x20\0\0\0", "XCF": b"gimp xcf v011\0",
    "PSP": b"Paint Shop Pro Image File\n", "DJVU": b"AT&TFORM\0\0\0\0DJVU", "DICOM": bytes(128) + b"DICM\2\0",
    "CZI": b"ZISRAWFILE\0\0\0\0\0\0", "ND2": b"\xda\xce\xbe\x0a\x10\0\0\0", "KTX": b"\xabKTX 11\xbb\r\n\x1a\n",
    "BPG": b"BPG\xfb\0\0", "FLIF": b"FLIF31",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HEADS))
def test_what_is_not_read_here_is_listed_under_any_name(tmp_path, name):
    (tmp_path / "picture.bin").write_bytes(HEADS[name].ljust(600, b"\0"))
    emf = b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(20)
    (tmp_path / "b.emf").write_bytes(emf)
    reasons = [error.reason for error in find_images([tmp_path]).bad]
    assert reasons == [REFUSED["WMF"], REFUSED[name]]


def test_words_are_no_pictures(tmp_path):
    (tmp_path / "page.html").write_bytes(b"<!DOCTYPE html><html><svg></svg></html>")
    (tmp_path / "notes.md").write_bytes(b"Image of a cat: none\n%PDF is a format")
    (tmp_path / "data.bin").write_bytes(b"(\0\0\0" + bytes(60))
    assert find_images([tmp_path]).num_other == 3
    (tmp_path / "drawing.svgz").write_bytes(gzip.compress(b"<svg/>"))
    assert [error.reason for error in find_images([tmp_path]).bad] == [REFUSED["SVG"]]
    assert claims_image("A.PDF")
