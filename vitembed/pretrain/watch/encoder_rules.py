"""Alarms about the encoder: collapsed, or learning nothing from its views. Each rule gives a message or nothing."""

from __future__ import annotations

import math

import numpy as np

from vitembed.pretrain.watch.history import Context, History
from vitembed.pretrain.watch.scores import standard_error

MIN_POOL = 32
"""With fewer images retrieval and rank say too little."""


def collapse(history: History, context: Context) -> str | None:
    """The vectors use few dimensions, all point the same way, or lie together where the objective compares them."""
    found = _few_dimensions(history, context) or _one_direction(history, context) or _no_spread(history, context)
    if found is None:
        return None
    config = context.config
    if not context.compares_views:
        return (
            f"the cls vectors carry little, as no term of the objective compares them: {found}. Most images then look "
            "alike to a search. What to do: set objective.spread=coding_rate with objective.num_views=2, or use the "
            "patches' mean in place of the cls vector (pool=mean)"
        )
    return (
        f"the cls vectors collapse: {found}. Most images then look alike to a search. What to do: raise "
        f"objective.spread_weight (now {config.objective.spread_weight:g}), lower optim.base_lr (now "
        f"{config.optim.base_lr:g}), and check in pictures/ that the images are not blank"
    )


def _few_dimensions(history: History, context: Context) -> str | None:
    looks = history.looks
    if len(looks) < 2 or context.pool_size < MIN_POOL:
        return None
    start, now = looks[0]["rankme"], looks[-1]["rankme"]
    # A run from nothing begins with few dimensions and gains some; one that lost two of three has given them up.
    if now >= max(0.02 * context.max_rank, min(0.35 * start, 0.15 * context.max_rank)):
        return None
    return f"they use {now:.1f} of {context.max_rank} possible dimensions (RankMe), {start:.1f} at the start"


def _one_direction(history: History, context: Context) -> str | None:
    looks = history.looks
    if len(looks) < 2 or not context.compares_views:
        return None
    start, now = looks[0]["mean_cosine"], looks[-1]["mean_cosine"]
    if now <= max(0.995, 0.5 + 0.5 * start):
        return None
    return f"those of different images have a mean cosine of {now:.4f}, {start:.4f} at the start"


def _no_spread(history: History, context: Context) -> str | None:
    if history.progress < context.config.optim.warmup_share:
        return None
    spreads, scales = history.values("spread"), history.values("scale")
    if len(spreads) >= 15 and (now := float(np.median(spreads[-5:]))) < 0.25 * spreads.max():
        return f"the coding rate of their projections is {now:.3g}, it was {spreads.max():.3g} (term spread)"
    if len(scales) >= 15 and (now := float(np.median(scales[-5:]))) > 0.8:
        return f"the standard deviation of their projections is near 0 where 1 is asked for (term scale {now:.2g} of 1)"
    return None


def views_not_found(history: History, context: Context) -> str | None:
    """After a good share of the run an image's other view is found no better than by chance."""
    looks = history.looks
    if not looks or looks[-1]["progress"] < 0.3 or context.pool_size < MIN_POOL or not context.compares_views:
        return None
    now, n = looks[-1]["view_retrieval"], context.pool_size
    if now * n > 1 + 3:  # by chance 1 of n is found, with a standard deviation of 1
        return None
    return (
        f"after {looks[-1]['progress']:.0%} of the run an image's other view is found in {now:.1%} of the cases, "
        f"chance is {1 / n:.1%}: the views share too little, or nothing is learned. What to do: weaker crops (raise "
        f"augment.crop_scale, now {_pair(context.config.augment.crop_scale)}), another optim.base_lr "
        f"(now {context.config.optim.base_lr:g}); look at pictures/ whether the images hold what you expect"
    )


def views_too_easy(history: History, context: Context) -> str | None:
    """The other view is found at once, so that agreeing on it teaches nothing; or found by very few features."""
    looks = history.looks
    if not looks or context.pool_size < MIN_POOL or not context.compares_views:
        return None
    start, now = looks[0], looks[-1]
    remedy = (
        f"What to do: stronger views (lower augment.crop_scale, now {_pair(context.config.augment.crop_scale)}; raise "
        "augment.brightness, contrast, saturation and gray_prob as far as the images keep their meaning)"
    )
    untrained = context.config.adapt.parent is None
    if untrained and len(looks) == 1 and start["view_retrieval"] >= 0.8:
        return (
            f"the untrained encoder finds an image's other view in {start['view_retrieval']:.0%} of the cases already: "
            f"the views hardly differ, so that there is little to learn from them. {remedy}"
        )
    if len(looks) > 1 and now["view_retrieval"] >= 0.99 and now["rankme"] < 0.05 * context.max_rank:
        return (
            f"an image's other view is found in {now['view_retrieval']:.0%} of the cases with only {now['rankme']:.1f} "
            f"of {context.max_rank} possible dimensions: a shortcut such as a colour or a border is enough. {remedy}"
        )
    return None


def worse_than_start(history: History, context: Context) -> str | None:
    """After half of the run the encoder is worse than before it."""
    looks = history.looks
    if len(looks) < 2 or looks[-1]["progress"] < 0.5:
        return None
    start, now = looks[0], looks[-1]
    was = "before the run" if context.config.adapt.parent is None else "of the model that the run started from"
    remedy = (
        f"What to do: lower optim.base_lr (now {context.config.optim.base_lr:g}), check that augment.* keeps what "
        "tells your images apart"
    )
    if context.num_queries and "knn" in now and "knn" in start:
        noise = math.hypot(*(standard_error(look["knn"], context.num_queries) for look in (start, now)))
        if now["knn"] < start["knn"] - 3 * noise:
            return f"k-NN accuracy is {now['knn']:.1%}, below the {start['knn']:.1%} {was}. {remedy}"
        return None
    if context.pool_size < MIN_POOL or not context.compares_views:
        return None
    noise = math.hypot(*(standard_error(look["view_retrieval"], context.pool_size) for look in (start, now)))
    if now["view_retrieval"] < start["view_retrieval"] - 3 * noise and now["rankme"] < start["rankme"]:
        return (
            f"view retrieval ({now['view_retrieval']:.1%}) and RankMe ({now['rankme']:.1f}) are below those {was} "
            f"({start['view_retrieval']:.1%} and {start['rankme']:.1f}). {remedy}"
        )
    return None


def _pair(values: tuple[float, float]) -> str:
    return f"[{values[0]:g}, {values[1]:g}]"
