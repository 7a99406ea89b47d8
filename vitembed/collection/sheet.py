"""Contact sheets: one self-contained HTML file with queries on top and what was found for them below."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vitembed.errors import BadImage
from vitembed.outputs import GENERATOR, PAGE, check_output, write_output
from vitembed.page.picture import jpeg_uri
from vitembed.page.picture import thumbnail as thumbnail  # callers of sheets draw single pictures too
from vitembed.page.safe_text import safe


@dataclass(frozen=True)
class SheetImage:
    """One picture with what is to be said about it."""

    image: str | os.PathLike[str] | np.ndarray | Image.Image
    """A path, or an image in memory (uint8 ``[h, w, 3]``)."""
    captions: Sequence[str] = ()
    """Lines below it; the first one stands out."""
    tone: Literal["good", "bad"] | None = None
    """A green or red border, with a tick or a cross, as for a right or wrong class."""


@dataclass(frozen=True)
class SheetRow:
    """Queries, mostly one, and what was found, best first."""

    query: SheetImage | Sequence[SheetImage]
    hits: Sequence[SheetImage]

    def queries(self) -> list[SheetImage]:
        """The queries as a list."""
        return [self.query] if isinstance(self.query, SheetImage) else list(self.query)


def write_sheet(
    path: str | os.PathLike[str], title: str, rows: Sequence[SheetRow], note: str = "", *, thumb_px: int = 240
) -> None:
    """Write an HTML page with the thumbnails inside: no script, no other file, no network.

    Args:
        path: The file (``.html``); a page of ours that is there is replaced whole or not at all.
        title: Heading.
        rows: One block each.
        note: A line below the heading.
        thumb_px: Longer side of a thumbnail. One takes about 10 KB.

    Raises:
        DataError: If the file cannot be written or holds something else. An image that cannot be read is shown as an
            empty frame.
    """
    check_output(path, PAGE)
    blocks = "\n".join(_block(row, thumb_px) for row in rows)
    page = _PAGE.format(generator=GENERATOR, title=safe(title), note=safe(note), style=_STYLE, blocks=blocks)
    write_output(path, PAGE, page)


def problem_of(item: SheetImage, error: BadImage) -> str:
    """What to show in place of a picture."""
    missing = isinstance(item.image, (str, os.PathLike)) and not Path(item.image).exists()
    return "file is missing" if missing else error.reason


def _block(row: SheetRow, thumb_px: int) -> str:
    queries = "".join(_figure(item, thumb_px) for item in row.queries())
    hits = "".join(_figure(item, thumb_px) for item in row.hits) or "<p>nothing found</p>"
    return f'<section><div class="grid query">{queries}</div><div class="grid">{hits}</div></section>'


def _figure(item: SheetImage, thumb_px: int) -> str:
    lines = [safe(line) for line in item.captions]
    try:
        picture = thumbnail(item.image, thumb_px)
        size = f'width="{picture.width}" height="{picture.height}"'
        shown = f'<img src="{jpeg_uri(picture)}" {size} alt="{lines[-1] if lines else ""}">'
    except BadImage as error:
        shown = f'<div class="missing">{safe(problem_of(item, error))}</div>'
    tone = "" if item.tone is None else f' class="{item.tone}"'
    caption = "".join(f"<b>{line}</b>" if place == 0 else f"<span>{line}</span>" for place, line in enumerate(lines))
    return f"<figure{tone}>{shown}<figcaption>{caption}</figcaption></figure>"


_STYLE = """
:root { color-scheme: light dark; --back: #f6f6f4; --card: #fff; --text: #1c1c1a; --soft: #6b6b66; --line: #dddcd6;
  --good: #1a7f4b; --bad: #c0362c; }
@media (prefers-color-scheme: dark) { :root { --back: #161615; --card: #222220; --text: #ecebe6; --soft: #a3a29b;
  --line: #3a3935; --good: #4cc38a; --bad: #ff8a7d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem; max-width: 90rem; background: var(--back); color: var(--text);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; }
p { color: var(--soft); margin: .3rem 0 1.2rem; }
section { border-top: 1px solid var(--line); padding: 1rem 0 1.5rem; }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.query { margin-bottom: 1rem; }
figure { margin: 0; padding: .45rem; background: var(--card); border: 2px solid var(--line); border-radius: .6rem; }
.query figure { border-color: var(--text); }
figure.good { border-color: var(--good); }
figure.bad { border-color: var(--bad); }
img, .missing { display: block; width: 100%; height: 9.5rem; object-fit: contain; border-radius: .35rem; }
.missing { display: grid; place-items: center; text-align: center; padding: .5rem; color: var(--soft);
  border: 1px dashed var(--soft); }
figcaption { margin-top: .4rem; overflow-wrap: anywhere; font-size: .8rem; }
figcaption b { display: block; font-variant-numeric: tabular-nums; }
figcaption span { display: block; color: var(--soft); }
.good b::before { content: "\\2713  "; color: var(--good); }
.bad b::before { content: "\\2717  "; color: var(--bad); }
@media (max-width: 30rem) { body { padding: .8rem; } .grid { grid-template-columns: repeat(2, 1fr); gap: .5rem; } }
@media print { body { background: none; } figure { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{generator}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p>{note}</p>
{blocks}
</body>
</html>
"""
