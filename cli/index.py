"""``vitembed index``: one vector per image in the workspace's collection, kept up to date."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitembed.errors import DataError, VitembedError
from vitembed.workspace import find_workspace

from .encoders import model_or_public, open_encoder, recorded_model, recorded_speed
from .options import VECTOR_SUFFIXES, Images, ModelOption, ReportOption, SpeedOption, StrictOption, WorkspaceOption
from .output import duration, finish, note, progress_bar, say_facts, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitembed.collection.collection import Collection
    from vitembed.collection.update import UpdateProgress, UpdateReport
    from vitembed.model.encoder import Encoder
    from vitembed.model.late import LateEncoder


def index(
    images: Images,
    model: ModelOption = None,
    speed: SpeedOption = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Empty the index first, as after training a new model.")
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
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Make images searchable, or bring the index up to date.

    The same command again updates: new and changed images are embedded, those gone from the folders are taken out, and
    what has not changed costs no more than a look at each file's size and time. In the place of images, one vector file
    (npy, npz, parquet, csv, safetensors) is taken as it is. Where no model was trained yet, the public dinov2-small is
    used; the index remembers its model, and search then uses the same.

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
    if len(images) == 1 and images[0].endswith(VECTOR_SUFFIXES):
        _index_vectors(Path(images[0]), rebuild, float32, asked, workspace)
        return
    from vitembed.collection.collection import Collection
    from vitembed.collection.finding.query_graph import is_settled, keep_query_graph
    from vitembed.model.late import LateEncoder

    recorded, recorded_at = _recorded(workspace, rebuild)

    def read_encoder() -> Encoder:
        return open_encoder(model_or_public(model or recorded, workspace), workspace, speed=speed or recorded_at)

    known = None if rebuild or speed else _known_encoder(model or recorded, recorded_at, workspace, read_encoder)
    encoder = known or read_encoder()
    place = find_workspace(workspace, create=True)
    with Collection.create(
        place.index_dir,
        fingerprint=encoder.fingerprint,
        dim=encoder.embed_dim,
        meta={} if isinstance(encoder, LateEncoder) else _facts(encoder),  # the index is there, and has them
        vector_type="float32" if float32 else None,
        rebuild=rebuild,
    ) as collection:
        with progress_bar("embedding") as advance:
            done = collection.update(encoder, images, progress=lambda now: advance(now.done, now.total, _speed(now)))
        if not isinstance(encoder, LateEncoder):
            keep_query_graph(place.index_dir, encoder)
        elif encoder.is_read or not is_settled(place.index_dir, encoder.fingerprint):
            keep_query_graph(place.index_dir, encoder.encoder())
        _say_report(collection, done)
        _approximate(collection, asked)
        usable = done.added + done.changed + done.moved + done.unchanged + done.deleted > 0
        finish(done.bad, strict=strict and usable, report=report)
    if not usable:
        raise DataError(f"no readable image in {', '.join(map(shown, images))}")


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
        _say_report(collection, collection.update_from(embeddings))
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


def _recorded(workspace: Path | None, rebuild: bool) -> tuple[str | None, str]:
    """The model that the index to be updated was made with, and at what speed."""
    from vitembed.collection.collection import Collection

    if rebuild:
        return None, "exact"
    try:
        place = find_workspace(workspace)
        with Collection.open(place.index_dir) as collection:
            return recorded_model(collection.meta, place), recorded_speed(collection.meta)
    except VitembedError:  # none yet, or not readable: what follows says so
        return None, "exact"


def _known_encoder(
    model: str | None, recorded_at: str, workspace: Path | None, read: Callable[[], Encoder]
) -> LateEncoder | None:
    """The encoder of the index, not read yet, where the model folder states that it is still the one."""
    from vitembed.collection.collection import Collection
    from vitembed.model.late import LateEncoder, stated_fingerprint

    if recorded_at != "exact":
        return None
    try:
        place = find_workspace(workspace)
        with Collection.open(place.index_dir) as collection:
            stated = stated_fingerprint(Path(model or place.model_dir))
            return LateEncoder(stated, collection.dim, read) if stated == collection.fingerprint else None
    except VitembedError:
        return None


def _facts(encoder: Encoder) -> dict[str, Any]:
    return {
        "model": encoder.name,
        "model_path": encoder.reference,
        "pool": encoder.pool,
        "speed": str(encoder.speed),
        "img_size": encoder.preprocess.img_size,
    }


def _speed(now: UpdateProgress) -> str:
    left = "" if now.eta_seconds is None else f", {duration(now.eta_seconds)} left"
    slowest = "the model" if now.model_share >= 0.5 else "decoding"
    return f"{now.images_per_second:.3g} images/s{left}, limited by {slowest}"


def _say_report(collection: Collection, done: UpdateReport) -> None:
    counts = ("added", "changed", "moved", "deleted", "unchanged")
    facts = [
        ("index", f"{shown(collection.directory)} ({len(collection):,} images)"),
        ("this run", ", ".join(f"{getattr(done, name):,} {name}" for name in counts)),
    ]
    if done.num_embedded:
        speed = f"{done.images_per_second:.3g} images/s"
        facts.append(
            ("speed", f"{done.num_embedded:,} in {duration(done.seconds)}: {speed}, limited by the {done.limit}")
        )
    say_facts(facts)
