"""``vitembed info``: what a model, a vector file or the workspace holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .models import model_path
from .options import VECTOR_SUFFIXES, WorkspaceOption
from .output import say_facts, shown

if TYPE_CHECKING:
    from vitembed.workspace import Workspace

Facts = list[tuple[str, str]]


def info(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|FILE]", help="A model, or a file of vectors. [default: the workspace]"),
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Show what a model, vector file or workspace holds.

    \b
    Examples:
      vitembed info
      vitembed info .vitembed/model
      vitembed info vectors.parquet
    """  # noqa: D301
    if what is None:
        from vitembed.workspace import find_workspace

        say_facts(_of_workspace(find_workspace(workspace)))
    elif what.endswith(VECTOR_SUFFIXES):
        say_facts(_of_vectors(Path(what)))
    else:
        say_facts(_of_model(model_path(what, workspace)))


def _of_model(model: str | None) -> Facts:
    from vitembed.model.encoder import load

    encoder = load(model, device="cpu")
    vit, preprocess = encoder.vit.config, encoder.preprocess
    num_weights = sum(weight.numel() for weight in encoder.vit.parameters())
    blocks = f"{vit.depth} blocks of width {vit.embed_dim}, {vit.num_heads} heads"
    trained = encoder.provenance
    return [
        ("model", shown(encoder.name)),
        ("architecture", f"ViT, {blocks}, {vit.patch_size}-px patches, {num_weights / 1e6:.1f} M parameters"),
        ("input", f"{preprocess.img_size} px, {preprocess.resize}, {preprocess.interpolation}"),
        ("vector", f"{encoder.embed_dim} numbers, {encoder.pool}"),
        ("fingerprint", encoder.fingerprint),
        *[
            (name, _short(trained[name]))
            for name in ("made_by", "num_images", "num_steps", "seconds")
            if name in trained
        ],
        *([("licence", encoder.licence)] if encoder.licence else []),
    ]


def _of_vectors(file: Path) -> Facts:
    from vitembed.embeddings import Embeddings

    embeddings = Embeddings.load(file)
    labels = [] if embeddings.labels is None else [("classes", f"{len(set(embeddings.labels.tolist())):,}")]
    return [
        ("file", shown(file)),
        ("vectors", f"{len(embeddings):,} x {embeddings.dim}"),
        ("fingerprint", embeddings.fingerprint or "unknown"),
        *labels,
        *[(name, _short(value)) for name, value in embeddings.meta.items() if not isinstance(value, (list, dict))],
    ]


def _of_workspace(workspace: Workspace) -> Facts:
    from vitembed.collection.collection import Collection

    facts = [("workspace", shown(workspace.dir))]
    if workspace.model_dir.is_dir():
        facts += _of_model(str(workspace.model_dir))
    else:
        facts.append(("model", "none yet: run vitembed pretrain"))
    named = sorted((workspace.dir / "models").glob("*/"))
    if named:
        facts.append(("other models", ", ".join(path.name for path in named)))
    if workspace.index_dir.is_dir():
        with Collection.open(workspace.index_dir) as collection:
            facts.append(("index", f"{len(collection):,} images, {collection.dim} numbers each"))
            facts.append(("index is of", f"encoder {collection.fingerprint[:12] or 'unknown'}"))
            facts.append(("unreadable", f"{len(collection.bad()):,} images"))
    else:
        facts.append(("index", "none yet: run vitembed index"))
    return facts


def _short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
