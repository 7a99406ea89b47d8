"""``vitembed demo``: the whole way, on data that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results and contact sheets go.")] = Path(
        "demo-out"
    ),
    dataset: Annotated[
        Literal["emoji", "fashion-mnist", "cifar10", "imagenette"],
        typer.Option(
            "--dataset",
            metavar="NAME",
            help="emoji (in the package), or fashion-mnist, cifar10, imagenette (downloaded by torchvision).",
        ),
    ] = "emoji",
    data_root: Annotated[
        Path | None, typer.Option("--data-root", metavar="DIR", help="Where torchvision's data already are.")
    ] = None,
) -> None:
    """Show everything on small real data.

    Types the commands a user would type: pretrain, index, search, probe. Takes a few minutes on two CPU cores and ends
    with a table of results and contact sheets to open in a browser.
    """
    from vitembed.demo.tour import run_tour

    run_tour(out, dataset=dataset, data_root=data_root)
