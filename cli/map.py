"""``vitembed map``: all images on one page, the like near each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vitembed.errors import counted

from .options import LabelsOption, WorkspaceOption, finite, name_labels
from .output import note, progress_bar, say_facts, shown


def map(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = Path("map.html"),
    method: Annotated[
        Literal["pca", "umap"],
        typer.Option("--method", metavar="M", help="pca, or umap (needs pip install 'vitembed[map]')."),
    ] = "pca",
    clusters: Annotated[
        int | None, typer.Option("--clusters", min=1, metavar="N", help="How many clusters. [default: 3 to 20]")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="EXPR", help="Only images that meet it, as for search.")
    ] = None,
    labels: LabelsOption = None,
    max_points: Annotated[
        int, typer.Option("--max-points", min=3, metavar="N", help="Images to show; of more an even sample is drawn.")
    ] = 20_000,
    max_mb: Annotated[
        float,
        typer.Option(
            "--max-mb",
            min=0.1,
            max=1e6,
            callback=finite,
            metavar="MB",
            help="About how large the pictures may be in all.",
        ),
    ] = 20.0,
    workspace: WorkspaceOption = None,
) -> None:
    """Draw a map of the indexed images: one HTML page that shows each image under the mouse.

    Points lie near their like, colours are clusters (k-means), each with an example. The page needs no other file and
    no network. No model is needed.

    \b
    Examples:
      vitembed map
      vitembed map --method umap --clusters 12 -o holiday.html --where "path ~ 'holiday/*'"
    """  # noqa: D301
    from vitembed.collection.collection import Collection
    from vitembed.collection.finding.map2d import make_map
    from vitembed.collection.finding.map_page import write_map
    from vitembed.outputs import PAGE, check_outputs
    from vitembed.workspace import find_workspace

    check_outputs((out, PAGE))

    with Collection.open(find_workspace(workspace).index_dir) as collection:
        name_labels(collection, labels)
        found = make_map(collection, method=method, num_clusters=clusters, max_points=max_points, where=where)
    with progress_bar("thumbnails") as advance:
        notes = write_map(out, found, max_bytes=round(max_mb * 1e6), progress=advance)
    for line in notes:
        note(line)
    say_facts(
        [
            ("map", shown(out)),
            ("images", f"{found.num_images:,}"),
            *[(cluster.name, counted(cluster.size, "image")) for cluster in found.clusters],
        ]
    )
