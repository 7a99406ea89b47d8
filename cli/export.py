"""``vitembed export``: a model for timm, Hugging Face transformers or ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .encoders import open_encoder
from .options import WorkspaceOption
from .output import say, say_facts, shown


def export(
    to: Annotated[
        Literal["timm", "hf", "onnx"],
        typer.Option(
            "--to",
            metavar="timm|hf|onnx",
            help="timm: a folder, or one .safetensors file. hf: a folder for transformers. onnx: one file.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The folder or file to write.")],
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="As in --model of other commands. [default: the workspace's]"),
    ] = None,
    pool: Annotated[
        Literal["cls", "mean", "cls+mean"] | None,
        typer.Option(
            "--pool",
            metavar="cls|mean|cls+mean",
            help="The vector that the export gives, or that its card explains. [default: the model's]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export that is there.")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a model that other libraries load, with a card that says what it is and how to use it.

    The vectors are those of vitembed embed. Preprocessing, fingerprint, licence and what is known of the training
    travel along. What a format cannot hold is refused. Prints the code that loads it.

    \b
    Examples:
      vitembed export --to timm -o encoder.safetensors
      vitembed export --to hf -o ./my-encoder
      vitembed export dinov2-small --to onnx -o dinov2.onnx
    """  # noqa: D301
    from vitembed.model.export.formats import export as write

    encoder = open_encoder(model, workspace, pool=pool)
    done = write(encoder, to, output, force=force)
    say_facts(
        [
            ("exported", shown(done.path)),
            ("vector", f"{encoder.embed_dim} numbers, {encoder.pool}"),
            ("fingerprint", encoder.fingerprint[:12]),
            ("licence", encoder.licence or "not stated"),
        ]
    )
    say(f"\n{done.code}")
