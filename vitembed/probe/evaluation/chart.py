"""Drawings of the probe's page: the few-shot curve as SVG and the confusion matrix as a table. No script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from vitembed.page.axis import axis
from vitembed.page.safe_text import safe
from vitembed.probe.evaluation.few_shot import FewShotPoint

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 12, 40
NUM_COLOURS = 6
"""Curves after the sixth begin again with the first colour."""


def few_shot_chart(series: Sequence[tuple[str, Sequence[FewShotPoint]]], levels: Sequence[tuple[str, float]]) -> str:
    """Accuracy over shots on a doubling axis; the band spans the lowest and the highest draw.

    Args:
        series: A curve for each encoder, with its name.
        levels: Horizontal lines to compare with.

    Returns:
        HTML; empty when there is no point.
    """
    shots = sorted({point.shots for _, points in series for point in points})
    if not shots:
        return ""
    values = [value for _, points in series for point in points for value in point.accuracies]
    low, high, ticks = axis(min([*values, *(value for _, value in levels)]), max([*values, *(v for _, v in levels)]))
    low, high = max(low, 0.0), min(high, 1.0)
    ticks = [tick for tick in ticks if low <= tick <= high + 1e-9]
    last = max(1.0, math.log2(shots[-1]))

    def x(number: int) -> float:
        return _LEFT + 8 + (WIDTH - _LEFT - _RIGHT - 16) * math.log2(number) / last

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="tick" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="num end" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}">{100 * tick:.3g} %</text>')
    for number in shots:
        parts.append(f'<text class="num mid" x="{x(number):.1f}" y="{HEIGHT - _BOTTOM + 16}">{number}</text>')
    middle = (WIDTH + _LEFT - _RIGHT) / 2
    parts.append(f'<text class="num mid" x="{middle}" y="{HEIGHT - 4}">labelled images of each class</text>')
    for name, value in levels:
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text class="level end" x="{WIDTH - _RIGHT - 2}" y="{y(value) - 4:.1f}">{safe(name)}</text>'
        )
    for number, (name, points) in enumerate(series):
        if points:
            parts.append(_curve(name, points, f"s{number % NUM_COLOURS}", x, y))
    legend = "".join(
        f'<span class="key s{number % NUM_COLOURS}">{safe(name)}</span>' for number, (name, _) in enumerate(series)
    )
    label = safe("accuracy by labelled images of each class: " + "; ".join(_in_words(*item) for item in series))
    return (
        f'<figure class="curve">{f"<figcaption><p>{legend}</p></figcaption>" if len(series) > 1 else ""}'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _curve(
    name: str, points: Sequence[FewShotPoint], tone: str, x: Callable[[int], float], y: Callable[[float], float]
) -> str:
    upper = [f"{x(point.shots):.1f},{y(max(point.accuracies)):.1f}" for point in points]
    lower = [f"{x(point.shots):.1f},{y(min(point.accuracies)):.1f}" for point in reversed(points)]
    line = " ".join(f"{x(point.shots):.1f},{y(point.accuracy):.1f}" for point in points)
    dots = "".join(
        f'<circle cx="{x(point.shots):.1f}" cy="{y(point.accuracy):.1f}" r="3.5"><title>{safe(name)}, {point.shots} of '
        f"each class: {100 * point.accuracy:.1f} % ({100 * min(point.accuracies):.1f} to "
        f"{100 * max(point.accuracies):.1f})</title></circle>"
        for point in points
    )
    return f'<g class="{tone}"><polygon points="{" ".join(upper + lower)}"/><polyline points="{line}"/>{dots}</g>'


def _in_words(name: str, points: Sequence[FewShotPoint]) -> str:
    return f"{name} " + ", ".join(f"{100 * point.accuracy:.1f} % at {point.shots}" for point in points)


def confusion_table(counts: Int[np.ndarray, "c c"], names: Sequence[str]) -> str:
    """Rows are true classes, columns answers; shade is the share of the row, blue where right and red where wrong."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = "".join(f'<th scope="col"><span>{safe(name)}</span></th>' for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(
            f'<td class="{"right" if i == j else "wrong"}" style="--share:{100 * shares[i, j]:.0f}%" '
            f'title="{safe(name)} taken for {safe(names[j])}: {counts[i, j]:,}">{counts[i, j] or ""}</td>'
            for j in range(len(names))
        )
        rows.append(f'<tr><th scope="row">{safe(name)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="confusion"><thead><tr><td class="corner">true \\ answer</td>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


CHART_STYLE = """
:root { --s0: #2f6fb3; --s1: #c2571a; --s2: #1a7f4b; --s3: #8a4fbf; --s4: #a8860b; --s5: #c0366f; }
@media (prefers-color-scheme: dark) { :root { --s0: #7db4f0; --s1: #f29a63; --s2: #4cc38a; --s3: #c79bf2;
  --s4: #e0c04c; --s5: #f285b0; } }
.s0 { --tone: var(--s0); } .s1 { --tone: var(--s1); } .s2 { --tone: var(--s2); } .s3 { --tone: var(--s3); }
.s4 { --tone: var(--s4); } .s5 { --tone: var(--s5); }
svg g polygon { fill: var(--tone); opacity: .18; stroke: none; }
svg g polyline { fill: none; stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; }
svg g circle { fill: var(--tone); } svg .mid { text-anchor: middle; }
.key { margin-right: 1.2rem; } .key::before { content: "\\25CF\\00A0"; color: var(--tone); }
.confusion { width: auto; font-size: .8rem; }
.confusion th, .confusion td { padding: .2rem .4rem; border: 1px solid var(--line); text-align: right; }
.confusion thead th { height: 6.5rem; vertical-align: bottom; }
.confusion thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 6rem; overflow: hidden; }
.confusion tbody th { max-width: 14rem; overflow: hidden; text-overflow: ellipsis; }
.confusion .corner { color: var(--soft); vertical-align: bottom; }
.confusion .right { background: color-mix(in srgb, var(--s0) calc(var(--share) * .6), var(--card)); }
.confusion .wrong { background: color-mix(in srgb, var(--bad) calc(var(--share) * .8), var(--card)); }
"""
