"""The same contact sheet as one picture, for logs and monitors: a line per row, its query on the left."""

from __future__ import annotations

import os
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from vitembed.collection.sheet import SheetImage, SheetRow, problem_of, thumbnail
from vitembed.errors import BadImage, printable
from vitembed.outputs import PICTURE, PICTURE_SOFTWARE, check_output, output_file

_BACK, _TEXT, _SOFT, _FRAME = "#ffffff", "#1c1c1a", "#6b6b66", "#dddcd6"
_TONES = {None: _FRAME, "good": "#1a7f4b", "bad": "#c0362c"}
_Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
_GAP_PX, _BORDER_PX, _LINE_PX, _FONT_PX, _TITLE_PX = 8, 3, 15, 12, 18


def sheet_png(
    path: str | os.PathLike[str], title: str, rows: Sequence[SheetRow], note: str = "", *, thumb_px: int = 112
) -> None:
    """Write ``write_sheet``'s page as one PNG: ``draw_sheet``'s picture.

    Raises:
        DataError: If the file cannot be written, or holds another picture or anything else.
    """
    check_output(path, PICTURE)
    picture = draw_sheet(title, rows, note, thumb_px=thumb_px)
    texts = PngInfo()
    texts.add_text(*PICTURE_SOFTWARE)
    with output_file(path, PICTURE) as temp:
        picture.save(temp, "PNG", pnginfo=texts)


def draw_sheet(title: str, rows: Sequence[SheetRow], note: str = "", *, thumb_px: int = 112) -> Image.Image:
    """Draw queries on the left, apart from their hits; captions below, cut to the width of a thumbnail."""
    font, title_font = _font(_FONT_PX), _font(_TITLE_PX)
    num_queries = max((len(row.queries()) for row in rows), default=1)
    num_hits = max((len(row.hits) for row in rows), default=0)
    num_lines = max((len(item.captions) for row in rows for item in (*row.queries(), *row.hits)), default=0)
    cell, line = thumb_px + _GAP_PX, thumb_px + num_lines * _LINE_PX + 2 * _GAP_PX
    head = _TITLE_PX + _LINE_PX + 3 * _GAP_PX
    width = (num_queries + num_hits) * cell + 4 * _GAP_PX
    picture = Image.new("RGB", (max(width, 240), head + len(rows) * line), _BACK)
    draw = ImageDraw.Draw(picture)
    draw.text((_GAP_PX, _GAP_PX), _fit(title, title_font, picture.width - _GAP_PX), _TEXT, title_font)
    draw.text((_GAP_PX, _GAP_PX + _TITLE_PX + 4), _fit(note, font, picture.width - _GAP_PX), _SOFT, font)
    for place, row in enumerate(rows):
        top = head + place * line
        for column, item in enumerate(row.queries()):
            _cell(picture, item, _GAP_PX + column * cell, top, thumb_px, font)
        left = num_queries * cell + 3 * _GAP_PX  # a wider gap than between hits
        for column, item in enumerate(row.hits):
            _cell(picture, item, left + column * cell, top, thumb_px, font)
    return picture


def _cell(picture: Image.Image, item: SheetImage, left: int, top: int, thumb_px: int, font: _Font) -> None:
    draw = ImageDraw.Draw(picture)
    inner = thumb_px - 2 * _BORDER_PX
    try:
        small = thumbnail(item.image, inner)
        picture.paste(small, (left + (thumb_px - small.width) // 2, top + (thumb_px - small.height) // 2))
    except BadImage as error:
        draw.text((left + _GAP_PX, top + inner // 2), _fit(problem_of(item, error), font, inner), _SOFT, font)
    draw.rectangle((left, top, left + thumb_px - 1, top + thumb_px - 1), None, _TONES[item.tone], _BORDER_PX)
    for place, caption in enumerate(item.captions):
        # The end of a path tells more than its start.
        text = _fit(caption, font, thumb_px, keep_end=os.sep in caption)
        draw.text((left, top + thumb_px + 2 + place * _LINE_PX), text, _SOFT if place else _TEXT, font)


def _font(size_px: int) -> _Font:
    return ImageFont.load_default(size_px)


def _fit(text: str, font: _Font, width_px: int, *, keep_end: bool = False) -> str:
    """As much of the text as fits in the width, on one line."""
    text = printable(text)
    if isinstance(font, ImageFont.ImageFont):  # Pillow without FreeType has a bitmap font of Latin-1 only
        text = text.encode("latin-1", "replace").decode("latin-1")
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength("..." + text) > width_px:
        text = text[1:] if keep_end else text[:-1]
    return "..." + text if keep_end else text + "..."
