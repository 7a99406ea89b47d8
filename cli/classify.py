"""``vitembed classify``: new images through a saved probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitembed.errors import counted, printable

from .encoders import encoder_of_probe
from .options import (
    Images,
    JsonOption,
    ModelOption,
    ReportOption,
    StrictOption,
    TolerantOption,
    WorkspaceOption,
    finite,
)
from .output import finish, note, progress_bar, say, say_csv, say_json, shown

if TYPE_CHECKING:
    from vitembed.errors import BadImage
    from vitembed.probe.classify import Classified


def classify(
    images: Images,
    probe: Annotated[Path, typer.Option("--probe", metavar="FILE", help="What vitembed probe --save wrote.")],
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            callback=finite,
            metavar="P",
            help="Abstain below this probability. [default: the probe's]",
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV: path,label,probability,guess.")] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")] = False,
    json: JsonOption = False,
    copy_to: Annotated[
        Path | None,
        typer.Option("--copy-to", metavar="DIR", help="Also copy each image into a folder of its class there."),
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="With --copy-to: symbolic links, no copies.")] = False,
    model: ModelOption = None,
    tolerant: TolerantOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Label images by a saved probe, each with its probability; unsure where that is below the probe's threshold.

    The threshold was set when the probe was saved: the lowest probability from which on the answers were right often
    enough (--precision) on images that the probe had not learned from. The model is the one that the probe was made
    for; no other is taken. Originals are never moved, files in --copy-to never replaced.

    \b
    Examples:
      vitembed classify ./new --probe animals.safetensors
      vitembed classify ./new --probe animals.safetensors --csv > labels.csv
      vitembed classify ./new --probe animals.safetensors --copy-to ./sorted --link
    """  # noqa: D301
    if sum([csv, jsonl, json]) > 1:
        raise typer.BadParameter("only one of --csv, --jsonl and --json can be printed", param_hint="--csv")
    if link and copy_to is None:
        raise typer.BadParameter("links need a folder: --copy-to DIR", param_hint="--link")
    from vitembed.errors import DataError
    from vitembed.images.ignored import log_passed_over
    from vitembed.images.source import find_images
    from vitembed.outputs import REPORT, check_outputs
    from vitembed.probe.classify import classify as classified
    from vitembed.probe.saving import SavedProbe
    from vitembed.probe.sorted_folders import SortedFolders

    check_outputs((report, REPORT))
    saved = SavedProbe.load(probe)
    if threshold is not None:
        saved = replace(saved, threshold=threshold)
    folders = None if copy_to is None else SortedFolders(copy_to, saved.classes, link=link, inputs=images)
    listing = find_images(images)
    log_passed_over(listing.passed_over, listing.unfinished)
    encoder = encoder_of_probe(saved, model, workspace, tolerant=tolerant)
    batches = classified(encoder, listing.refs, saved)
    bad: list[BadImage] = [*listing.bad]
    notes: list[tuple[str, str]] = []
    results: list[Classified] = []
    num_done = num_sure = 0
    width = max(len("unsure"), *(len(printable(str(label))) for label in saved.classes))
    if csv:
        say_csv(["path", "label", "probability", "guess"])
    with progress_bar("classifying") as advance:
        for batch in batches:
            bad += batch.bad
            notes += batch.notes
            for result in batch.results:
                if folders is not None:
                    folders.add(result.path, result.label)
                if csv:
                    label = "" if result.label is None else str(result.label)
                    say_csv([result.path, label, f"{result.probability:.6f}", str(result.guess)])
                elif jsonl:
                    say_json(result.to_dict(), indent=None)
                elif json:
                    results.append(result)
                else:
                    label = "unsure" if result.label is None else printable(str(result.label))
                    maybe = f"  (perhaps {printable(str(result.guess))})" if result.label is None else ""
                    say(f"{label:{width}}  {100 * result.probability:5.1f} %  {shown(result.path)}{maybe}")
                num_sure += result.label is not None
            num_done += len(batch.results)
            advance(num_done + len(bad), len(listing.refs) + len(listing.bad))
    if not num_done:
        finish(bad, strict=False, report=report)
        raise DataError(f"no readable image in {', '.join(images)}")
    if json:
        say_json({"classes": saved.classes, "threshold": saved.threshold, "results": [r.to_dict() for r in results]})
    note(f"{counted(num_done, 'image')}: {num_sure:,} labelled, {num_done - num_sure:,} unsure")
    if folders is not None:
        note(f"{'linked' if link else 'copied'} into {shown(folders.directory)}")
    finish(bad, strict=strict, report=report, notes=notes)
