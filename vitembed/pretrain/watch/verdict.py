"""The state of a run in words that need no dictionary: whether it is learning, and which encoder to take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from vitembed.pretrain.watch.best import Best, Look, merit
from vitembed.pretrain.watch.figures import NAMES, show_score
from vitembed.pretrain.watch.history import Context
from vitembed.pretrain.watch.scores import standard_error

Tone = Literal["good", "unsure", "bad"]


@dataclass(frozen=True)
class Verdict:
    """What is to be said about a run."""

    tone: Tone
    headline: str
    sentences: list[str] = field(default_factory=list)


def judge(best: Best, context: Context, *, majority: float | None, active: list[str], ended: bool) -> Verdict:
    """Weigh what was seen.

    Args:
        best: All points looked at.
        context: The run.
        majority: Accuracy of always naming the most common class; none without labels.
        active: Codes of the alarms in force.
        ended: Whether the run is over.
    """
    looks = best.looks
    if not looks:
        return Verdict("unsure", "Nothing was looked at yet", ["The first scores come before the first step."])
    start, now = looks[0], looks[-1]
    untrained = context.config.adapt.parent is None
    before = "the untrained encoder" if untrained else "the model that the run started from"
    if len(looks) == 1:
        sentences = [f"So far only {before} was looked at: {_figures(start, context, majority)}."]
        return Verdict("unsure", "Just started", sentences)
    gain, what = _gain(start, now, context)
    sentences = [f"{_change(name, start, now)}." for name in _shown(now)]
    if majority is not None:
        sentences.append(f"Always naming the most common class would be right for {100 * majority:.1f} %.")
    if "collapse" in active and context.compares_views:
        verdict = Verdict("bad", "Collapsed: most images look alike to this encoder", sentences)
    elif gain > 2:
        verdict = Verdict("good", "It has learned" if ended else "It is learning", sentences)
    elif gain < -2:
        headline = "Training has made it worse" if ended else "Training is making it worse"
        verdict = Verdict("bad", f"{headline} than {before}", sentences)
    else:
        share = now["progress"]
        amount = "A small gain" if gain > 1 else "No clear gain"
        headline = amount if ended else f"{amount} so far, after {share:.0%} of the run"
        verdict = Verdict("unsure" if share < 0.5 or gain > 1 else "bad", headline, sentences)
    if active and verdict.tone == "good":
        verdict = Verdict("unsure", f"{verdict.headline}, but something needs a look", sentences)
    sentences.append(_best_sentence(best, context, what))
    if not context.compares_views and "knn" not in now:
        sentences.append(
            "This objective has no term that compares views, so nothing trains the cls vector directly: judge it by "
            "the neighbours below or by labels (monitor.labels) rather than by view retrieval."
        )
    return verdict


def _gain(start: Look, now: Look, context: Context) -> tuple[float, str]:
    """What was won since the start, in standard errors of what chance can do; and what decides between encoders.

    With labels the clearer of k-NN and linear probe counts, worse only if both are.
    """
    if "knn" in now and "knn" in start:
        gains = []
        for name in ("knn", "linear"):
            noise = math.hypot(*(standard_error(look[name], max(1, context.num_queries)) for look in (start, now)))
            gains.append((now[name] - start[name]) / noise)
        return max(gains), "k-NN accuracy"
    first, last = (merit(look, context.max_rank) for look in (start, now))
    shares = [standard_error(look["view_retrieval"], context.pool_size) for look in (start, now)]
    noise = math.hypot(*(e * look["rankme"] / context.max_rank for e, look in zip(shares, (start, now), strict=True)))
    return (last - first) / noise, "RankMe x view retrieval"


def _best_sentence(best: Best, context: Context, what: str) -> str:
    chosen, last = best.look(), best.looks[-1]
    if chosen is None:
        return "No point after the start was looked at yet, so there is no best encoder."
    values = [merit(look, context.max_rank) for look in (chosen, last)]
    shown = [
        f"{100 * value:.1f} %" if "knn" in look else f"{value:.3f}"
        for value, look in zip(values, (chosen, last), strict=True)
    ]
    first = merit(best.looks[0], context.max_rank)
    if values[0] < first and chosen["step"] > 0:
        before = f"{100 * first:.1f} %" if "knn" in chosen else f"{first:.3f}"
        return (
            f"No point of the run is better by {what} than its start ({before}); the least bad one, step "
            f"{chosen['step']:,} with {shown[0]}, is kept in the folder best."
        )
    if chosen["step"] == last["step"]:
        return f"The newest encoder (step {last['step']:,}) is the best so far by {what}: {shown[0]}."
    near = ""
    if "knn" in chosen and context.num_queries:
        noise = math.hypot(*(standard_error(look["knn"], context.num_queries) for look in (chosen, last)))
        near = "; the difference is within chance" if values[0] - values[1] < 2 * noise else ""
    if chosen["step"] == 0:
        return (
            f"The best encoder by {what} is the one that the run started from ({shown[0]}; {shown[1]} at step "
            f"{last['step']:,}{near}): keep it."
        )
    return (
        f"The best encoder by {what} was that of step {chosen['step']:,} ({chosen['progress']:.0%} of the run): "
        f"{shown[0]}, against {shown[1]} at step {last['step']:,}{near}. It is kept in the folder best."
    )


def _shown(look: Mapping[str, object]) -> list[str]:
    return [name for name in ("knn", "linear", "view_retrieval", "rankme") if name in look]


def _change(name: str, start: Look, now: Look) -> str:
    if name not in start:
        return f"{NAMES[name]} is {show_score(name, now[name])}"
    verb = "rose" if now[name] > start[name] else "fell" if now[name] < start[name] else "stayed"
    if verb == "stayed":
        return f"{NAMES[name]} is {show_score(name, now[name])}, as at the start"
    return f"{NAMES[name]} {verb} from {show_score(name, start[name])} to {show_score(name, now[name])}"


def _figures(look: Look, context: Context, majority: float | None) -> str:
    parts = [f"{NAMES[name]} {show_score(name, look[name])}" for name in _shown(look)]
    if majority is not None:
        parts.append(f"always naming the most common class {100 * majority:.1f} %")
    if context.pool_size:
        parts.append(f"view retrieval by chance {100 / context.pool_size:.1f} %")
    return ", ".join(parts)
