"""``vitembed probe``: what the vectors are worth on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .encoders import open_encoder
from .options import JsonOption, ModelOption, ReportOption, SpeedOption, StrictOption, WorkspaceOption
from .output import finish, progress_bar, say, say_json, say_table


def probe(
    labelled: Annotated[
        Path,
        typer.Argument(
            metavar="LABELLED",
            help="A folder with one sub-folder per class (or train and test folders of them), or a CSV file with "
            "columns path,label[,split].",
        ),
    ],
    model: ModelOption = None,
    speed: SpeedOption = None,
    json: JsonOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure how well frozen vectors tell classes apart.

    Prints the accuracy of always guessing the largest class, of the nearest neighbours and of a linear classifier,
    each with its 95 % interval, on images that neither has learned from. Nothing of the encoder is trained.

    \b
    Examples:
      vitembed probe ./labelled
      vitembed probe labels.csv --model .vitembed/model --json
    """  # noqa: D301
    from vitembed.errors import BadImage
    from vitembed.probe.labels import read_labelled
    from vitembed.probe.report import evaluate

    images = read_labelled(labelled)
    encoder = open_encoder(model, workspace, speed=speed)
    with progress_bar("embedding") as advance:
        embeddings = encoder.embed(images.paths, on_bad="skip", progress=advance)
    place = {path: row for row, path in enumerate(images.paths)}
    rows = [place[path] for path in embeddings.ids]
    result = evaluate(embeddings, images.labels[rows], split=None if images.split is None else images.split[rows])
    if json:
        say_json(result.to_dict())
    else:
        scores = {"majority": result.majority, f"{result.k}-NN": result.knn, "linear": result.linear}
        say_table(
            ["probe", "accuracy", "95 % interval", "balanced", "macro F1"],
            [
                (
                    name,
                    f"{100 * score.accuracy:.1f} %",
                    f"{100 * score.ci95[0]:.1f} - {100 * score.ci95[1]:.1f} %",
                    f"{100 * score.balanced_accuracy:.1f} %",
                    f"{100 * score.macro_f1:.1f} %",
                )
                for name, score in scores.items()
            ],
            right=["accuracy", "95 % interval", "balanced", "macro F1"],
        )
        say(f"{result.num_classes} classes, learned from {result.num_train:,} images, tested on {result.num_test:,}")
        for remark in result.notes:
            say(f"note: {remark}")
    bad = [BadImage(problem["path"], problem["reason"]) for problem in embeddings.meta["bad"]]
    finish([*images.bad, *bad], strict=strict, report=report)
