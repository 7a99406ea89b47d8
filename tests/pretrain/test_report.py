"""The report: whole, safe, one file, and true to what was seen."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vitembed.config import ObjectiveConfig, PretrainConfig
from vitembed.errors import BadImage
from vitembed.images.cache import ImageCache
from vitembed.images.source import ImageRef
from vitembed.pretrain.watch.alarms import Alarm
from vitembed.pretrain.watch.best import Best
from vitembed.pretrain.watch.curves import MAX_POINTS, Curve, axis, binned, draw
from vitembed.pretrain.watch.dataset_summary import summarise
from vitembed.pretrain.watch.event_files import refuse_without_tensorboard
from vitembed.pretrain.watch.figures import NAMES
from vitembed.pretrain.watch.history import Context
from vitembed.pretrain.watch.report_html import Page, Sheet, render
from vitembed.pretrain.watch.verdict import Verdict, judge

_VOID = {"meta", "img", "line", "circle", "polyline", "br"}


class Balanced(HTMLParser):
    """Stops at a tag that is not closed where it should be; collects text and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in _VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)
        assert tag != "script"

    def handle_endtag(self, tag):
        if tag not in _VOID:  # <line .../> ends itself
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser


def page(**fields):
    basics = {
        "title": "run",
        "status": "running",
        "note": "now",
        "verdict": Verdict("good", "It is learning", ["k-NN accuracy rose"]),
        "alarms": [],
        "facts": [("Images", "24")],
        "score_columns": ["", "newest", "what it means"],
        "score_rows": [["RankMe", "12.0", "dimensions"]],
        "curves": [("Curves", [Curve("loss", [1, 2, 3], [3.0, 2.0, 1.0], "what is minimised")])],
        "last_step": 3,
    }
    return Page(**{**basics, **fields})


def test_every_text_is_escaped_and_nothing_is_fetched(tmp_path):
    evil = "<script>alert('x')</script>\x1b[0m&\"\udcff"
    Image.new("RGBA", (40, 30), (10, 200, 30, 120)).save(tmp_path / "sheet.png")
    made = render(
        page(
            title=evil,
            status=evil,
            note=evil,
            verdict=Verdict("bad", evil, [evil]),
            alarms=[(Alarm("collapse", 7, f"{evil} What to do: {evil}"), True), (Alarm("loss_flat", 9, evil), False)],
            facts=[(evil, evil * 3)],
            score_columns=[evil],
            score_rows=[[evil]],
            curves=[(evil, [Curve(evil, [0, 5], [0.1, 0.2], evil, levels=[(evil, 0.15)], dots=True, marked_step=5)])],
            sheets=[(evil, evil, [Sheet(tmp_path / "sheet.png", evil), Sheet(tmp_path / "absent.png", "absent")])],
            data=[(evil, evil)],
            skipped=[(evil, [evil] * 60)],
            settings=[(evil, evil, True)],
        )
    )
    parser = read(made)
    assert "<script" not in made
    assert parser.links
    assert all(re.match(r"data:image/(webp|png);base64,", link) for link in parser.links)
    assert "http" not in made
    assert "\x1b" not in made
    assert "and 10 more" in made
    assert "absent" not in made
    made.encode("utf-8")


def test_a_page_says_what_it_was_given():
    words = " ".join(read(render(page())).words)
    for part in ("It is learning", "k-NN accuracy rose", "24", "RankMe", "12.0", "what is minimised"):
        assert part in words
    assert "Alarms" not in words


@pytest.mark.parametrize("values", [[1.0], [5.0, 5.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 1e6], [1.0, float("nan"), 2.0]])
def test_curves_are_well_formed_and_stay_inside(values):
    svg = draw(Curve("c", list(range(len(values))), values, dots=True), last_step=len(values))
    root = ElementTree.fromstring(re.search(r"<svg.*</svg>", svg, re.S)[0])
    points = [float(number) for point in root.find("polyline").get("points").split() for number in point.split(",")]
    assert all(0 <= number <= 360 for number in points)
    assert len(points) == 2 * sum(np.isfinite(values))
    assert draw(Curve("c", [1], [float("nan")]), last_step=1) == ""


def test_axes_are_round_and_hold_the_values():
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = sorted(float(value) for value in rng.normal(size=2) * 10.0 ** rng.integers(-6, 6))
        start, end, ticks = axis(low, high)
        assert start <= low + 1e-6 * (high - low)
        assert end >= high - 1e-6 * (high - low)
        assert 3 <= len(ticks) <= 7
    assert axis(0.0, 1.0)[2] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_long_curves_are_means_over_bins():
    points = [(float(step), float(step % 7)) for step in range(5000)]
    made = binned(points)
    assert len(made) == MAX_POINTS
    assert made[0] == points[0]
    assert made[-1] == points[-1]
    assert np.mean([value for _, value in made]) == pytest.approx(3, abs=0.05)
    assert [step for step, _ in made] == sorted(step for step, _ in made)


def judged(*looks, active=(), ended=True, pool=256, queries=500, **sections):
    best = Best(max_rank=64)
    for each in looks:
        best.looks.append(each)
        if each["step"] and (
            best.look() is None or each.get("knn", each["view_retrieval"]) >= best.look().get("knn", 0)
        ):
            best.step = each["step"]
    context = Context(PretrainConfig(**sections), pool, 64, queries)
    majority = 0.1 if "knn" in looks[0] else None
    return judge(best, context, majority=majority, active=list(active), ended=ended)


def seen(step, retrieval, **labelled):
    scores = {"rankme": 20.0, "view_retrieval": retrieval, "mean_cosine": 0.6}
    return {"step": step, "progress": step / 100, **scores, **labelled}


def test_the_verdict_says_whether_it_learns_and_which_to_take():
    good = judged(seen(0, 0.1, knn=0.24, linear=0.3), seen(100, 0.4, knn=0.4, linear=0.5))
    assert (good.tone, good.headline) == ("good", "It has learned")
    assert "k-NN accuracy rose from 24.0 % to 40.0 %." in good.sentences
    assert "Always naming the most common class would be right for 10.0 %." in good.sentences
    assert good.sentences[-1].startswith("The newest encoder (step 100) is the best so far by k-NN accuracy")
    assert judged(seen(0, 0.1), seen(50, 0.4), ended=False).headline == "It is learning"
    none = judged(seen(0, 0.1), seen(100, 0.1))
    assert (none.tone, none.headline) == ("bad", "No clear gain")
    worse = judged(
        seen(0, 0.1, knn=0.4, linear=0.5), seen(50, 0.1, knn=0.35, linear=0.5), seen(100, 0.1, knn=0.2, linear=0.3)
    )
    assert (worse.tone, worse.headline) == ("bad", "Training has made it worse than the untrained encoder")
    assert "the least bad one, step 50 with 35.0 %" in worse.sentences[-1]
    lost = judged(seen(0, 0.3), seen(50, 0.2), seen(100, 0.1)).sentences[-1]
    assert lost.startswith(
        "No point of the run is better by RankMe x view retrieval than its start (0.094); the least bad"
    )
    assert judged(seen(0, 0.1), seen(100, 0.4), active=["collapse"]).tone == "bad"
    assert judged(seen(0, 0.1), seen(100, 0.4), active=["waits_for_images"]).tone == "unsure"
    assert judged(seen(0, 0.1)).headline == "Just started"
    masked = judged(seen(0, 0.1), seen(100, 0.1), objective=ObjectiveConfig(spread="none", num_views=1))
    assert "no term that compares views" in masked.sentences[-1]


def test_the_data_are_summed_up(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        grey = rng.integers(0, 255, (20 + i, 30, 1)).repeat(3, axis=2)
        pixels = grey if i < 3 else rng.integers(0, 255, (20 + i, 30, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i:02}.{'jpg' if i % 2 else 'png'}")
    refs = [ImageRef(str(path)) for path in sorted(tmp_path.iterdir())]
    bad = [BadImage("/a.jpg", "truncated"), BadImage("/b.jpg", "zero bytes"), BadImage("/c.jpg", "truncated")]
    found = summarise(ImageCache.in_memory(refs, size=16), bad)
    assert found.num_images == 12
    assert found.sizes == ((30, 20), (30, 26), (30, 31))
    assert found.grey_share == pytest.approx(3 / 12)
    assert sorted(found.formats) == [("JPEG", 6), ("PNG", 6)]
    assert found.bad == [("truncated", ["/a.jpg", "/c.jpg"]), ("zero bytes", ["/b.jpg"])]
    assert found.num_bad == 3


def test_every_score_has_a_name_and_a_meaning():
    from vitembed.pretrain.watch.report_page import _MEANINGS

    assert set(NAMES) == set(_MEANINGS)


def test_tensorboard_that_is_missing_is_one_line_before_anything_is_done(monkeypatch):
    import importlib.util

    from vitembed.config import MonitorConfig
    from vitembed.errors import ConfigError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refuse_without_tensorboard(MonitorConfig())
    with pytest.raises(ConfigError, match=r"needs the package tensorboard: pip install 'vitembed\[tensorboard\]'"):
        refuse_without_tensorboard(MonitorConfig(tensorboard=True))
