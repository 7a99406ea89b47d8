"""``vitembed index``: one vector per image in the workspace's collection, kept up to date."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitembed.errors import DataError, VitembedError, counted, printable
from vitembed.outputs import REPORT, check_outputs
from vitembed.workspace import find_workspace

from .encoders import index_encoder, index_facts, note_model
from .options import (
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
from .output import EXIT_MISTAKE, NUM_BAD_SHOWN, duration, finish, note, progress_bar, say_facts, shown

if TYPE_CHECKING:
    from vitembed.collection.collection import Collection
    from vitembed.collection.update import UpdateProgress, UpdateReport


def index(
    images: Images,
    model: ModelOption = None,
    speed: SpeedOption = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Build the index again, as after training a new model; the old one stays until the new one is done.",
        ),
    ] = False,
    float32: Annotated[
        bool, typer.Option("--float32", help="Store vectors in full, in twice the space; for a new index.")
    ] = False,
    ann: Annotated[
        str | None,
        typer.Option(
            "--ann",
            metavar="KIND",
            help="auto: compare with every vector while that meets the target; exact: always; or an index family, "
            "such as IVF4096,SQ8. Kept, as the next two are.",
        ),
    ] = None,
    target_ms: Annotated[
        float | None,
        typer.Option("--target-ms", metavar="MS", help="How long comparing with all may take before an index is made."),
    ] = None,
    min_recall: Annotated[
        float | None,
        typer.Option(
            "--min-recall", metavar="SHARE", help="The least share of the 10 nearest that an index must find."
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Take out images that are gone, also where a whole folder or most of it is."),
    ] = False,
    vacuum: Annotated[
        bool,
        typer.Option(
            "--vacuum",
            help="At the end delete the vectors that are kept of files that are gone, and an unfinished --rebuild.",
        ),
    ] = False,
    gpu_decode: GpuDecodeOption = False,
    depth: DepthOption = None,
    tolerant: TolerantOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Make images searchable, or bring the index up to date.

    The same command again updates: new and changed images are embedded, those gone from the folders are taken out, and
    what has not changed costs no more than a look at each file's size and time. Where a folder that was indexed is gone
    or unreadable, is no longer mounted, holds none of its images, or has lost more than half of them and at least 4, a
    drive may be away: its images are kept as offline, a line says so, and the exit code is 1. --prune takes them out;
    vitembed forget drops a folder. Vectors of files that are gone are kept by content until --vacuum, so what comes
    back is not embedded again. Paths in an @FILE count from the current folder. In the place of images, one vector file
    (npy, npz, parquet, arrow, csv, safetensors) is taken as it is. Where no model was trained yet, the public
    dinov2-small is used; the index remembers its model, and search then uses the same.

    \b
    Examples:
      vitembed index ./images
      vitembed index ./images ../more --report skipped.jsonl
      vitembed index ./images --model dinov2-base
      vitembed index vectors.parquet
      vitembed index ./images --ann auto --target-ms 20 --min-recall 0.98
    """  # noqa: D301
    asked = {"family": ann, "target_ms": target_ms, "min_recall": min_recall}
    _check_asked(asked)
    check_outputs((report, REPORT))
    from vitembed.vector_files import is_vector_file

    if len(images) == 1 and is_vector_file(images[0]):
        _index_vectors(Path(images[0]), rebuild, float32, asked, workspace)
        return
    from vitembed.collection.collection import Collection
    from vitembed.collection.finding.query_graph import is_settled, keep_query_graph

    encoder = index_encoder(
        model, workspace, speed=speed, rebuild=rebuild, gpu_decode=gpu_decode, depth=depth, tolerant=tolerant
    )
    place = find_workspace(workspace, create=True)
    with Collection.create(
        place.index_dir,
        fingerprint=encoder.fingerprint,
        dim=encoder.embed_dim,
        meta=index_facts(encoder),
        vector_type="float32" if float32 else None,
        rebuild=rebuild,
    ) as collection:
        with discarded_on_failure(collection), progress_bar("embedding") as advance:
            done = collection.update(
                encoder,
                images,
                retry_bad=tolerant,
                prune=prune,
                progress=lambda now: advance(now.done, now.total, _speed(now)),
            )
        if encoder.is_read or not is_settled(place.index_dir, encoder.fingerprint):
            keep_query_graph(place.index_dir, encoder.encoder())
        note_model(place, encoder)
        _say_report(collection, done)
        _approximate(collection, asked)
        if vacuum:
            collection.vacuum()
        if num := collection.unfinished_rebuild():
            note(
                f"an unfinished --rebuild is kept ({counted(num, 'image')}): run it again to finish, or drop it "
                "with --vacuum"
            )
        usable = done.added + done.changed + done.moved + done.unchanged + done.deleted > 0
        is_whole = not done.offline and not done.missing
        _say_what_is_away(done)
        finish(done.bad, strict=strict and usable and is_whole, report=report, notes=done.notes)
    if not is_whole:
        raise typer.Exit(EXIT_MISTAKE)
    if not usable:
        raise DataError(f"no readable image in {', '.join(map(shown, images))}")


@contextmanager
def discarded_on_failure(collection: Collection) -> Iterator[None]:
    """Leave no collection behind that is bound to a model which could embed nothing."""
    try:
        yield
    except BaseException:
        with suppress(VitembedError):
            collection.discard_if_empty()
        raise


def _index_vectors(file: Path, rebuild: bool, float32: bool, asked: dict[str, Any], workspace: Path | None) -> None:
    from vitembed.collection.collection import Collection
    from vitembed.embeddings import Embeddings

    embeddings = Embeddings.load(file)
    place = find_workspace(workspace, create=True)
    with Collection.create(
        place.index_dir,
        fingerprint=embeddings.fingerprint,
        dim=embeddings.dim,
        meta=embeddings.meta,
        vector_type="float32" if float32 else None,
        rebuild=rebuild,
    ) as collection:
        with discarded_on_failure(collection):
            done = collection.update_from(embeddings)
        _say_report(collection, done)
        _approximate(collection, asked)


def _check_asked(asked: dict[str, Any]) -> None:
    """Refuse wrong settings before the first image is embedded."""
    from vitembed.collection.ann.settings import AnnSettings

    AnnSettings().changed(**asked)


def _approximate(collection: Collection, asked: dict[str, Any]) -> None:
    before = collection.ann_settings()
    done = collection.build_ann(before.changed(**asked), say=note)
    if done.matters or any(value is not None for value in asked.values()):
        say_facts([("search", line) for line in done.lines()])


def _say_what_is_away(done: UpdateReport) -> None:
    from vitembed.images.ignored import passed_over_lines
    from vitembed.images.source import missing_error

    for line in passed_over_lines(done.passed_over, done.unfinished):
        note(line)
    for item in done.offline[:NUM_BAD_SHOWN]:
        name = printable(item.path) if item.path.startswith("@") else shown(item.path)
        note(f"offline: {name}: {item.reason}; {counted(item.num_images, 'image')} kept in the index")
    if len(done.offline) > NUM_BAD_SHOWN:
        note(f"... and {len(done.offline) - NUM_BAD_SHOWN:,} more that are offline")
    if done.offline:
        note("connect the drive and index again; or take them out with --prune or vitembed forget")
    if done.missing:
        note(str(missing_error(done.missing)))


def _speed(now: UpdateProgress) -> str:
    left = "" if now.eta_seconds is None else f", {duration(now.eta_seconds)} left"
    slowest = "the model" if now.model_share >= 0.5 else "decoding"
    return f"{now.images_per_second:.3g} images/s{left}, limited by {slowest}"


def _offline(done: UpdateReport) -> list[str]:
    return [f"{done.num_offline:,} offline"] if done.num_offline else []


def _say_report(collection: Collection, done: UpdateReport) -> None:
    counts = ("added", "changed", "moved", "deleted", "unchanged")
    facts = [
        ("index", f"{shown(collection.directory)} ({counted(len(collection), 'image')})"),
        ("this run", ", ".join([f"{getattr(done, name):,} {name}" for name in counts] + _offline(done))),
    ]
    if done.num_left_out:
        facts.append(("rebuilt", f"{counted(done.num_left_out, 'image')} of the old index not in the new one"))
    if done.num_links:
        links = counted(done.num_links, "other name", "other names")
        facts.append(("links", f"{links} of files that are indexed too: each file is embedded once"))
    if done.num_embedded:
        speed = f"{done.images_per_second:.3g} images/s"
        facts.append(
            ("speed", f"{done.num_embedded:,} in {duration(done.seconds)}: {speed}, limited by the {done.limit}")
        )
    say_facts(facts)
