"""What the report says of a run: scores, curves, pictures, data and settings, put into words and rows."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitembed import __version__
from vitembed.config import PretrainConfig, to_dict
from vitembed.pretrain.keep.files import BEST_DIR, PICTURES_DIR
from vitembed.pretrain.onward.frozen import decide
from vitembed.pretrain.watch.alarms import Alarm, Alarms
from vitembed.pretrain.watch.curves import Curve
from vitembed.pretrain.watch.dataset_summary import DataSummary
from vitembed.pretrain.watch.facts import RunFacts
from vitembed.pretrain.watch.figures import NAMES, SHARES, show_score
from vitembed.pretrain.watch.metrics_file import Line
from vitembed.pretrain.watch.monitors import Monitors
from vitembed.pretrain.watch.progress import words_for
from vitembed.pretrain.watch.report_html import Page, Sheet
from vitembed.pretrain.watch.verdict import judge

_MEANINGS = {
    "knn": "how often the 20 nearest labelled images vote for the right class; higher is better",
    "linear": "how often a linear classifier on frozen vectors is right; higher is better",
    "view_retrieval": "how often an image is known again in another random view among the pool; higher is better",
    "rankme": "how many dimensions the vectors make use of; near 1 is a collapse",
    "mean_cosine": "how alike the vectors of different images are; near 1 is a collapse",
}
_TERMS = {
    "align": "disagreement between an image's views; lower is better",
    "spread": "how far different images lie apart (coding rate); higher is better, near 0 is a collapse",
    "patch": "error of the painted hidden patches; lower is better",
    "info_nce": "difficulty of telling an image's other view from other images; lower is better",
    "anchor": "distance from the model that the run started from",
    "cls_regression": "error of the predicted mean of the patches; lower is better",
    "center": "distance of the mean vector from zero; lower is better",
    "scale": "how far the features' spread is from 1; lower is better",
    "shape": "how far the vectors are from a Gaussian cloud; lower is better",
}
_NOT_TERMS = (
    *("step", "progress", "elapsed_seconds", "images_per_second", "data_wait_share", "lr", "loss", "monitor_step"),
    *("grad_norm", "grad_clipped", "alarms", *NAMES),
)


class RunPage:
    """Makes the page of a run from what is known of it.

    Args:
        config: The run.
        directory: Run folder.
        monitors: Whose points are shown.
        alarms: Which of them are in force.
        facts: What else there is to say.
        data: The images in numbers.
        device: Where the run trains, in words.
    """

    def __init__(
        self,
        config: PretrainConfig,
        directory: Path,
        monitors: Monitors,
        alarms: Alarms,
        facts: RunFacts,
        data: DataSummary,
        *,
        device: str,
    ) -> None:
        self.config = config
        self.directory = directory
        self.monitors = monitors
        self.alarms = alarms
        self.facts = facts
        self.data = data
        self.device = device

    def page(self, lines: list[Line], status: str, reason: str, *, precision: str) -> Page:
        """All that is known of the run so far.

        Args:
            lines: Its metrics.
            status: running, complete, interrupted or stopped.
            reason: Why it was stopped.
            precision: Of the run's arithmetic.
        """
        newest: Line = lines[-1] if lines else {"step": 0, "progress": 0.0, "elapsed_seconds": 0.0}
        labelled = self.facts.labelled
        active = self.alarms.active
        verdict = judge(
            self.monitors.best,
            self.alarms.context,
            majority=labelled.majority if labelled else None,
            active=active,
            ended=status == "complete",
        )
        if reason:
            verdict = type(verdict)("bad", f"Stopped: {reason}", verdict.sentences)
        told = [Alarm(**alarm) for line in lines for alarm in line.get("alarms", ())]
        latest = {alarm.code: alarm for alarm in told}
        written = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        going = {"running": "it goes on; this page is written anew at every point looked at"}
        return Page(
            title=f"vitembed pretrain: {self.facts.name}",
            status=status,
            note=f"Written {written} at step {newest['step']:,}"
            + (f"; {going[status]}. Reload to see more." if status in going else "."),
            verdict=verdict,
            alarms=[(alarm, alarm.code in active and alarm is latest[alarm.code]) for alarm in reversed(told)],
            facts=list(self.run_facts(newest, lines, status, precision)),
            score_columns=["", *self.columns(), "what it means"],
            score_rows=self.score_rows(),
            curves=[
                ("How the encoder grew", list(self.score_curves(lines))),
                ("The loss and its terms", list(self.loss_curves(lines))),
                ("How it was trained", list(self.training_curves(lines))),
            ],
            last_step=newest["step"],
            sheets=list(self.sheets()),
            data=list(self.data_facts()),
            skipped=self.data.bad,
            settings=_settings(to_dict(self.config), to_dict(PretrainConfig())),
        )

    def run_facts(self, newest: Line, lines: list[Line], status: str, precision: str) -> Iterator[tuple[str, str]]:
        """What, where, how long."""
        config, progress, elapsed = self.config, newest["progress"], newest["elapsed_seconds"]
        vit = config.model.vit()
        yield "Images", f"{self.data.num_images:,}"
        yield "From", ", ".join(self.facts.inputs) or "memory"
        yield (
            "Encoder",
            f"ViT of {vit.depth} blocks, width {vit.embed_dim}, {vit.img_size} px views in {vit.patch_size} px patches",
        )
        yield "Device", f"{self.device}, {precision}"
        yield "Progress", f"{progress:.0%}, step {newest['step']:,} of {config.optim.batch_size} images each"
        yield "Time", words_for(elapsed)
        if status == "running" and 0 < progress < 1:
            yield "Left", words_for(elapsed * (1 - progress) / progress)
        if lines:
            speeds = sorted(line["images_per_second"] for line in lines[-50:])
            yield "Speed", f"{speeds[len(speeds) // 2]:,.0f} images/s"
        if config.adapt.parent is not None:
            yield "Started from", f"model {config.adapt.parent[:12]} (fingerprint), the frozen model below"
            decision = decide(self.monitors.best, prefer_best=config.monitor.export == "best")
            if status == "complete" and decision is not None:
                yield "Kept", decision.words
        yield "Labels", self.facts.labels_note
        if self.monitors.best.step is not None:
            yield "Best encoder", f"{self.directory / BEST_DIR} (step {self.monitors.best.step:,})"
        if self.facts.model_dir is not None:
            which = "best" if config.monitor.export == "best" else "last"
            yield "Model", f"{self.facts.model_dir} ({'holds' if status == 'complete' else 'will hold'} the {which})"
        yield "vitembed", __version__

    def columns(self) -> list[str]:
        """Which points the table of scores shows."""
        looks, best = self.monitors.best.looks, self.monitors.best.look()
        names = []
        if looks:
            names.append("before training" if self.config.adapt.parent is None else "model started from")
        if best is not None:
            names.append(f"best (step {best['step']:,})")
        if len(looks) > 1:
            names.append(f"newest (step {looks[-1]['step']:,})")
        return names

    def score_rows(self) -> list[list[str]]:
        """A row for each score: at the start, of the best, newest; what it means."""
        looks, best = self.monitors.best.looks, self.monitors.best.look()
        points = [*looks[:1], *([best] if best is not None else []), *(looks[-1:] if len(looks) > 1 else [])]
        rows = []
        for name, label in NAMES.items():
            if points and all(name in look for look in points):
                meaning = _MEANINGS[name]
                if name in ("knn", "linear") and self.facts.labelled is not None:
                    meaning += f"; always naming the most common class: {100 * self.facts.labelled.majority:.1f} %"
                if name == "view_retrieval":
                    meaning += f"; chance: {100 / len(self.monitors.pool):.1f} %"
                if name == "rankme":
                    meaning += f"; at most {self.monitors.best.max_rank} here"
                rows.append([label, *(show_score(name, look[name]) for look in points), meaning])
        return rows

    def score_curves(self, lines: list[Line]) -> Iterator[Curve]:
        """Curves of what the monitors saw."""
        looks = self.monitors.best.looks
        chance = [("chance", 1 / len(self.monitors.pool))]
        labelled = self.facts.labelled
        common = [("most common class", labelled.majority)] if labelled else []
        baseline = "untrained" if self.config.adapt.parent is None else "model started from"
        for name, label in NAMES.items():
            seen = [look for look in looks if name in look]
            if not seen:
                continue
            levels = {"knn": common, "linear": common, "view_retrieval": chance}.get(name, [])
            if name in looks[0]:
                levels = [*levels, (baseline, float(looks[0][name]))]
            yield Curve(
                label,
                [int(look["step"]) for look in seen],
                [float(look[name]) for look in seen],
                _MEANINGS[name],
                as_percent=name in SHARES,
                from_zero=name != "mean_cosine",
                dots=True,
                levels=levels,
                marked_step=self.monitors.best.step,
            )

    def loss_curves(self, lines: list[Line]) -> Iterator[Curve]:
        """The loss and every term of it, before its weight."""
        names = dict.fromkeys(key for line in lines for key in line if key not in _NOT_TERMS)
        for name in ("loss", *names):
            meaning = _TERMS.get(name, "a term of the loss") if name != "loss" else "what is minimised"
            yield _curve(name, name, lines, meaning)

    def training_curves(self, lines: list[Line]) -> Iterator[Curve]:
        """Rates and speed."""
        yield _curve("Learning rate", "lr", lines, "of the heads, if the encoder has one of its own", from_zero=True)
        clip = self.config.optim.grad_clip
        yield _curve("Gradient norm", "grad_norm", lines, f"before it is clipped to {clip:g}", from_zero=True)
        yield _curve("Images per second", "images_per_second", lines, "without the monitors' time", from_zero=True)
        yield _curve(
            *("Waiting for images", "data_wait_share", lines),
            "share of the time; above 30 % the images are the bottleneck",
            from_zero=True,
            as_percent=True,
        )

    def sheets(self) -> Iterator[tuple[str, str, list[Sheet]]]:
        """Pictures of the first, the best and the newest point."""
        looks, best = self.monitors.best.looks, self.monitors.best.look()
        points = {int(look["step"]): "newest" for look in looks[-1:]}
        if best is not None:
            points[int(best["step"])] = "best" if best is not looks[-1] else "newest and best"
        if looks:
            points[int(looks[0]["step"])] = "before training" if self.config.adapt.parent is None else "started from"
        for kind, heading, note in (
            ("neighbours", "Nearest neighbours", "Left an image, right of it the most similar ones in the pool."),
            ("reconstruction", "Hidden patches", "An image, what the encoder saw of it, what the decoder painted."),
        ):
            places = self.directory / PICTURES_DIR
            yield (
                heading,
                note,
                [
                    Sheet(places / f"{kind}-{step:07d}.png", f"Step {step:,}: {which}")
                    for step, which in sorted(points.items())
                ],
            )

    def data_facts(self) -> Iterator[tuple[str, str]]:
        """The images in numbers."""
        data = self.data
        yield "Images", f"{data.num_images:,}"
        yield "Skipped", f"{data.num_bad:,}" if data.num_bad else "none"
        if data.sizes is not None:
            small, middle, large = (f"{width} x {height}" for width, height in data.sizes)
            of = "" if data.num_sampled == data.num_images else f" (of {data.num_sampled} looked at)"
            yield "Sizes in px", f"{small} to {large}, median {middle}{of}" if small != large else f"{small}{of}"
        yield "Colour", _colour(data.grey_share)
        if data.formats:
            yield (
                "Formats",
                ", ".join(f"{name} {count / sum(n for _, n in data.formats):.0%}" for name, count in data.formats),
            )
        yield "Kept at", f"{self.config.cache_size} x {self.config.cache_size} px for training"
        yield "Looked at", f"{len(self.monitors.pool)} images, always the same, each in two fixed random views"


def _curve(
    title: str, key: str, lines: list[Line], explanation: str, *, from_zero: bool = False, as_percent: bool = False
) -> Curve:
    known = [line for line in lines if line.get(key) is not None]
    return Curve(
        title,
        [line["step"] for line in known],
        [float(line[key]) for line in known],
        explanation,
        from_zero=from_zero,
        as_percent=as_percent,
    )


def _colour(grey_share: float) -> str:
    if grey_share in (0.0, 1.0):
        return "all in colour" if grey_share == 0 else "all grey"
    return f"{grey_share:.0%} grey, the others in colour"


def _settings(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str, bool]]:
    rows: list[tuple[str, str, bool]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _settings(value, defaults.get(key) or {}, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, str(value), value != defaults.get(key)))
    return rows
