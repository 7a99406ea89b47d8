"""``report.html``: a run on one page that opens without a server: no script, no other file, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, features

from vitembed.page.parts import document, pairs, section, table
from vitembed.page.safe_text import safe
from vitembed.pretrain.watch.alarms import Alarm
from vitembed.pretrain.watch.curves import Curve, draw
from vitembed.pretrain.watch.verdict import Verdict

_NUM_PATHS = 50
"""Files that are listed for each reason."""


@dataclass(frozen=True)
class Sheet:
    """A picture of a point of the run."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Page:
    """Everything that the page says, in the order in which it says it; texts are plain and are escaped here."""

    title: str
    status: str
    """One word or two: running, complete, interrupted, stopped."""
    note: str
    """A line below the title."""
    verdict: Verdict
    alarms: Sequence[tuple[Alarm, bool]]
    """Every alarm of the run, and whether it is in force."""
    facts: Sequence[tuple[str, str]]
    score_columns: Sequence[str]
    score_rows: Sequence[Sequence[str]]
    """Name, values, meaning."""
    curves: Sequence[tuple[str, Sequence[Curve]]]
    """Groups of curves with a heading each."""
    last_step: int
    sheets: Sequence[tuple[str, str, Sequence[Sheet]]] = ()
    """Heading, explanation and pictures."""
    data: Sequence[tuple[str, str]] = ()
    skipped: Sequence[tuple[str, Sequence[str]]] = ()
    """Reasons and the files that were left out for them."""
    settings: Sequence[tuple[str, str, bool]] = field(default_factory=list)
    """Key, value, and whether it differs from the default."""


def render(page: Page) -> str:
    """The page as HTML."""
    body = "\n".join(
        part
        for part in (
            _head(page),
            _alarms(page.alarms),
            section("The run", pairs(page.facts)),
            section("What the encoder knows", table(page.score_columns, page.score_rows)) if page.score_rows else "",
            *(_curves(heading, curves, page.last_step) for heading, curves in page.curves),
            *(_sheets(heading, note, sheets) for heading, note, sheets in page.sheets),
            section("The images", pairs(page.data) + _skipped(page.skipped)) if page.data else "",
            _settings(page.settings),
        )
        if part
    )
    return document(page.title, body)


def _head(page: Page) -> str:
    sentences = "".join(f"<li>{safe(sentence)}</li>" for sentence in page.verdict.sentences)
    return (
        f'<header><h1>{safe(page.title)} <span class="chip">{safe(page.status)}</span></h1>'
        f'<p class="soft">{safe(page.note)}</p></header>\n'
        f'<section class="verdict {page.verdict.tone}"><h2>{safe(page.verdict.headline)}</h2>'
        f"<ul>{sentences}</ul></section>"
    )


def _alarms(alarms: Sequence[tuple[Alarm, bool]]) -> str:
    if not alarms:
        return ""
    items = []
    for alarm, active in alarms:
        cause, _, remedy = alarm.message.partition(" What to do: ")
        what = f'<p class="remedy"><b>What to do:</b> {safe(remedy)}</p>' if remedy else ""
        state = "now" if active else "over"
        items.append(
            f'<li class="{state}"><b>{safe(alarm.code.replace("_", " "))}</b> <span class="soft">from step '
            f"{alarm.step:,}{'' if active else ', over by now'}</span><p>{safe(cause)}</p>{what}</li>"
        )
    return f'<section class="alarms"><h2>Alarms</h2><ul>{"".join(items)}</ul></section>'


def _curves(heading: str, curves: Sequence[Curve], last_step: int) -> str:
    drawn = "".join(draw(curve, last_step=last_step) for curve in curves)
    return section(heading, f'<div class="curves">{drawn}</div>') if drawn else ""


def _sheets(heading: str, note: str, sheets: Sequence[Sheet]) -> str:
    figures = "".join(
        f'<figure class="sheet"><figcaption>{safe(sheet.caption)}</figcaption>{_picture(sheet)}</figure>'
        for sheet in sheets
        if sheet.path.is_file()
    )
    return section(heading, f'<p class="soft">{safe(note)}</p><div class="sheets">{figures}</div>') if figures else ""


def _picture(sheet: Sheet) -> str:
    with Image.open(sheet.path) as image:
        buffer, kind = io.BytesIO(), "webp" if features.check("webp") else "png"  # webp: a tenth of the bytes
        image.save(buffer, kind.upper(), **({"quality": 85} if kind == "webp" else {}))
        size = f'width="{image.width}" height="{image.height}"'
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/{kind};base64,{data}" {size} alt="{safe(sheet.caption)}">'


def _skipped(skipped: Sequence[tuple[str, Sequence[str]]]) -> str:
    parts = []
    for reason, paths in skipped:
        files = "".join(f"<li>{safe(path)}</li>" for path in paths[:_NUM_PATHS])
        more = f"<li>and {len(paths) - _NUM_PATHS:,} more</li>" if len(paths) > _NUM_PATHS else ""
        count = f"{len(paths):,} skipped" if len(paths) > 1 else "1 skipped"
        parts.append(
            f'<details><summary>{count}: {safe(reason)}</summary><ul class="paths">{files}{more}</ul></details>'
        )
    return "".join(parts)


def _settings(settings: Sequence[tuple[str, str, bool]]) -> str:
    if not settings:
        return ""
    rows = "".join(
        f'<tr class="{"own" if differs else ""}"><td>{safe(key)}</td><td>{safe(value)}</td></tr>'
        for key, value, differs in settings
    )
    return (
        "<section><h2>Settings</h2><details><summary>All of them; what differs from the defaults is bold</summary>"
        f'<div class="wide"><table class="settings"><tbody>{rows}</tbody></table></div></details></section>'
    )
