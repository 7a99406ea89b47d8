"""``vitembed finetune``: a whole encoder and a head, trained on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitembed.config.ranges import SEED

from .options import JsonOption, ReportOption, StrictOption, WorkspaceOption, seconds_of, split_settings
from .output import (
    EXIT_INTERRUPTED,
    duration,
    finish,
    note,
    say,
    say_facts,
    say_json,
    say_table,
    shown,
)

if TYPE_CHECKING:
    from vitembed.pretrain.supervised.result import FinetuneResult


def finetune(
    labelled: Annotated[
        list[str],
        typer.Argument(
            metavar="LABELLED [KEY=VALUE...]",
            help="A folder with one sub-folder per class (or train and test folders of them), or a CSV file with "
            "columns path,label[,split][,group]; then settings such as optim.max_epochs=10 model.head=linear.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The encoder to start from: a model folder, a --name of pretrain, a public name such as dinov2-small, "
            "or a weights file. It is not changed. [default: the workspace's]",
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="Settings as a YAML file. [default: by the images]")
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What to call the model in the workspace: letters, digits, - and _.")
    ] = "finetuned",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Train again; what an interrupted or finished run left is kept under another name."
        ),
    ] = False,
    resume_on: Annotated[
        str | None,
        typer.Option(
            metavar="recorded",
            help="Finish an interrupted run on the images and labels that it began with, though others have come.",
        ),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="End in this time at the latest, such as 30s, 20m or 2h.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=SEED.high, metavar="N", help="Decides the split and all that is random. [default: 0]"),
    ] = None,
    test_share: Annotated[
        float | None, typer.Option(metavar="SHARE", help="How much of each class is tested. [default: 0.25]")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a report.")] = None,
    json: JsonOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Train a whole encoder and a head on labelled images, and tell whether that beats a probe on the frozen one.

    The test images are those of vitembed probe with the same seed and share; nothing is learned or chosen by them. The
    model goes to .vitembed/models/NAME, the classifier on its vectors to probe.safetensors in there. Ctrl-C saves and
    stops; the same command then goes on where it stopped. A finished model is never overwritten: with --fresh it is
    kept as NAME@FINGERPRINT.

    \b
    Examples:
      vitembed finetune ./labelled
      vitembed finetune ./labelled --model dinov2-small --name animals --time-budget 20m
      vitembed classify ./new --probe .vitembed/models/animals/probe.safetensors
    """  # noqa: D301
    paths, settings = split_settings(labelled)
    if len(paths) > 1:
        raise typer.BadParameter(f"one folder or CSV file, got {len(paths)}: {', '.join(paths)}", param_hint="LABELLED")
    from vitembed.outputs import PAGE, REPORT, check_outputs
    from vitembed.workspace import check_name, find_workspace

    check_name(name)
    check_outputs((html, PAGE), (report, REPORT))
    seconds = None if time_budget is None else seconds_of(time_budget)
    from vitembed.pretrain.supervised.run import finetune as run_finetuning

    result = run_finetuning(
        paths[0],
        model=model,
        config=config,
        overrides=settings,
        workspace=find_workspace(workspace, create=True),
        name=name,
        fresh=fresh,
        resume_on=resume_on,
        time_budget=seconds,
        seed=seed,
        test_share=test_share,
    )
    if not result.completed:
        note("Interrupted; everything is saved. The same command goes on from here.")
        raise typer.Exit(EXIT_INTERRUPTED)
    if html is not None:
        from vitembed.pretrain.supervised.page import write_page

        write_page(html, f"Fine-tuning on {Path(paths[0]).name or paths[0]}", result)
        note(f"report: {shown(html)}")
    if json:
        say_json(result.to_dict())
    else:
        _say(result)
    finish(result.bad, strict=strict, report=report)


def _say(result: FinetuneResult) -> None:
    found = result.report
    rows: list[tuple[str, dict[str, Any]]] = [
        ("majority", found["majority"]),
        (f"frozen, {found['knn']['k']}-NN", found["knn"]),
        ("frozen, linear", found["linear"]),
        ("fine-tuned", found["finetuned"]),
    ]
    columns = ["accuracy", "95 % interval", "balanced", "macro F1"]
    say_table(
        ["classifier", *columns],
        [
            (
                name,
                f"{100 * score['accuracy']:.1f} %",
                f"{100 * score['ci95'][0]:.1f} - {100 * score['ci95'][1]:.1f} %",
                f"{100 * score['balanced_accuracy']:.1f} %",
                f"{100 * score['macro_f1']:.1f} %",
            )
            for name, score in rows
        ],
        right=columns,
    )
    say(f"{result.verdict[0].upper()}{result.verdict[1:]}")
    for test in found["tests"]:
        say(f"against {test['first']}: {100 * test['difference']:+.1f} points, p {test['p']:.2g} (paired)")
    say_facts(
        [
            ("model", shown(result.model_dir)),
            ("classifier", shown(result.probe_file)),
            ("run", shown(result.run_dir)),
            (
                "images",
                f"{found['num_learned_from']:,} learned from, {found['validation']['num_images']:,} to choose by, "
                f"{found['num_test']:,} tested",
            ),
            ("steps", f"{result.num_steps:,} in {duration(result.seconds)}"),
        ]
    )
    for remark in found["notes"]:
        say(f"note: {remark}")
