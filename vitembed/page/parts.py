"""Parts of a report page that every report has: the document around it, sections, facts and tables."""

from __future__ import annotations

from collections.abc import Sequence

from vitembed.outputs import GENERATOR
from vitembed.page.safe_text import safe
from vitembed.page.style import STYLE

_LONG = 40
"""Letters from which on a fact gets twice the width."""


def document(title: str, body: str, *, style: str = "") -> str:
    """A whole page: no script, no other file, no network.

    Args:
        title: Plain text.
        body: HTML.
        style: CSS beyond the house's own.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"{GENERATOR}"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def section(heading: str, content: str) -> str:
    """A heading (plain text) and HTML below it."""
    return f"<section><h2>{safe(heading)}</h2>{content}</section>"


def pairs(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values, plain text, as a grid of cards."""
    cells = []
    for key, value in facts:
        wide = ' class="long"' if len(value) > _LONG else ""
        cells.append(f"<div{wide}><dt>{safe(key)}</dt><dd>{safe(value)}</dd></div>")
    return f"<dl>{''.join(cells)}</dl>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text."""
    head = "".join(f"<th>{safe(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{safe(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
