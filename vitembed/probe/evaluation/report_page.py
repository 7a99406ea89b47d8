"""``report.html`` of a probe: one page for whoever must decide on it. No script, no other file, no network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitembed.errors import BadImage
from vitembed.outputs import PAGE, check_output, write_output
from vitembed.page.parts import document, pairs, section, table
from vitembed.page.picture import jpeg_uri, thumbnail
from vitembed.page.safe_text import safe
from vitembed.probe.evaluation.chart import CHART_STYLE, confusion_table, few_shot_chart
from vitembed.probe.evaluation.compare import Comparison
from vitembed.probe.evaluation.study import Study
from vitembed.probe.evaluation.verdict import verdict
from vitembed.probe.scores import Scores

MAX_CLASSES_SHOWN = 40
"""With more classes the matrix is left out: the confused pairs say more."""
NUM_PICTURES = 24
"""Of mistakes, doubtful labels and copies, each."""
_THUMB_PX = 200


def write_page(
    path: str | os.PathLike[str],
    title: str,
    studies: Mapping[str, Study],
    *,
    comparison: Comparison | None = None,
    facts: Sequence[tuple[str, str]] = (),
) -> None:
    """Write the page.

    Args:
        path: The file (``.html``); a page of ours that is there is replaced whole or not at all.
        title: Heading.
        studies: By encoder; the first one is shown in full.
        comparison: Of these studies, when there are several.
        facts: Further names and values, such as the model folder.

    Raises:
        DataError: If the file cannot be written. An image that cannot be read is shown as an empty frame.
    """
    check_output(path, PAGE)
    write_output(path, PAGE, render(title, studies, comparison=comparison, facts=facts))


def render(
    title: str,
    studies: Mapping[str, Study],
    *,
    comparison: Comparison | None = None,
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """The page as HTML; see ``write_page``."""
    name, study = next(iter(studies.items()))
    several = len(studies) > 1
    parts = [
        _head(title, name, study),
        _scores(studies),
        _comparison(comparison) if comparison is not None else "",
        _few_shot(studies),
        *(_details(study, f" ({name})" if several else "")),
        section("The run", pairs(_facts(study, facts))),
    ]
    return document(title, "\n".join(part for part in parts if part), style=CHART_STYLE + _STYLE)


def _head(title: str, name: str, study: Study) -> str:
    found = verdict(study)
    report = study.report
    sentences = "".join(f"<li>{safe(sentence)}</li>" for sentence in found.sentences)
    note = (
        f"{report.num_images:,} images of {report.num_classes:,} classes: learned from {report.num_train:,}, tested on "
        f"{report.num_test:,} others"
    )
    return (
        f'<header><h1>{safe(title)} <span class="chip">{safe(name)}</span></h1><p class="soft">{safe(note)}</p>'
        f'</header>\n<section class="verdict {found.tone}"><h2>{safe(found.headline)}</h2><ul>{sentences}</ul>'
        "</section>"
    )


def _scores(studies: Mapping[str, Study]) -> str:
    several, binary = len(studies) > 1, next(iter(studies.values())).report.num_classes == 2
    first = next(iter(studies.values()))
    rows = [["always the largest class", *_cells(first.report.majority, binary)]]
    for name, study in studies.items():
        of = f"{name}: " if several else ""
        rows.append([f"{of}{study.report.k}-NN", *_cells(study.report.knn, binary)])
        rows.append([f"{of}linear", *_cells(study.report.linear, binary)])
        if study.report.attentive is not None:
            rows.append([f"{of}attentive, on all tokens", *_cells(study.report.attentive, binary)])
    columns = ["probe", "accuracy", "balanced accuracy", "macro F1", *(["AUROC"] if binary else [])]
    note = '<p class="soft">In brackets 95 % intervals, over the test images as a sample.</p>'
    return section("What the vectors are worth", table(columns, rows) + note)


def _cells(scores: Scores, binary: bool) -> list[str]:
    values = [
        (scores.accuracy, scores.ci95),
        (scores.balanced_accuracy, scores.balanced_accuracy_ci95),
        (scores.macro_f1, scores.macro_f1_ci95),
    ]
    cells = [f"{100 * value:.1f} %  ({100 * low:.1f} to {100 * high:.1f})" for value, (low, high) in values]
    if binary:
        area = scores.auroc_ci95
        cells.append("" if area is None else f"{scores.auroc:.3f}  ({area[0]:.3f} to {area[1]:.3f})")
    return cells


def _comparison(comparison: Comparison) -> str:
    rows = [
        [
            {"knn": "k-NN"}.get(probe, probe),
            f"{test.second} against {test.first}",
            f"{100 * test.difference:+.1f} points  ({100 * test.ci95[0]:+.1f} to {100 * test.ci95[1]:+.1f})",
            f"{test.only_second:,} : {test.only_first:,}",
            f"{test.p_holm:.2g}",
            "yes" if test.p_holm < 0.05 else "not shown",
        ]
        for probe, tests in comparison.tests.items()
        for test in tests
    ]
    note = (
        '<p class="soft">The same images on the same split. "Right alone" counts the test images that only the first '
        "or only the second named got right; p is McNemar's exact test (with groups a sign-flip test over them) after "
        "Holm's correction for the pairs. One draw of training images stands behind all of it.</p>"
    )
    columns = ["probe", "encoders", "accuracy", "right alone", "p", "different"]
    return section("Side by side", table(columns, rows) + note)


def _few_shot(studies: Mapping[str, Study]) -> str:
    first = next(iter(studies.values()))
    levels = [("always the largest class", first.report.majority.accuracy)]
    if len(studies) == 1:
        levels.append((f"all {first.report.num_train:,} training images", first.report.linear.accuracy))
    chart = few_shot_chart([(name, study.few_shot) for name, study in studies.items()], levels)
    if not chart:
        return ""
    short = [point for point in first.few_shot if point.num_short]
    lacking = (
        f" From {short[0].shots} on some classes have fewer ({short[-1].num_short} at {short[-1].shots}) and give all."
        if short
        else ""
    )
    note = (
        f"Linear probes that learned from so many images of each class, mean of {len(first.few_shot[0].accuracies)} "
        f"draws; the band spans the worst and the best draw.{lacking}"
    )
    return section("How many labels it takes", f'{chart}<p class="soft">{safe(note)}</p>')


def _details(study: Study, of: str) -> list[str]:
    names = [str(name) for name in study.fitted.names]
    return [
        _abstaining(study, of),
        _confusion(study, names, of),
        _classes(study, of),
        _mistakes(study, names, of),
        _label_errors(study, names, of),
        _leaks(study, of),
    ]


def _abstaining(study: Study, of: str) -> str:
    rule = study.abstain
    target = f"{100 * rule.target_precision:g} %"
    if rule.threshold is None or rule.precision is None or rule.precision_ci95 is None:
        text = f"No probability makes {target} of the answers right on the test images: a saved probe abstains always."
    else:
        low, high = rule.precision_ci95
        kept = "all answers count" if rule.threshold == 0 else f"answers count from probability {rule.threshold:.3f} on"
        text = (
            f"For {target} right, {kept}: that is {100 * rule.coverage:.1f} % of the {rule.num_held_out:,} test "
            f"images, and {100 * rule.precision:.1f} % of these are right ({100 * low:.1f} to {100 * high:.1f} %). It "
            "is the lowest probability with that precision on these images; images of another kind may be worse."
        )
    return section(f"When to abstain{of}", f"<p>{safe(text)}</p>")


def _confusion(study: Study, names: Sequence[str], of: str) -> str:
    confused = [[names[i], names[j], f"{num:,}"] for i, j, num in study.confused()]
    listed = table(["true class", "taken for", "test images"], confused) if confused else "<p>No mistake.</p>"
    if len(names) > MAX_CLASSES_SHOWN:
        return section(f"What is confused{of}", listed)
    more = f"<details><summary>The most frequent confusions as a list</summary>{listed}</details>" if confused else ""
    return section(f"What is confused{of}", confusion_table(study.confusion, names) + more)


def _classes(study: Study, of: str) -> str:
    def percent(value: float | None) -> str:
        return "none" if value is None else f"{100 * value:.1f} %"

    rows = [
        [
            str(row.label),
            f"{row.num_train:,}",
            f"{row.num_test:,}",
            percent(row.linear_recall),
            percent(row.linear_precision),
            percent(row.knn_recall),
        ]
        for row in study.report.classes
    ]
    columns = ["class", "learned from", "tested on", "linear recall", "linear precision", "k-NN recall"]
    body = table(columns, rows)
    if len(rows) > MAX_CLASSES_SHOWN:
        body = f"<details><summary>All {len(rows):,} classes</summary>{body}</details>"
    return section(f"Class by class{of}", body)


def _mistakes(study: Study, names: Sequence[str], of: str) -> str:
    pictures = [
        (
            study.ids[wrong.row],
            f"taken for {names[wrong.predicted]}, {100 * wrong.probability:.1f} %",
            f"is {names[wrong.truth]}",
        )
        for wrong in study.mistakes[:NUM_PICTURES]
    ]
    note = "Test images that the linear probe got wrong, the surest first. Look for wrong labels and missing classes."
    return _gallery(f"Surest mistakes{of}", note, pictures, len(study.mistakes))


def _label_errors(study: Study, names: Sequence[str], of: str) -> str:
    pictures = [
        (
            study.ids[doubt.row],
            f"labelled {names[doubt.label]}",
            f"looks like {names[doubt.suggested]}: {100 * doubt.probability:.1f} % against "
            f"{100 * doubt.label_probability:.1f} %",
        )
        for doubt in study.label_errors[:NUM_PICTURES]
    ]
    note = (
        "Of all images, with their classes as judged by probes that learned from the others: another class passes its "
        "own bar (confident learning), at a confidence at which "
        "the probe is mostly right. Candidates to look at, not verdicts; the surest first."
    )
    return _gallery(f"Labels that a probe contradicts{of}", note, pictures, len(study.label_errors))


def _leaks(study: Study, of: str) -> str:
    fitted = study.fitted
    pictures = []
    for leak in sorted(fitted.leaks, key=lambda leak: -leak.similarity)[: NUM_PICTURES // 2]:
        same = "same label" if fitted.targets[leak.test_row] == fitted.targets[leak.train_row] else "other label"
        pictures.append(
            (
                study.ids[leak.test_row],
                f"test: {fitted.names[fitted.targets[leak.test_row]]}",
                f"{same}, cosine {leak.similarity:.4f}",
            )
        )
        pictures.append((study.ids[leak.train_row], f"training: {fitted.names[fitted.targets[leak.train_row]]}", ""))
    note = "Test images that have a near copy among the training images; each beside its copy."
    return _gallery(f"Copies across the split{of}", note, pictures, len(fitted.leaks))


def _gallery(heading: str, note: str, pictures: Sequence[tuple[str, str, str]], num: int) -> str:
    if not pictures:
        return ""
    figures = "".join(_figure(*picture) for picture in pictures)
    return section(f"{heading}: {num:,}", f'<p class="soft">{safe(note)}</p><div class="pictures">{figures}</div>')


def _figure(path: str, first: str, second: str) -> str:
    name = Path(path).name
    try:
        picture = thumbnail(path, _THUMB_PX)
        size = f'width="{picture.width}" height="{picture.height}"'
        shown = f'<img src="{jpeg_uri(picture)}" {size} alt="{safe(name)}">'
    except BadImage as error:
        shown = f'<div class="missing">{safe(error.reason if Path(path).exists() else "no such file")}</div>'
    lines = "".join(f"<span>{safe(line)}</span>" for line in (second, name) if line)
    return f'<figure title="{safe(path)}">{shown}<figcaption><b>{safe(first)}</b>{lines}</figcaption></figure>'


def _facts(study: Study, facts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    report = study.report
    return [
        *facts,
        ("images", f"{report.num_images:,}"),
        ("classes", f"{report.num_classes:,}"),
        ("learned from", f"{report.num_train:,}"),
        ("tested on", f"{report.num_test:,}"),
        ("seed", str(study.seed)),
        ("penalty C of the linear probe", f"{report.C:.3g}"),
        ("neighbours", f"{report.k}"),
        ("fingerprint", study.fingerprint[:12] or "unknown"),
    ]


_STYLE = """
.pictures { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.pictures figure { margin: 0; padding: .45rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; break-inside: avoid; }
.pictures img, .missing { display: block; width: 100%; height: 9rem; object-fit: contain; border-radius: .3rem; }
.missing { display: grid; place-items: center; color: var(--soft); border: 1px dashed var(--soft); font-size: .8rem; }
.pictures figcaption { margin-top: .4rem; font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
.pictures b, .pictures span { display: block; } .pictures span { color: var(--soft); }
"""
