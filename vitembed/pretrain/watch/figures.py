"""The scores of a run as people read them: their names, how they are written, from where to where they went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "knn": "k-NN accuracy",
    "linear": "Linear probe accuracy",
    "view_retrieval": "View retrieval",
    "rankme": "RankMe",
    "mean_cosine": "Mean cosine",
}
"""Scores of the monitors, in the order of their weight."""
SHARES = ("knn", "linear", "view_retrieval")
"""Those that are shares of images."""


def show_score(name: str, value: int | float) -> str:
    """A score as people read it."""
    if name in SHARES:
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if name == "rankme" else f"{value:.3f}"


def key_figures(monitor: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what a run came to, ``23.8 % -> 45.0 %`` from start to end; empty where nobody looked.

    Args:
        monitor: As ``PretrainResult.monitor``.
    """
    looks = monitor.get("looks") or []
    if not looks:
        return []
    start, end = looks[0], looks[-1]
    rows = []
    for name, label in NAMES.items():
        if name in start and name in end and name != "mean_cosine":
            value = f"{show_score(name, start[name])} -> {show_score(name, end[name])}"
            if name == "knn" and monitor.get("majority") is not None:
                value += f" (most common class: {show_score(name, monitor['majority'])})"
            rows.append((label, value))
    best = next((look for look in looks if look["step"] == monitor.get("best_step")), None)
    if best is not None and best is not end:
        names = ("knn",) if "knn" in best else ("view_retrieval", "rankme")
        scores = ", ".join(f"{NAMES[name]} {show_score(name, best[name])}" for name in names)
        kept = "exported" if monitor.get("exported") == "best" else "kept in the run's folder best"
        rows.append(("best", f"step {best['step']:,}, {scores}: {kept}"))
    return rows
