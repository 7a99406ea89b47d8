"""``vitembed search``: the most similar images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .models import open_encoder, recorded_model
from .options import JsonOption, ModelOption, WorkspaceOption
from .output import note, say_json, say_table, shown

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder


def search(
    query: Annotated[
        list[str], typer.Argument(metavar="QUERY...", help="Images to find the like of; several are averaged.")
    ],
    unlike: Annotated[
        list[str] | None, typer.Option("--not", metavar="IMAGE", help="Move away from this image; may be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many images.")] = 10,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a contact sheet: one file, for any browser."),
    ] = None,
    json: JsonOption = False,
    model: ModelOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Find the indexed images most similar to a query.

    Every vector is compared; scores are cosines, 1 at most. A query that is in the index itself is left out of the
    result, and needs no model.

    \b
    Examples:
      vitembed search query.jpg
      vitembed search red.jpg round.jpg --not square.jpg -k 20
      vitembed search query.jpg --html result.html
      vitembed search query.jpg --json
    """  # noqa: D301
    from vitembed.collection.collection import Collection
    from vitembed.collection.search import search as find
    from vitembed.workspace import find_workspace

    place = find_workspace(workspace)
    with Collection.open(place.index_dir) as collection:

        def encoder() -> Encoder:
            return open_encoder(model or recorded_model(collection.meta, place), workspace)

        result = find(collection, query, encoder, k=k, exclude=unlike or [])
    if html is not None:
        result.write_sheet(html)
        note(f"contact sheet: {shown(html)}")
    if json:
        say_json(result.to_dict())
        return
    rows = [(str(hit.rank), f"{hit.score:.4f}", shown(hit.path)) for hit in result.hits]
    say_table(["rank", "score", "path"], rows, right=["rank", "score"])
