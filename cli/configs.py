"""``vitembed configs``: the recipes that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import say, say_facts


def configs(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this recipe, to start one of your own.")
    ] = None,
) -> None:
    """List the recipes of pretrain, or print one.

    \b
    Examples:
      vitembed configs
      vitembed configs small > mine.yaml
      vitembed pretrain ./images --config mine.yaml optim.max_epochs=50
    """  # noqa: D301
    from vitembed.recipes import packaged_configs, read_recipe

    if name is not None:
        say(read_recipe(name).rstrip("\n"))
        return
    say_facts(list(packaged_configs().items()))
