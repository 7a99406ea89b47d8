"""``--html`` of a fine-tuning run: did it pay, where, and how it went. No script, no other file, no network."""

from __future__ import annotations

import os
from typing import Any

from vitembed.outputs import PAGE, write_output
from vitembed.page.parts import document, pairs, section, table
from vitembed.page.safe_text import safe
from vitembed.pretrain.supervised.result import FinetuneResult
from vitembed.pretrain.watch.curves import Curve, draw

_TONES = {"gain": "good", "none": "unsure", "worse": "bad"}
MAX_CLASSES_SHOWN = 100
"""The rest of the classes is in ``--json``; the ones that changed most come first."""


def write_page(path: str | os.PathLike[str], title: str, result: FinetuneResult) -> None:
    """Write the page.

    Args:
        path: The file (``.html``); a page of ours that is there is replaced whole or not at all.
        title: Heading.
        result: Of a run that is complete.

    Raises:
        DataError: If the file cannot be written.
    """
    write_output(path, PAGE, render(title, result))


def render(title: str, result: FinetuneResult) -> str:
    """The page as HTML; see ``write_page``."""
    found = result.report
    words = result.verdict
    counts = (
        f"{found['num_images']:,} images of {found['num_classes']:,} classes: {found['num_learned_from']:,} learned "
        f"from, {found['validation']['num_images']:,} to choose the epoch by, {found['num_test']:,} tested"
    )
    notes = "".join(f"<li>{safe(note)}</li>" for note in found["notes"])
    facts = [
        ("model", str(result.model_dir)),
        ("classifier", str(result.probe_file)),
        ("steps", f"{result.num_steps:,}"),
        ("training", f"{result.seconds:.0f} s"),
        ("abstains", _abstaining(found["abstain"])),
    ]
    parts = [
        f'<header><h1>{safe(title)}</h1><p class="soft">{safe(counts)}</p></header>'
        f'<section class="verdict {_TONES[found["verdict"]["tone"]]}"><h2>{safe(words[0].upper() + words[1:])}</h2>'
        f"<ul>{notes}</ul></section>",
        _scores(found),
        _classes(found["classes"]),
        _curves(found["validation"], result.num_steps),
        section("The run", pairs(facts)),
    ]
    return document(title, "\n".join(part for part in parts if part))


def _scores(found: dict[str, Any]) -> str:
    named = [
        ("always the largest class", found["majority"]),
        (f"frozen encoder, {found['knn']['k']}-NN", found["knn"]),
        ("frozen encoder, linear probe", found["linear"]),
        ("fine-tuned", found["finetuned"]),
    ]
    keys = ("accuracy", "balanced_accuracy", "macro_f1")
    rows = [[name, *(f"{100 * scores[key]:.1f} %" for key in keys)] for name, scores in named]
    for row, (_, scores) in zip(rows, named, strict=True):
        low, high = scores["ci95"]
        row[1] += f"  ({100 * low:.1f} to {100 * high:.1f})"
    tests = [
        [
            f"fine-tuned against {test['first']}",
            f"{100 * test['difference']:+.1f}  ({100 * test['ci95'][0]:+.1f} to {100 * test['ci95'][1]:+.1f})",
            f"{test['only_second']:,}",
            f"{test['only_first']:,}",
            f"{test['p']:.2g}",
        ]
        for test in found["tests"]
    ]
    note = '<p class="soft">In brackets 95 % intervals. The same test images throughout, so differences are paired.</p>'
    columns = ["comparison", "points", "right only when fine-tuned", "right only when frozen", "p (McNemar)"]
    scores_table = table(["classifier", "accuracy", "balanced accuracy", "macro F1"], rows)
    return section("On images that none has learned from", scores_table + table(columns, tests) + note)


def _classes(classes: list[dict[str, Any]]) -> str:
    tested = [row for row in classes if row["num_test"]]
    tested.sort(key=lambda row: -abs(row["finetuned_recall"] - row["linear_recall"]))
    rows = [
        [
            str(row["label"]),
            f"{row['num_train']:,}",
            f"{row['num_test']:,}",
            f"{100 * row['linear_recall']:.0f} %",
            f"{100 * row['finetuned_recall']:.0f} %",
            f"{100 * (row['finetuned_recall'] - row['linear_recall']):+.0f}",
        ]
        for row in tested[:MAX_CLASSES_SHOWN]
    ]
    columns = ["class", "train", "test", "linear probe", "fine-tuned", "points"]
    more = f'<p class="soft">{len(tested) - len(rows)} more in --json.</p>' if len(tested) > len(rows) else ""
    return section("Class by class, the most changed first", table(columns, rows) + more)


def _curves(validation: dict[str, Any], last_step: int) -> str:
    looks = validation["looks"]
    if not looks:
        return ""
    steps = [look["step"] for look in looks]
    chosen = validation["chosen"]["step"]
    curves = [
        Curve(
            "validation accuracy",
            steps,
            [look["val_accuracy"] for look in looks],
            "Of training images kept from learning; the larger dot is the epoch that was taken.",
            as_percent=True,
            dots=True,
            marked_step=chosen,
        ),
        Curve(
            "validation loss",
            steps,
            [look["val_loss"] for look in looks],
            "Rises while accuracy stays where the classifier grows too sure of itself.",
            dots=True,
            marked_step=chosen,
        ),
    ]
    drawn = "".join(draw(curve, last_step=last_step) for curve in curves)
    return section("While it learned", f'<div class="curves">{drawn}</div>')


def _abstaining(rule: dict[str, Any]) -> str:
    target = f"{100 * rule['target_precision']:g} %"
    if rule["threshold"] is None:
        return f"always, unless --threshold is given: no probability makes {target} right"
    if rule["threshold"] == 0:
        return f"never: at least {target} of the answers are right"
    return f"below {rule['threshold']:.3f}: {target} right on {100 * rule['coverage']:.1f} % of the test images"
