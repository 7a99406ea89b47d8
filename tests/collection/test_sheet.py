from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vitembed.collection.sheet import SheetImage, SheetRow, thumbnail, write_sheet
from vitembed.collection.sheet_png import draw_sheet, sheet_png
from vitembed.errors import DataError

EVIL = "<script>alert(1)</script>\"'&\n\x1b[31m\x00"


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would take them apart."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (400, 200), "red").save(path)
    return path


def write(tmp_path, rows, title="Title", note=""):
    write_sheet(tmp_path / "sheet.html", title, rows, note)
    return (tmp_path / "sheet.html").read_text(encoding="utf-8")


def test_thumbnails_are_inside_the_page(tmp_path, image):
    memory = np.full((30, 60, 3), 200, np.uint8)
    row = SheetRow(
        SheetImage(image, ["query"]), [SheetImage(memory, ["one"]), SheetImage(Image.fromarray(memory), ["two"])]
    )
    page = write(tmp_path, [row])
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in pictures]
    assert sizes == [(240, 120), (60, 30), (60, 30)]


def test_nothing_outside_is_asked_for(tmp_path, image):
    parsed = Page(write(tmp_path, [SheetRow(SheetImage(image), [SheetImage(image, ["a"], "good")])]))
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(parsed.tags)
    linked = [value for _, name, value in parsed.attributes if name in ("src", "href", "srcset", "action")]
    assert linked
    assert all(value.startswith("data:image/") for value in linked)
    style = write(tmp_path, [])
    assert "url(" not in style
    assert "@import" not in style


def test_everything_is_escaped(tmp_path, image):
    undecodable = os.fsdecode(b"\xff<b>.png")
    rows = [
        SheetRow(SheetImage(image, [EVIL, EVIL]), [SheetImage(EVIL, [EVIL]), SheetImage(undecodable, [undecodable])])
    ]
    parsed = Page(write(tmp_path, rows, title=EVIL, note=EVIL))
    assert "script" not in parsed.tags
    harmless = "html head meta title style body h1 p section div figure img figcaption b span"
    assert set(parsed.tags) <= set(harmless.split())
    assert "\x1b" not in "".join(parsed.texts)
    assert "<script>alert(1)</script>\"'&\\n\\x1b[31m\\x00" in parsed.texts
    assert "\\udcff<b>.png" in parsed.texts


def test_missing_and_broken_files_show_a_frame(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"hello")
    rows = [SheetRow(SheetImage(tmp_path / "gone.png"), [SheetImage(tmp_path / "broken.png")])]
    page = write(tmp_path, rows)
    assert '<div class="missing">file is missing</div>' in page
    assert '<div class="missing">not an image</div>' in page
    assert "<img" not in page


def test_no_hits_says_so(tmp_path, image):
    assert "nothing found" in write(tmp_path, [SheetRow(SheetImage(image), [])])


def test_several_queries_and_tones(tmp_path, image):
    row = SheetRow([SheetImage(image), SheetImage(image, tone="bad")], [SheetImage(image, tone="good")])
    page = write(tmp_path, [row])
    assert (page.count('class="bad"'), page.count('class="good"'), page.count("<figure")) == (1, 1, 3)


def test_photos_stand_upright(tmp_path):
    picture = Image.new("RGB", (40, 20), "blue")
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert thumbnail(tmp_path / "turned.jpg", 100).size == (20, 40)


def test_png_has_every_picture_in_its_place(tmp_path, image):
    green = np.zeros((50, 50, 3), np.uint8)
    green[..., 1] = 255
    rows = [
        SheetRow(
            SheetImage(image, ["query", EVIL]), [SheetImage(green, ["hit"], "good"), SheetImage(tmp_path / "gone.png")]
        ),
        SheetRow([SheetImage(image)], [SheetImage(green)]),
    ]
    sheet_png(tmp_path / "s.png", "Neighbours " * 50, rows, "a note", thumb_px=96)
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60)
    lime = (pixels[..., 1] > 200) & (pixels[..., 0] < 60) & (pixels[..., 2] < 60)
    assert red.sum() >= 2 * 85 * 40
    assert lime.sum() == 2 * 50 * 50
    assert np.flatnonzero(red.any(axis=0)).max() < np.flatnonzero(lime.any(axis=0)).min()
    assert draw_sheet("empty", []).size[0] >= 240


def test_a_folder_that_is_not_there(tmp_path, image):
    for function, name in ((write_sheet, "s.html"), (sheet_png, "s.png")):
        with pytest.raises(DataError, match="cannot write"):
            function(tmp_path / "absent" / name, "t", [])
