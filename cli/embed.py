"""``vitembed embed``: vectors into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .encoders import open_encoder
from .options import (
    VECTOR_SUFFIXES,
    DepthOption,
    GpuDecodeOption,
    Images,
    ModelOption,
    ReportOption,
    SpeedOption,
    StrictOption,
    TolerantOption,
    WorkspaceOption,
)
from .output import duration, finish, progress_bar, say_facts, shown


def embed(
    images: Images,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Its suffix is the format: npy, npz, parquet, csv, safetensors."
        ),
    ],
    model: ModelOption = None,
    pool: Annotated[
        Literal["cls", "mean", "cls+mean"] | None,
        typer.Option(
            "--pool",
            metavar="cls|mean|cls+mean",
            help="The cls vector, the mean of the patches, or both side by side. [default: the model's]",
        ),
    ] = None,
    speed: SpeedOption = None,
    gpu_decode: GpuDecodeOption = False,
    depth: DepthOption = None,
    tolerant: TolerantOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write one vector per image to a file.

    The file also holds the paths and the model's fingerprint, and vitembed index can take it in.

    \b
    Examples:
      vitembed embed ./images -o vectors.parquet
      vitembed embed ./images -o vectors.npy --pool cls+mean
    """  # noqa: D301
    if output.suffix.lower() not in VECTOR_SUFFIXES:
        raise typer.BadParameter(f"{output.name!r} ends in none of {', '.join(VECTOR_SUFFIXES)}", param_hint="--output")
    from time import perf_counter

    from vitembed.errors import BadImage
    from vitembed.outputs import REPORT, VECTORS, check_outputs
    from vitembed.vector_files import check_vector_output

    check_vector_output(output)
    check_outputs((output, VECTORS), (report, REPORT))

    start = perf_counter()
    encoder = open_encoder(
        model, workspace, pool=pool, speed=speed, gpu_decode=gpu_decode, depth=depth, tolerant=tolerant
    )
    with progress_bar("embedding") as advance:
        embeddings = encoder.embed(images, on_bad="skip", progress=advance)
    embeddings.save(output)
    seconds = perf_counter() - start
    say_facts(
        [
            ("file", shown(output)),
            ("vectors", f"{len(embeddings):,} x {embeddings.dim}, {encoder.pool} of {encoder.name}"),
            ("fingerprint", embeddings.fingerprint[:12]),
            ("time", duration(seconds)),
        ]
    )
    bad = [BadImage(problem["path"], problem["reason"]) for problem in embeddings.meta.get("bad", [])]
    notes = [(each["path"], each["note"]) for each in embeddings.meta.get("notes", [])]
    finish(bad, strict=strict, report=report, notes=notes)
