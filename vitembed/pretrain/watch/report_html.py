"""``report.html``: a run on one page that opens without a server: no script, no other file, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, features

from vitembed.pretrain.watch.alarms import Alarm
from vitembed.pretrain.watch.curves import Curve, draw
from vitembed.pretrain.watch.safe_text import safe
from vitembed.pretrain.watch.verdict import Verdict

_NUM_PATHS = 50
"""Files that are listed for each reason."""
_LONG = 40
"""Letters from which on a fact gets twice the width."""


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
            _section("The run", _pairs(page.facts)),
            _section("What the encoder knows", _table(page.score_columns, page.score_rows)) if page.score_rows else "",
            *(_curves(heading, curves, page.last_step) for heading, curves in page.curves),
            *(_sheets(heading, note, sheets) for heading, note, sheets in page.sheets),
            _section("The images", _pairs(page.data) + _skipped(page.skipped)) if page.data else "",
            _settings(page.settings),
        )
        if part
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(page.title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


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


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{safe(heading)}</h2>{content}</section>"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    cells = []
    for key, value in pairs:
        wide = ' class="long"' if len(value) > _LONG else ""
        cells.append(f"<div{wide}><dt>{safe(key)}</dt><dd>{safe(value)}</dd></div>")
    return f"<dl>{''.join(cells)}</dl>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{safe(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{safe(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _curves(heading: str, curves: Sequence[Curve], last_step: int) -> str:
    drawn = "".join(draw(curve, last_step=last_step) for curve in curves)
    return _section(heading, f'<div class="curves">{drawn}</div>') if drawn else ""


def _sheets(heading: str, note: str, sheets: Sequence[Sheet]) -> str:
    figures = "".join(
        f'<figure class="sheet"><figcaption>{safe(sheet.caption)}</figcaption>{_picture(sheet)}</figure>'
        for sheet in sheets
        if sheet.path.is_file()
    )
    return _section(heading, f'<p class="soft">{safe(note)}</p><div class="sheets">{figures}</div>') if figures else ""


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


_STYLE = """
:root { color-scheme: light dark; --back: #f6f6f4; --card: #fff; --text: #1c1c1a; --soft: #6b6b66; --line: #dddcd6;
  --curve: #2f6fb3; --good: #1a7f4b; --unsure: #a86a00; --bad: #c0362c; }
@media (prefers-color-scheme: dark) { :root { --back: #161615; --card: #222220; --text: #ecebe6; --soft: #a3a29b;
  --line: #3a3935; --curve: #7db4f0; --good: #4cc38a; --unsure: #f0b040; --bad: #ff8a7d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .7rem; }
.soft { color: var(--soft); }
header p { margin: .2rem 0 1.2rem; }
.chip { font-size: .8rem; font-weight: 500; vertical-align: middle; padding: .15rem .6rem; border-radius: 1rem;
  border: 1px solid var(--line); color: var(--soft); white-space: nowrap; }
section { margin: 0 0 1.4rem; }
.verdict, .alarms li { background: var(--card); border: 1px solid var(--line); border-left: 5px solid var(--tone);
  border-radius: .6rem; padding: .9rem 1.2rem; }
.verdict h2 { font-size: 1.3rem; color: var(--tone); margin-bottom: .3rem; }
.verdict ul { margin: 0; padding-left: 1.2rem; }
.good { --tone: var(--good); } .unsure { --tone: var(--unsure); } .bad { --tone: var(--bad); }
.alarms ul { list-style: none; margin: 0; padding: 0; display: grid; gap: .6rem; }
.alarms li { --tone: var(--unsure); } .alarms li.over { --tone: var(--line); }
.alarms p { margin: .25rem 0 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem; margin: 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .5rem .8rem; }
dt { color: var(--soft); font-size: .8rem; }
.long { grid-column: span 2; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line); }
th, td { text-align: left; padding: .4rem .8rem; border-top: 1px solid var(--line); vertical-align: top;
  font-variant-numeric: tabular-nums; }
th, td:first-child { white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; border-top: 0; }
td:last-child { overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: .8rem; }
.curve, .sheet { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: .7rem .9rem; }
.curve figcaption { display: flex; justify-content: space-between; gap: 1rem; margin-bottom: .3rem; }
.curve figcaption i { font-style: normal; font-variant-numeric: tabular-nums; white-space: nowrap; }
.curve p { margin: .2rem 0 0; color: var(--soft); font-size: .82rem; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; overflow: visible; font: 11px system-ui, sans-serif; }
svg .line { fill: none; stroke: var(--curve); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .tick { stroke: var(--line); stroke-width: 1; }
svg .level.end { fill: var(--soft); paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg line.level { stroke: var(--soft); stroke-dasharray: 4 4; }
svg .num { fill: var(--soft); font-variant-numeric: tabular-nums; } svg .end { text-anchor: end; }
svg .dot { fill: var(--curve); } svg .best { fill: var(--good); stroke: var(--card); stroke-width: 1.5; }
.sheets { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: .8rem; }
.sheet { max-width: 36rem; } .sheet figcaption { margin-bottom: .4rem; font-size: .9rem; }
.sheet img { display: block; width: 100%; height: auto; border-radius: .3rem; }
details { margin-top: .7rem; } summary { cursor: pointer; }
.paths { margin: .3rem 0 0; font-size: .85rem; overflow-wrap: anywhere; }
.settings td { font: .82rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; padding: .15rem .8rem; }
.settings .own td { font-weight: 700; }
@media (max-width: 36rem) { body { padding: .8rem; } .long { grid-column: auto; } }
@media print { details { display: block; } }
"""
