"""Every alarm on a series that has its cause, and none of them on series that have not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vitembed.config import AdaptConfig, AugmentConfig, ObjectiveConfig, OptimConfig, PretrainConfig
from vitembed.pretrain.watch.alarms import RULES, Alarms
from vitembed.pretrain.watch.history import Context

LINES = 200
POINTS = 5


def context(**sections):
    return Context(PretrainConfig(**sections), pool_size=256, max_rank=128, num_queries=500)


def run(seed=0, points=POINTS, lines=LINES, **series):
    """Lines of a run of a healthy kind, as measured on CIFAR-10; series replace what is said of them.

    Args:
        seed: Of the noise.
        points: How often the monitors look, the start besides.
        lines: How many.
        series: Functions of the progress, 0..1; scores are asked at the points, all else at every line.
    """
    rng = np.random.default_rng(seed)
    healthy = {
        "loss": lambda p: -0.1 - 0.9 * (1 - np.exp(-6 * p)) + 0.05 * rng.normal(),
        "align": lambda p: 0.45 + 0.2 * (1 - np.exp(-20 * p)) + 0.03 * rng.normal(),
        "spread": lambda p: 1.6 + 0.7 * (1 - np.exp(-10 * p)) + 0.02 * rng.normal(),
        "patch": lambda p: 0.8 + 0.2 * np.exp(-8 * p) + 0.04 * rng.normal(),
        "grad_norm": lambda p: 2 + 6 * np.exp(-30 * p) + 0.3 * abs(rng.normal()),
        "grad_clipped": lambda p: float(p < 0.05),
        "data_wait_share": lambda p: 0.02 + 0.02 * rng.random() + 0.5 * (rng.random() < 0.05),
        "images_per_second": lambda p: 280 + 50 * rng.random(),
        "rankme": lambda p: 19 + 4 * p,
        "view_retrieval": lambda p: 0.07 + 0.4 * p,
        "mean_cosine": lambda p: 0.63 + 0.25 * (1 - np.exp(-20 * p)),
        "knn": lambda p: 0.24 + 0.15 * p,
        "linear": lambda p: 0.27 + 0.15 * p,
    }
    series = healthy | series
    scores = ("rankme", "view_retrieval", "mean_cosine", "knn", "linear")
    made = []
    for number in range(1, lines + 1):
        progress = number / lines
        at = int(progress * points) / points
        line = {"step": number * 10, "progress": progress, "elapsed_seconds": 600 * progress}
        line |= {name: float(value(at if name in scores else progress)) for name, value in series.items() if value}
        made.append({**line, "monitor_step": round(at * lines * 10)})
    return made


def sounded(lines, ctx=None):
    alarms = Alarms(ctx or context())
    return [alarm for line in lines for alarm in alarms.feed(line)]


def codes(lines, ctx=None):
    return [alarm.code for alarm in sounded(lines, ctx)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lines", [6, 40, 200, 500])
def test_healthy_runs_are_left_in_peace(seed, lines):
    assert codes(run(seed, lines=lines)) == []
    assert codes(run(seed, lines=lines, spread=None, rankme=lambda p: 22 - 6 * p)) == []  # a little rank may go
    plateau = run(seed, lines=lines, loss=lambda p: 1 + np.exp(-40 * p) + 0.05 * np.random.default_rng(seed).normal())
    assert codes(plateau) == []  # most of the fall comes early, which is no stand-still


def test_healthy_runs_of_other_objectives_are_left_in_peace():
    nce = {"align": None, "spread": None, "patch": None, "info_nce": lambda p: 4.8 - 1.5 * p}
    assert codes(run(loss=lambda p: 4.8 - 1.5 * p, **nce), context(objective=ObjectiveConfig(spread="info_nce"))) == []
    visreg = {"spread": None, "scale": lambda p: 0.9 * np.exp(-30 * p), "shape": lambda p: 0.1, "center": lambda p: 0.0}
    assert codes(run(**visreg), context(objective=ObjectiveConfig(spread="visreg"))) == []
    # A teacher that gets better sets harder targets: its loss may rise after it fell.
    teacher = context(objective=ObjectiveConfig(teacher=True))
    assert codes(run(loss=lambda p: -1 * min(p, 0.3) / 0.3 + max(0, p - 0.3)), teacher) == []
    # Weights and rates that a continued run ramps up are no rise of the loss.
    adapted = context(adapt=AdaptConfig(parent="ab12", patch_ramp_share=0.5))
    assert codes(run(loss=lambda p: 0.5 + min(p, 0.5) - 0.3 * max(0, p - 0.5)), adapted) == []


SICK = {
    "collapse": [
        {"rankme": lambda p: 19 * np.exp(-3 * p)},
        {"rankme": lambda p: 19 - 17 * min(1, 5 * p), "spread": None},
        {"mean_cosine": lambda p: 1 - 0.3 * np.exp(-30 * p)},
        {"spread": lambda p: 1.6 * np.exp(-20 * p)},
        {"spread": None, "scale": lambda p: 0.95},
    ],
    "views_not_found": [{"view_retrieval": lambda p: 0.004 + 0.004 * (p == 0)}],
    "views_too_easy": [
        {"view_retrieval": lambda p: 0.97},
        {"view_retrieval": lambda p: min(1.0, 0.3 + 4 * p), "rankme": lambda p: 5.5},
    ],
    "worse_than_start": [{"knn": lambda p: 0.35 - 0.15 * p}],
    "loss_flat": [{"loss": lambda p: 4.84 + 0.01 * np.sin(1000 * p)}],
    "loss_rising": [{"loss": lambda p: 1 - 2 * min(p, 0.5) + 1.2 * max(0, p - 0.5) + 0.02 * np.sin(999 * p)}],
    "gradient_explodes": [{"grad_norm": lambda p: 2 if p < 0.6 else 80}],
    "always_clipped": [{"grad_norm": lambda p: 12 + np.sin(99 * p), "grad_clipped": lambda p: 1.0}],
    "waits_for_images": [{"data_wait_share": lambda p: 0.45 + 0.1 * np.sin(99 * p)}],
    "teacher_equals_student": [{"teacher_cosine": lambda p: 1 - 0.5 * np.exp(-90 * p)}],
}


def test_every_rule_is_tried():
    assert set(SICK) == set(RULES)


@pytest.mark.parametrize(("code", "series"), [(code, series) for code, many in SICK.items() for series in many])
def test_each_alarm_sounds_once_for_its_cause_and_says_what_to_do(code, series):
    alarms = sounded(run(**series))
    assert [alarm.code for alarm in alarms] == [code]
    cause, what, remedy = alarms[0].message.partition("What to do: ")
    assert cause
    assert what
    assert any(section in remedy for section in ("objective.", "augment.", "optim.", "data."))


def test_an_alarm_comes_soon_after_its_cause():
    (alarm,) = sounded(run(data_wait_share=lambda p: 0.6 if p > 0.5 else 0.02))
    assert 1000 < alarm.step <= 1200
    (alarm,) = sounded(run(rankme=lambda p: 19 if p < 0.4 else 2))
    assert alarm.step == 800


def test_an_alarm_that_went_and_comes_again_sounds_again():
    waits = run(data_wait_share=lambda p: 0.6 if 0.2 < p < 0.4 or p > 0.7 else 0.02)
    assert codes(waits) == ["waits_for_images"] * 2
    flaps = run(data_wait_share=lambda p: 0.4 if int(p * 40) % 2 else 0.2)
    assert codes(flaps).count("waits_for_images") <= 1
    alarms = Alarms(context())
    for line in waits[:100]:
        alarms.feed(line)
    assert alarms.active == []
    for line in waits[100:]:
        alarms.feed(line)
    assert alarms.active == ["waits_for_images"]


def test_a_resumed_run_that_is_fed_the_old_lines_goes_on_alike():
    lines = run(rankme=lambda p: 19 * np.exp(-3 * p), data_wait_share=lambda p: 0.6 if p > 0.5 else 0.02)
    whole = [(alarm.code, alarm.step) for alarm in sounded(lines)]
    assert len(whole) == 2
    for cut in (30, 110):
        resumed = Alarms(context())
        for line in lines[:cut]:
            resumed.feed(line)
        later = [(alarm.code, alarm.step) for line in lines[cut:] for alarm in resumed.feed(line)]
        assert later == [(code, step) for code, step in whole if step > lines[cut - 1]["step"]]


def test_remedies_name_what_is_in_force():
    ctx = context(augment=AugmentConfig(crop_scale=(0.8, 1.0)), optim=OptimConfig(base_lr=0.0123))
    (alarm,) = sounded(run(view_retrieval=lambda p: 0.97), ctx)
    assert "lower augment.crop_scale, now [0.8, 1]" in alarm.message
    (alarm,) = sounded(run(loss=lambda p: 4.84), ctx)
    assert "optim.base_lr (now 0.0123)" in alarm.message
    masked = context(objective=ObjectiveConfig(spread="none", num_views=1))
    (alarm,) = sounded(run(rankme=lambda p: 19 * np.exp(-3 * p), spread=None, align=None), masked)
    assert "objective.spread=coding_rate" in alarm.message


def test_few_images_or_lines_say_too_little():
    small = dataclasses.replace(context(), pool_size=8, max_rank=7)
    assert codes(run(view_retrieval=lambda p: 1.0, rankme=lambda p: 6 - 5 * p), small) == []
    assert codes(run(lines=12, loss=lambda p: 1 + p)) == []


def test_lines_without_some_of_the_numbers_are_taken_as_they_are():
    lines = run(loss=None, grad_norm=None, grad_clipped=None, data_wait_share=None)
    assert codes(lines) == []
    frozen = {"step": 0, "progress": 0.0, "rankme": 19.0, "view_retrieval": 0.1, "mean_cosine": 0.6, "monitor_step": 0}
    assert codes([frozen, *run()]) == []
