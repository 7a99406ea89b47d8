"""The runs as a Markdown table and as curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

Record = dict[str, Any]
Row = tuple[str, float]
"""Method and multiple of its documented learning rate."""

_SCORES = ("knn_plain", "knn_whitened", "linear", "knn_mean", "rankme")
# Colours that stay apart for colour-blind readers (Okabe and Ito); ours come first.
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888")


def by_data(records: Sequence[Record]) -> dict[tuple[str, int], list[Record]]:
    """Runs by data set and number of images to learn from."""
    sets: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        sets[record["data"], record["num_train"]].append(record)
    return dict(sorted(sets.items()))


def rows_of(records: Sequence[Record]) -> dict[Row, list[Record]]:
    """Runs by method: at the documented learning rate, and at the one that was used beyond the smallest budget."""
    rows: dict[Row, list[Record]] = defaultdict(list)
    for record in records:
        rows[label_of(record), record["lr_scale"]].append(record)
    budgets = {key: {record["minutes"] for record in runs} for key, runs in rows.items()}
    kept: dict[Row, list[Record]] = {}
    for (method, scale), runs in rows.items():
        others = [key for key in rows if key[0] == method]
        longest = max(max(budgets[key]) for key in others)
        best = max(others, key=lambda key: (max(budgets[key]), max(run["knn"] for run in rows[key])))
        if scale == 1 or (max(budgets[method, scale]) == longest and (method, scale) == best):
            kept[method, scale] = runs
    return kept


def label_of(record: Record) -> str:
    """Method, and the settings that all methods of that sweep shared."""
    return " ".join([record["method"], *record["settings"]])


def mean_of(runs: Sequence[Record], minutes: float, score: str) -> tuple[float, float, int]:
    """Mean and standard deviation over the seeds, and their number."""
    values = [run[score] for run in runs if run["minutes"] == minutes and score in run]
    if not values:
        return math.nan, 0.0, 0
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, len(values)


def cell(runs: Sequence[Record], minutes: float, score: str, digits: int = 1) -> str:
    mean, spread, count = mean_of(runs, minutes, score)
    if count == 0:
        return ""
    return f"{mean:,.{digits}f}" + (f" ± {spread:.1f} ({count})" if count > 1 else "")


def markdown_report(records: Sequence[Record]) -> str:
    """One table per data set, best at the longest budget first."""
    parts = []
    for (data, count), runs in by_data(records).items():
        floors = [run for run in runs if run["minutes"] == 0]
        rows = rows_of([run for run in runs if run["minutes"] > 0])
        budgets = sorted({run["minutes"] for run in runs if run["minutes"] > 0})
        backbones = sorted({run["backbone"] for run in runs if "backbone" in run})
        lines = ["; ".join([f"### {data}: {count:,} images to learn from", *backbones]), ""]
        head = ["method", "lr", *(f"k-NN, {m:g} min" for m in budgets)]
        head += ["not whitened", "whitened", "linear", "k-NN of mean", "RankMe", "images", "images/s"]
        lines += [" | ".join(["", *head, ""]).strip(), "|---" * 2 + "|---:" * (len(head) - 2) + "|"]

        def order(item: tuple[Row, list[Record]], budgets: list[float] = budgets) -> tuple[float, ...]:
            scores = [mean_of(item[1], minutes, "knn")[0] for minutes in reversed(budgets)]
            return tuple(0.0 if math.isnan(score) else -score for score in scores)

        for (method, scale), found in sorted(rows.items(), key=order):
            last = max(run["minutes"] for run in found)
            cells = [method, "as documented" if scale == 1 else f"x{scale:g}"]
            if method.startswith("ours"):
                cells[1] = "as shipped" if scale == 1 else cells[1]
            cells += [cell(found, minutes, "knn") for minutes in budgets]
            cells += [cell(found, last, score) for score in _SCORES]
            cells += [
                cell(found, last, "images", 0).split(" ±")[0],
                cell(found, last, "images_per_second", 0).split(" ±")[0],
            ]
            lines.append("| " + " | ".join(cells) + " |")
        for run in floors:
            cells = [run["method"], "", *(f"{run['knn']:.1f}" for _ in budgets)]
            cells += [*(f"{run[score]:.1f}" if score in run else "" for score in _SCORES), "", ""]
            lines.append("| " + " | ".join(cells) + " |")
        tried = sweep_lines([run for run in runs if run["minutes"] > 0])
        parts.append("\n".join(lines + (["", *tried] if tried else [])))
    return "\n\n".join(parts) + "\n"


def sweep_lines(records: Sequence[Record]) -> list[str]:
    """What the learning-rate sweeps gave, a line per method."""
    rows: dict[str, dict[float, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        rows[label_of(record)][record["lr_scale"]].append(record)
    lines = []
    for method, scales in rows.items():
        shortest = min(run["minutes"] for runs in scales.values() for run in runs)
        scores = {scale: mean_of(scales[scale], shortest, "knn")[0] for scale in sorted(scales)}
        found = [f"x{scale:g}: {score:.1f}" for scale, score in scores.items() if not math.isnan(score)]
        if len(found) > 1:
            lines.append(f"- {method}, k-NN at {shortest:g} min by learning rate: {', '.join(found)}")
    return lines


def svg_curves(records: Sequence[Record]) -> str:
    """k-NN over the budget, one line per method, names at the lines' ends; floors are dashed."""
    trained = rows_of([record for record in records if record["minutes"] > 0])
    best: dict[str, list[Record]] = {}
    for (method, _), runs in sorted(trained.items(), key=lambda item: max(run["knn"] for run in item[1])):
        best[method] = runs  # the better of documented and tuned
    floors = {run["method"]: run["knn"] for run in records if run["minutes"] == 0}
    minutes = sorted({record["minutes"] for record in records if record["minutes"] > 0})
    if not minutes:
        return '<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>\n'
    curves = {
        method: [(m, mean_of(runs, m, "knn")[0]) for m in minutes if any(run["minutes"] == m for run in runs)]
        for method, runs in best.items()
    }
    values = [y for curve in curves.values() for _, y in curve] + list(floors.values())
    low, high = 5 * math.floor(min(values) / 5), 5 * math.ceil(max(values) / 5 + 0.01)
    width, height, left, right, top, bottom = 860, 480, 50, 250, 36, 44
    first, last = math.log2(minutes[0]), math.log2(minutes[-1])

    def at(m: float, y: float) -> tuple[float, float]:
        share = (math.log2(m) - first) / (last - first) if last > first else 1.0
        return left + share * (width - left - right), height - bottom - (y - low) / (high - low) * (
            height - top - bottom
        )

    title = f"{escape(records[0]['data'])}: k-NN accuracy of the cls vector, %"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="20" font-size="14">{title}</text>',
        f'<text x="{(left + width - right) / 2}" y="{height - 8}" text-anchor="middle">CPU-minutes</text>',
    ]
    for y in range(low, high + 1, 5):
        _, py = at(minutes[0], y)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{py:.1f}" y2="{py:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{py + 4:.1f}" text-anchor="end">{y}</text>')
    for m in minutes:
        px, _ = at(m, low)
        parts.append(f'<text x="{px:.1f}" y="{height - bottom + 18}" text-anchor="middle">{m:g}</text>')
    names: list[tuple[float, str, str]] = []
    for method, y in floors.items():
        _, py = at(minutes[0], y)
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{py:.1f}" y2="{py:.1f}" stroke="#888" stroke-dasharray="5 4"/>'
        )
        names.append((py, method, "#666"))
    by_kind = sorted(curves, key=lambda method: (not method.startswith("ours"), -curves[method][-1][1]))
    for place, method in enumerate(by_kind):
        colour = _COLOURS[place % len(_COLOURS)]
        points = [at(m, y) for m, y in curves[method]]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        weight = 2.5 if method.startswith("ours") else 1.5
        dots = ' stroke-dasharray="2 3"' if place >= len(_COLOURS) else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{weight}"{dots}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        names.append((points[-1][1], method, colour))
    # Names are pushed down until none lies on another.
    y_free = 0.0
    for y, method, colour in sorted(names):
        y_free = max(y + 4, y_free + 13)
        parts.append(f'<text x="{width - right + 10}" y="{y_free:.1f}" fill="{colour}">{escape(method)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
