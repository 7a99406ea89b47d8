"""Curves as inline SVG: no library, no script, readable in light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitembed.page.axis import axis
from vitembed.page.safe_text import safe

WIDTH, HEIGHT = 360, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 22
MAX_POINTS = 300
"""A line with more is averaged over bins: more cannot be seen at this width."""


@dataclass(frozen=True)
class Curve:
    """One series over the steps of a run."""

    title: str
    steps: Sequence[int]
    values: Sequence[float]
    explanation: str = ""
    """What it means and which way is good."""
    as_percent: bool = False
    from_zero: bool = False
    """Whether the axis begins at 0."""
    dots: bool = False
    """Few points, each shown."""
    levels: Sequence[tuple[str, float]] = ()
    """Horizontal lines to compare with, such as chance."""
    marked_step: int | None = None
    """A step to point out: that of the best encoder."""


def draw(curve: Curve, *, last_step: int) -> str:
    """A figure with title, newest value, curve and axes; nothing if there is no finite value.

    Args:
        curve: What to show.
        last_step: Right end of the axis.
    """
    points = [
        (float(step), value) for step, value in zip(curve.steps, curve.values, strict=True) if math.isfinite(value)
    ]
    if not points:
        return ""
    newest = points[-1][1]
    shown = points if curve.dots else binned(points)
    levels = [(name, value) for name, value in curve.levels if math.isfinite(value)]
    values = [value for _, value in shown] + [value for _, value in levels] + ([0.0] if curve.from_zero else [])
    low, high, ticks = axis(min(values), max(values))
    right = max(last_step, 1)

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / right

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    parts = []
    for tick in ticks:
        parts.append(f'<line class="tick" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="num end" x="{_LEFT - 6}" y="{y(tick) + 3.5:.1f}">{_tick(tick, curve)}</text>')
    parts.append(f'<text class="num" x="{_LEFT}" y="{HEIGHT - 6}">0</text>')
    parts.append(f'<text class="num end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}">step {right:,}</text>')
    for name, value in levels:
        parts.append(
            f'<line class="level" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text class="level end" x="{WIDTH - _RIGHT - 2}" y="{y(value) - 4:.1f}">{safe(name)}</text>'
        )
    path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in shown)
    parts.append(f'<polyline class="line" points="{path}"/>')
    if curve.dots:
        for step, value in shown:
            best = step == curve.marked_step
            parts.append(
                f'<circle class="{"best" if best else "dot"}" cx="{x(step):.1f}" cy="{y(value):.1f}" '
                f'r="{5 if best else 3}"><title>step {step:,.0f}: {_number(value, curve)}</title></circle>'
            )
    label = safe(f"{curve.title}: {_number(newest, curve)} at step {points[-1][0]:.0f}")
    body = "".join(parts)
    return (
        f'<figure class="curve"><figcaption><b>{safe(curve.title)}</b><i>{_number(newest, curve)}</i></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
        f"<p>{safe(curve.explanation)}</p></figure>"
    )


def binned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MAX_POINTS`` points: means over bins of equally many, the first and the last point as they are."""
    if len(points) <= MAX_POINTS:
        return list(points)
    inner, bins = points[1:-1], MAX_POINTS - 2
    edges = [round(i * len(inner) / bins) for i in range(bins + 1)]
    means = []
    for start, end in itertools.pairwise(edges):
        part = inner[start:end]
        means.append((sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)))
    return [points[0], *means, points[-1]]


def _number(value: float, curve: Curve) -> str:
    if curve.as_percent:
        return f"{100 * value:.1f} %"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _tick(value: float, curve: Curve) -> str:
    return f"{100 * value:.3g} %" if curve.as_percent else _number(value, curve)
