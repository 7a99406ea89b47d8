"""``vitembed pretrain``: from images to an encoder."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import ReportOption, StrictOption, TolerantOption, WorkspaceOption, seconds_of, split_settings
from .output import EXIT_INTERRUPTED, duration, finish, note, say_facts, shown

# Of the last line of metrics.jsonl, what says nothing about a run that has ended, or is said from start to end.
_NOT_SHOWN = (
    *("step", "progress", "elapsed_seconds", "images_per_second", "data_wait_share", "lr", "grad_norm", "grad_clipped"),
    *("monitor_step", "knn", "linear", "rankme", "view_retrieval", "mean_cosine"),
)


def pretrain(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES... [KEY=VALUE...]",
            help="Folders (with all below them), image files, or @FILE with one path a line, from the "
            "current folder; then settings such as optim.max_steps=60 model.size=tiny.",
        ),
    ],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Recipe: a name that vitembed configs lists, or a YAML file. [default: by the images]",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Go on from this model: a model folder, a --name of pretrain, a public name such as dinov2-small, or "
            "a weights file. It is kept as it is where training makes it worse. [default: start from nothing]",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What to call the model in the workspace: letters, digits, - and _.")
    ] = "model",
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Train again; what an interrupted or finished run left is kept under another name."
        ),
    ] = False,
    resume_on: Annotated[
        str | None,
        typer.Option(
            metavar="recorded|new",
            help="Where the images of an interrupted run have changed: finish on those it started with, or continue "
            "from its weights with the current ones.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="ram|disk|off",
            help="Where decoded images are kept; off: nowhere, every pass decodes anew. [default: by what is free]",
        ),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Plan the run to end in this time, such as 30s, 20m or 2h.")
    ] = None,
    tolerant: TolerantOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Learn an encoder from images, without labels.

    The model goes to .vitembed/model, where index and search find it. Ctrl-C saves and stops; the same command then
    goes on where it stopped. A finished model is never overwritten: with --fresh it is kept as NAME@FINGERPRINT, which
    --model takes, and an index that it made still answers. Images that cannot be read are left out and listed at the
    end.

    \b
    Examples:
      vitembed pretrain ./images
      vitembed pretrain ./images --time-budget 20m
      vitembed pretrain ./images --config small optim.batch_size=128 seed=1
      vitembed pretrain ./images --model other/.vitembed/model --name adapted
      vitembed pretrain ./images --model dinov2-small
    """  # noqa: D301
    paths, settings = split_settings(images)
    if cache is not None:
        from vitembed.recipes import given

        settings += given("data.cache", cache, settings, "--cache")
    if tolerant:
        settings.append("data.tolerant=true")
    seconds = None if time_budget is None else seconds_of(time_budget)
    from vitembed.outputs import REPORT, check_outputs
    from vitembed.workspace import check_name, find_workspace

    check_name(name)
    check_outputs((report, REPORT))
    from vitembed.pretrain.many.processes import current_process
    from vitembed.pretrain.run import pretrain as run_pretraining
    from vitembed.pretrain.watch.figures import key_figures

    result = run_pretraining(
        paths,
        config=config,
        overrides=settings,
        model=model,
        workspace=find_workspace(workspace, create=True),
        name=name,
        fresh=fresh,
        resume_on=resume_on,
        time_budget=seconds,
    )
    if current_process().rank > 0:  # of several processes the first one speaks
        raise typer.Exit(0 if result.completed else EXIT_INTERRUPTED)
    if not result.completed:
        note("Interrupted; everything is saved. The same command goes on from here.")
        raise typer.Exit(EXIT_INTERRUPTED)
    say_facts(
        [
            ("model", shown(result.model_dir)),
            ("run", shown(result.run_dir)),
            ("report", shown(result.report)),
            *([("kept", result.decision["words"])] if result.decision is not None else []),
            ("images", f"{result.num_images:,}"),
            ("steps", f"{result.num_steps:,} in {duration(result.seconds)}"),
            *[(metric, f"{value:.4g}") for metric, value in result.metrics.items() if metric not in _NOT_SHOWN],
            *key_figures(result.monitor),
        ]
    )
    finish(result.bad, strict=strict, report=report)
