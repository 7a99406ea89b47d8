"""``vitembed search``: the most similar images."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vitembed.errors import counted

from .encoders import open_encoder, recorded_depth, recorded_model, recorded_speed
from .options import JsonOption, LabelsOption, ModelOption, WorkspaceOption, name_labels
from .output import (
    EXIT_MISTAKE,
    EXIT_SKIPPED,
    note,
    say,
    say_json,
    say_paths,
    say_picture,
    say_table,
    shown,
    stdin_bytes,
)

if TYPE_CHECKING:
    from vitembed.collection.collection import Collection
    from vitembed.collection.finding.terminal import Protocol
    from vitembed.collection.query import QueryEncoder
    from vitembed.collection.search import SearchResult
    from vitembed.model.encoder import Encoder
    from vitembed.workspace import Workspace


def search(
    query: Annotated[
        list[str] | None, typer.Argument(metavar="QUERY...", help="Images to find the like of; several are averaged.")
    ] = None,
    unlike: Annotated[
        list[str] | None, typer.Option("--not", metavar="IMAGE", help="Move away from this image; may be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many images.")] = 10,
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", metavar="W", help="How much a query counts; once for each, in their order."),
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option("--crop", metavar="X,Y,W,H", help="Only this part of the query, in pixels or, as 25%, per cent."),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where",
            metavar="EXPR",
            help="Only images that meet it: path, name, folder (label), size, width, height, pixels and mtime, with "
            "= != < <= > >= in, ~ for a pattern with * and ?, and or not ( ). mtime > -30d: of the last 30 days.",
        ),
    ] = None,
    labels: LabelsOption = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="COSINE", help="No image below this score.")
    ] = None,
    unique: Annotated[
        bool,
        typer.Option(
            "--unique",
            help="Hide near-duplicates of a better result: cosine of 0.98 or more with it, by vectors alone.",
        ),
    ] = False,
    unique_at: Annotated[
        float | None, typer.Option("--unique-at", metavar="COSINE", help="The same, from this cosine on.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare every vector, even where the collection has an index.")
    ] = False,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            metavar="FILE",
            help="A list of queries (- is stdin): one path a line (# starts a comment) or NUL-separated, relative "
            "to the current folder; prints one JSON document a line for each.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a contact sheet: one file, for any browser."),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain",
            metavar="FILE",
            help="Also draw why each image matched: an .html or .png file with heat maps.",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the images in the terminal (never in a pipe).")] = False,
    graphics: Annotated[
        Literal["auto", "kitty", "iterm", "sixel", "blocks"],
        typer.Option("--graphics", metavar="KIND", help="How --show draws: auto, kitty, iterm, sixel or blocks."),
    ] = "auto",
    paths: Annotated[bool, typer.Option("--paths", help="Print the paths alone, one a line.")] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="Print the paths alone, NUL after each.")] = False,
    json: JsonOption = False,
    model: ModelOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Find the indexed images most similar to a query.

    Every vector is compared, unless the collection is so large that it has an index: then a line says what share of the
    nearest that finds. Scores are cosines, 1 at most. The percentile tells what a score means here: how many per
    cent of the pairs of images in the index are less alike. A query that is in the index itself is left out of the
    result, and needs no model.

    \b
    Examples:
      vitembed search query.jpg
      vitembed search red.jpg round.jpg --not square.jpg -k 20
      vitembed search query.jpg --where "mtime >= 2024-05 and not name ~ '*.png'"
      vitembed search query.jpg --where "label in (cat, dog)" --labels products.csv
      vitembed search query.jpg --crop 25%,25%,50%,50% --unique
      vitembed search query.jpg --html result.html --explain why.html
      vitembed search query.jpg -0 | xargs -0 ls -l
      find new -name '*.jpg' -print0 | vitembed search --batch -
    """  # noqa: D301
    from vitembed.collection.collection import Collection
    from vitembed.collection.search import UNIQUE_THRESHOLD
    from vitembed.collection.search import search as find
    from vitembed.outputs import PAGE, check_outputs, page_or_picture
    from vitembed.workspace import find_workspace

    check_outputs((html, PAGE), (explain, page_or_picture(explain) if explain is not None else PAGE))
    threshold = unique_at if unique_at is not None else UNIQUE_THRESHOLD if unique else None
    if batch is not None:
        _refuse_with_batch(query=query, unlike=unlike, weight=weight, crop=crop, html=html, explain=explain, show=show)
    elif not query:
        raise typer.BadParameter("Missing argument 'QUERY...'.")
    place = find_workspace(workspace)
    with Collection.open(place.index_dir) as collection:
        name_labels(collection, labels)

        def encoder() -> QueryEncoder:
            from vitembed.collection.finding.query_graph import query_encoder

            load = _loader(model, workspace, place, collection)
            return query_encoder(place.index_dir, collection.fingerprint, load, graph=model is None)

        limits: dict[str, Any] = {"k": k, "where": where, "min_score": min_score, "unique": threshold, "exact": exact}
        if batch is not None:
            _search_batch(collection, batch, encoder, limits)
            return
        assert query
        result = find(collection, query, encoder, exclude=unlike or [], weights=weight, crop=crop, **limits)
        if explain is not None:
            from vitembed.collection.finding.explain_sheet import write_explanation

            write_explanation(explain, _loader(model, workspace, place, collection)(), collection.fingerprint, result)
            note(f"why they matched: {shown(explain)}")
    if html is not None:
        result.write_sheet(html)
        note(f"contact sheet: {shown(html)}")
    for line in result.notes:
        note(line)
    if json:
        say_json(result.to_dict())
    elif paths or null:
        say_paths([hit.path for hit in result.hits], b"\0" if null else b"\n")
    elif show and sys.stdout.isatty():
        _show_pictures(result, graphics)
    else:
        if show:
            note("--show draws in a terminal alone, and this is none")
        _say_hits(result)
    if not result.exact and not json:
        note(f"{result.how}: --exact compares every vector")


def _loader(model: str | None, workspace: Path | None, place: Workspace, collection: Collection) -> Any:
    def load() -> Encoder:
        chosen, meta = model or recorded_model(collection, place), collection.meta
        encoder = open_encoder(chosen, workspace, speed=recorded_speed(meta), depth=recorded_depth(meta))
        return encoder.that_made(collection.fingerprint)

    return load


def _refuse_with_batch(**given: Any) -> None:
    names = {"query": "QUERY", "unlike": "--not"}
    wrong = [names.get(name, f"--{name}") for name, value in given.items() if value]
    if wrong:
        raise typer.BadParameter(f"--batch takes its queries from a file, so it cannot go with {', '.join(wrong)}")


def _search_batch(collection: Collection, batch: str, encoder: Any, limits: dict[str, Any]) -> None:
    from vitembed.collection.finding.batch import Failed, queries_in, read_queries, search_batch

    queries = queries_in(stdin_bytes()) if batch == "-" else read_queries(batch)
    num_done = num_failed = 0
    for answer in search_batch(collection, queries, encoder, **limits):
        num_done += 1
        if isinstance(answer, Failed):
            num_failed += 1
            say_json({"query": [answer.query], "error": answer.problem}, indent=None)
        else:
            say_json(answer.to_dict(), indent=None)
    if num_failed:
        note(f"{num_failed} of {counted(num_done, 'query', 'queries')} could not be answered: their lines say why")
        raise typer.Exit(EXIT_MISTAKE if num_failed == num_done else EXIT_SKIPPED)


def _say_hits(result: SearchResult) -> None:
    say_table(_columns(result), [_row(result, rank) for rank in range(len(result.hits))], right=_columns(result)[:-1])


def _columns(result: SearchResult) -> list[str]:
    known = result.background is not None and result.background.num_pairs > 0
    alike = any(hit.num_alike for hit in result.hits)
    return ["rank", "score", *(["percentile"] if known else []), *(["alike"] if alike else []), "path"]


def _row(result: SearchResult, place: int) -> Sequence[str]:
    from vitembed.collection.search import MISSING, shown_percent

    hit = result.hits[place]
    percentile = result.percentile(hit)
    cells = {
        "rank": str(hit.rank),
        "score": f"{hit.score:.4f}",
        "percentile": "" if percentile is None else shown_percent(percentile),
        "alike": f"+{hit.num_alike}" if hit.num_alike else "",
        "path": shown(hit.path) + (MISSING if hit.missing else ""),
    }
    return [cells[column] for column in _columns(result)]


def _show_pictures(result: SearchResult, graphics: Protocol | Literal["auto"]) -> None:
    from vitembed.collection.finding.terminal import choose_protocol, draw
    from vitembed.errors import BadImage
    from vitembed.page.picture import thumbnail

    kind = choose_protocol(os.environ) if graphics == "auto" else graphics
    columns = _columns(result)
    for place, hit in enumerate(result.hits):
        say("  ".join(f"{name} {cell}" for name, cell in zip(columns, _row(result, place), strict=True) if cell))
        try:
            say_picture(draw(thumbnail(hit.path, 480), kind))
        except BadImage as error:
            say(f"[{error.reason}]")
