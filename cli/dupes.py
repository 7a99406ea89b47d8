"""``vitembed dupes``: images that are the same or nearly so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitembed.errors import counted

from .options import JsonOption, WorkspaceOption
from .output import note, progress_bar, say_json, say_table, shown


def dupes(
    threshold: Annotated[
        float, typer.Option("--threshold", metavar="COSINE", help="From which cosine on images are nearly the same.")
    ] = 0.98,
    exact: Annotated[bool, typer.Option("--exact", help="Only files that are the same byte for byte.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the groups as one page, with pictures.")
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Find duplicates among the indexed images, and say which of each group to keep. Nothing is deleted.

    Suggested to be kept is the image with the most pixels, then the most bytes, then the oldest, then the first by
    path. Each other image of its group reaches the threshold with that very image, so likeness is never passed on from
    one image to the next. No model is needed. A file with several names (links) is one image. Long images are compared
    as wholes as well, since most models see their middle alone.

    \b
    Examples:
      vitembed dupes
      vitembed dupes --threshold 0.995 --html dupes.html
      vitembed dupes --exact --json
    """  # noqa: D301
    from vitembed.collection.collection import Collection
    from vitembed.collection.finding.duplicates import find_duplicates
    from vitembed.outputs import PAGE, check_outputs
    from vitembed.workspace import find_workspace

    check_outputs((html, PAGE))

    with (
        Collection.open(find_workspace(workspace).index_dir) as collection,
        progress_bar("comparing") as advance,
    ):
        found = find_duplicates(collection, threshold=threshold, exact_only=exact, progress=advance)
    if html is not None:
        found.write_sheet(html)
        note(f"page of duplicates: {shown(html)}")
    for line in found.notes:
        note(line)
    if json:
        say_json(found.to_dict())
        return
    rows = []
    for number, group in enumerate(found.groups, start=1):
        rows.append((str(number), "keep", group.reason, shown(group.keep.path)))
        rows += [
            (str(number), "", "same bytes" if other.exact else f"{other.score:.4f}", shown(other.image.path))
            for other in group.others
        ]
        rows += [(str(number), "", each.kind, f"{shown(each.image.path)} -> {shown(each.to)}") for each in group.links]
    if rows:
        say_table(["group", "", "why", "path"], rows, right=["group"])
    note(
        f"{counted(len(found.groups), 'group')}: {found.num_extra:,} of "
        f"{counted(found.num_images, 'image')} besides those to keep, deleting them frees "
        f"{counted(found.extra_bytes, 'byte')}"
    )
