"""``vitembed forget``: take images out of the index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitembed.errors import counted

from .options import WorkspaceOption
from .output import EXIT_MISTAKE, note, say, shown


def forget(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="Folders (with all below them) or image files, also those that are gone."
        ),
    ],
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum",
            help="Also delete the vectors that are kept of files that are gone, and an unfinished --rebuild.",
        ),
    ] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Take folders or images out of the index. The pictures themselves are never touched.

    For folders that are gone for good, or that should not be searched any more. What is still there comes back when
    its folder is indexed again; it is not embedded again then, as vectors are kept by content until --vacuum. No model
    is needed.

    \b
    Examples:
      vitembed forget old/photos
      vitembed forget /media/usb album/IMG_0001.jpg
    """  # noqa: D301
    from vitembed.collection.collection import Collection
    from vitembed.images.source import absolute_path
    from vitembed.workspace import find_workspace

    with Collection.open(find_workspace(workspace).index_dir) as collection:
        done = collection.forget(paths)
        for path, count in done.items():
            say(f"forgotten: {shown(path)} ({counted(count, 'image')})")
        if vacuum:
            collection.vacuum()
    unknown = [path for path in paths if path not in done and not _is_covered(absolute_path(path), done)]
    for path in unknown:
        note(f"not in the index: {shown(path)}")
    if unknown:
        raise typer.Exit(EXIT_MISTAKE)


def _is_covered(path: str, done: dict[str, int]) -> bool:
    """Whether a path, or a folder above it that was named too, was forgotten."""
    return any(Path(path).is_relative_to(other) for other in done)
