"""``vitembed probe``: what the vectors are worth on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitembed.config.ranges import SEED

from .encoders import open_encoder
from .options import JsonOption, ModelOption, ReportOption, SpeedOption, StrictOption, TolerantOption, WorkspaceOption
from .output import finish, note, progress_bar, say, say_json, say_table, shown

if TYPE_CHECKING:
    from vitembed.probe.evaluation.compare import Comparison
    from vitembed.probe.evaluation.study import Study
    from vitembed.probe.scores import Scores


def probe(
    labelled: Annotated[
        Path,
        typer.Argument(
            metavar="LABELLED",
            help="A folder with one sub-folder per class (or train and test folders of them), or a CSV file with "
            "columns path,label[,split][,group]. Images of one group are never on both sides of the split.",
        ),
    ],
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help="With --compare: the encoders to compare.")
    ] = None,
    model: ModelOption = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Judge each MODEL on the same split and test every pair; a single one against --model or the "
            "workspace's.",
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=SEED.high, metavar="N", help="Decides the split and all that is random.")
    ] = 0,
    test_share: Annotated[
        float, typer.Option("--test-share", metavar="SHARE", help="How much of each class is tested.")
    ] = 0.25,
    group_copies: Annotated[
        bool, typer.Option("--group-copies", help="Keep near duplicates on one side of the split.")
    ] = False,
    few_shot: Annotated[
        int,
        typer.Option("--few-shot", min=0, max=1000, metavar="DRAWS", help="Draws behind the few-shot curve; 0: none."),
    ] = 5,
    attentive: Annotated[
        bool, typer.Option("--attentive", help="Also an attentive probe, on all patch tokens: minutes, not seconds.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write a report with pictures.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Also keep the linear probe, for vitembed classify."),
    ] = None,
    precision: Annotated[
        float,
        typer.Option(
            "--precision", metavar="SHARE", help="How often answers must be right from which classify does not abstain."
        ),
    ] = 0.95,
    speed: SpeedOption = None,
    tolerant: TolerantOption = False,
    json: JsonOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure how well frozen vectors tell classes apart.

    Prints the accuracy of always guessing the largest class, of the nearest neighbours and of a linear classifier,
    each with its 95 % interval, on images that neither has learned from, and how many labels it takes. Nothing of the
    encoder is trained.

    \b
    Examples:
      vitembed probe ./labelled --html report.html
      vitembed probe labels.csv --save animals.safetensors
      vitembed probe ./labelled --compare dinov2-small .vitembed/model
    """  # noqa: D301
    from vitembed import __version__
    from vitembed.outputs import PAGE, PROBE, REPORT, check_outputs
    from vitembed.probe.evaluation.compare import compare as compare_encoders
    from vitembed.probe.evaluation.report_page import write_page
    from vitembed.probe.evaluation.study import study
    from vitembed.probe.labelled_vectors import embed_labelled
    from vitembed.probe.labels import read_labelled
    from vitembed.probe.saving import SavedProbe

    named: list[str | None] = [*(models or [])]
    if not compare and named:
        raise typer.BadParameter("several models are judged with --compare", param_hint="MODEL")
    if compare and save is not None:
        raise typer.BadParameter("a probe belongs to one model: save it without --compare", param_hint="--save")
    if not compare or model is not None or len(named) < 2:
        named = [model, *named]
    check_outputs((html, PAGE), (save, PROBE), (report, REPORT))
    images = read_labelled(labelled)
    with progress_bar("embedding") as advance:
        found = embed_labelled(
            images,
            (open_encoder(name, workspace, speed=speed, tolerant=tolerant) for name in named),
            with_tokens=attentive,
            progress=advance,
        )
    settings: dict[str, Any] = {
        "split": found.images.split,
        "groups": found.images.groups,
        "test_share": test_share,
        "seed": seed,
        "group_copies": group_copies,
        "num_draws": few_shot,
        "target_precision": precision,
    }
    names = [name or str(vectors.meta["model"]) for name, vectors in zip(named, found.embeddings, strict=True)]
    if compare:
        comparison = compare_encoders(list(zip(names, found.embeddings, strict=True)), tokens=found.tokens, **settings)
        studies = comparison.studies
    else:
        comparison, studies = None, {names[0]: study(found.embeddings[0], tokens=found.tokens[0], **settings)}
    first = studies[names[0]]
    if save is not None:
        meta = found.embeddings[0].meta
        SavedProbe.of(
            first, {"model": meta["reference"], "pool": meta["pool"], "speed": meta["speed"], "version": __version__}
        ).save(save)
        note(f"probe: {shown(save)} ({_abstaining(first)})")
    if html is not None:
        facts = [("images from", shown(labelled)), ("model", str(found.embeddings[0].meta["reference"]))]
        write_page(html, f"Probe of {labelled.name or labelled}", studies, comparison=comparison, facts=facts)
        note(f"report: {shown(html)}")
    if json:
        say_json(first.to_dict() if comparison is None else comparison.to_dict())
    else:
        _say_scores(studies)
        if comparison is not None:
            _say_tests(comparison)
        for name, each in studies.items():
            _say_few_shot(each, f"{name}: " if compare else "")
        say(
            f"{first.report.num_classes} classes, learned from {first.report.num_train:,} images, "
            f"tested on {first.report.num_test:,}"
        )
        for name, each in studies.items():
            for remark in [*each.report.notes, *_doubts(each)]:
                say(f"note: {f'{name}: ' if compare else ''}{remark}")
    notes = {(each["path"], each["note"]) for vectors in found.embeddings for each in vectors.meta.get("notes", [])}
    finish(found.bad, strict=strict, report=report, notes=sorted(notes))


def _say_scores(studies: dict[str, Study]) -> None:
    first = next(iter(studies.values())).report
    several = len(studies) > 1
    rows: list[tuple[str, Scores]] = [("majority", first.majority)]
    for name, each in studies.items():
        of = f"{name}: " if several else ""
        rows += [(f"{of}{each.report.k}-NN", each.report.knn), (f"{of}linear", each.report.linear)]
        if each.report.attentive is not None:
            rows.append((f"{of}attentive", each.report.attentive))
    columns = ["accuracy", "95 % interval", "balanced", "macro F1", *(["AUROC"] if first.num_classes == 2 else [])]
    say_table(
        ["probe", *columns],
        [
            (
                name,
                f"{100 * score.accuracy:.1f} %",
                f"{100 * score.ci95[0]:.1f} - {100 * score.ci95[1]:.1f} %",
                f"{100 * score.balanced_accuracy:.1f} %",
                f"{100 * score.macro_f1:.1f} %",
                *([] if first.num_classes != 2 else ["" if score.auroc is None else f"{score.auroc:.3f}"]),
            )
            for name, score in rows
        ],
        right=columns,
    )


def _say_tests(comparison: Comparison) -> None:
    say_table(
        ["probe", "encoders", "difference", "95 % interval", "p (Holm)"],
        [
            (
                name,
                f"{test.second} against {test.first}",
                f"{100 * test.difference:+.1f}",
                f"{100 * test.ci95[0]:+.1f} - {100 * test.ci95[1]:+.1f}",
                f"{test.p_holm:.2g}",
            )
            for name, tests in comparison.tests.items()
            for test in tests
        ],
        right=["difference", "95 % interval", "p (Holm)"],
    )


def _say_few_shot(found: Study, of: str) -> None:
    if found.few_shot:
        points = ", ".join(f"{point.shots}: {100 * point.accuracy:.1f} %" for point in found.few_shot)
        say(f"{of}linear, by labelled images of each class: {points}")


def _doubts(found: Study) -> list[str]:
    num = len(found.label_errors)
    what = "labels are" if num > 1 else "label is"
    return [f"{num:,} {what} contradicted by a probe that had not seen them: see --html or --json"] if num else []


def _abstaining(found: Study) -> str:
    rule = found.abstain
    target = f"{100 * rule.target_precision:g} %"
    if rule.threshold is None:
        return f"no probability makes {target} right on the test images: classify abstains, unless --threshold is given"
    if rule.threshold == 0:
        return f"never abstains: at least {target} of the answers are right on the test images"
    return f"abstains below {rule.threshold:.3f}: {target} right on {100 * rule.coverage:.1f} % of the test images"
