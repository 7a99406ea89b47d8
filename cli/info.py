"""``vitembed info``: what a model, a vector file or the workspace holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitembed.config.ranges import BATCH_SIZE
from vitembed.errors import counted

from .encoders import model_path
from .options import JsonOption, WorkspaceOption
from .output import note, say_facts, say_json, say_table, shown

if TYPE_CHECKING:
    from vitembed.model.about import ModelFacts
    from vitembed.model.cost import Cost
    from vitembed.workspace import Workspace

Facts = list[tuple[str, str]]

# Of what is known about the weights, what is worth a line.
_PROVENANCE = (
    *("made_by", "num_images", "num_steps", "seconds", "family", "hub_id", "revision", "sha256", "path"),
    *("preprocess_from", "paper"),
)


def info(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL|FILE]", help="A model, or a file of vectors. [default: the workspace]"),
    ] = None,
    img_size: Annotated[
        str | None,
        typer.Option("--img-size", metavar="PX,...", help="Table of costs: at these sizes of image."),
    ] = None,
    patch_size: Annotated[
        str | None,
        typer.Option("--patch-size", metavar="PX,...", help="Table of costs: with patches of these sizes."),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", min=1, max=BATCH_SIZE.high, metavar="N", help="Images at a time, for the memory."),
    ] = 64,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show what a model, vector file or workspace holds, and what a model costs.

    Of a public model that is not on this machine, size and costs are shown and nothing is fetched.

    \b
    Examples:
      vitembed info
      vitembed info .vitembed/model
      vitembed info dinov2-small
      vitembed info dinov2-small --img-size 224,336,518 --patch-size 8,14,16,32
      vitembed info vectors.parquet
    """  # noqa: D301
    sizes, patches = _numbers(img_size, "--img-size"), _numbers(patch_size, "--patch-size")
    if what is not None and _holds_vectors(what):
        facts = _of_vectors(Path(what))
    elif what is None and not sizes and not patches:
        from vitembed.workspace import find_workspace

        facts = _of_workspace(find_workspace(workspace), batch_size)
    else:
        from vitembed.model.about import about

        found = about(model_path(what, workspace), batch_size=batch_size)
        if sizes or patches:
            _say_table(found, sizes, patches, json)
            return
        if json:
            say_json(found.to_dict())
            return
        facts = _of_model(found)
    if json:
        say_json(dict(facts))
    else:
        say_facts(facts)


def _numbers(text: str | None, option: str) -> list[int]:
    """The sizes in ``224,336``."""
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 100_000 for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of sizes in pixels such as 224,336", param_hint=option)
    return [int(part) for part in parts]


def _holds_vectors(what: str) -> bool:
    """Vectors may lie in a safetensors file as weights do; the header tells, without loading torch."""
    from vitembed.vector_files import is_vector_file, vector_format

    return vector_format(what) is not None or (not what.lower().endswith(".safetensors") and is_vector_file(what))


def _of_model(facts: ModelFacts) -> Facts:
    architecture = facts.architecture
    if facts.cost is None:
        what = f"{architecture['architecture']} of timm, {facts.num_params / 1e6:.1f} M parameters"
    else:
        blocks = (
            f"{architecture['depth']} blocks of width {architecture['embed_dim']}, {architecture['num_heads']} heads"
        )
        patch = f"{architecture['patch_size']}-px patches"
        what = f"ViT, {blocks}, {patch}, {facts.num_params / 1e6:.1f} M parameters"
    seen = [f"{facts.preprocess['img_size']} px"]
    seen += [str(facts.preprocess[name]) for name in ("resize", "interpolation") if name in facts.preprocess]
    return [
        ("model", facts.name if not facts.on_disk else shown(facts.name) if Path(facts.name).exists() else facts.name),
        *([] if facts.on_disk else [("weights", "not on this machine yet: fetched on first use")]),
        ("architecture", what),
        ("input", ", ".join(seen)),
        ("vector", f"{facts.embed_dim} numbers, {facts.pool}"),
        ("arithmetic", f"{facts.flops / 1e9:,.3g} GFLOPs per image (a multiply-add is two)"),
        *([] if facts.cost is None else _of_cost(facts.cost)),
        *([("fingerprint", facts.fingerprint)] if facts.fingerprint else []),
        *[(name, _short(facts.provenance[name])) for name in _PROVENANCE if name in facts.provenance],
        *_of_parent(facts.provenance.get("parent")),
        *[("note", str(line)) for line in facts.provenance.get("notes", [])],
        *([("licence", facts.licence)] if facts.licence else []),
    ]


def _of_parent(parent: Any) -> Facts:
    """The model that this one was trained on from."""
    if not isinstance(parent, dict):
        return []
    source = parent.get("provenance") or {}
    named = [str(source[name]) for name in ("hub_id", "revision") if name in source]
    return [("went on from", "@".join(named) or f"encoder {str(parent.get('fingerprint'))[:12]}")]


def _of_cost(cost: Cost) -> Facts:
    return [
        ("tokens", f"{cost.num_tokens:,}"),
        (
            "attention",
            f"{cost.attention_pairs:,} pairs of tokens a head; over raw colour values it would be "
            f"{cost.raw_pixel_pairs:,}",
        ),
        ("embedding", f"{gigabytes(cost.embed_bytes)} of memory for {cost.batch_size} images at a time (fp32)"),
        ("training", f"{gigabytes(cost.train_bytes)} of memory for {cost.batch_size} images a step (fp32, AdamW)"),
    ]


def _say_table(facts: ModelFacts, img_sizes: list[int], patch_sizes: list[int], json: bool) -> None:
    from dataclasses import asdict

    from vitembed.model.about import refuse_table
    from vitembed.model.cost import cost_table, fits

    if facts.config is None or facts.cost is None:
        raise refuse_table(facts)
    img_sizes, patch_sizes = img_sizes or [facts.cost.img_size], patch_sizes or [facts.cost.patch_size]
    costs = cost_table(facts.config, img_sizes, patch_sizes, batch_size=facts.cost.batch_size)
    odd = [f"{side} px in {patch} px" for side in img_sizes for patch in patch_sizes if not fits(side, patch)]
    if json:
        say_json({**facts.to_dict(), "table": [asdict(cost) for cost in costs], "do_not_fit": odd})
        return
    headings = ["image", "patch", "tokens", "parameters", "GFLOPs", "x", "attention pairs", "raw pairs"]
    headings += [f"embed {facts.cost.batch_size}", f"train {facts.cost.batch_size}"]
    rows = [
        (
            f"{cost.img_size} px",
            f"{cost.patch_size} px",
            f"{cost.num_tokens:,}",
            f"{cost.num_params / 1e6:,.1f} M",
            f"{cost.flops / 1e9:,.3g}",
            f"{cost.flops / facts.flops:.2g}",
            f"{cost.attention_pairs:,}",
            f"{cost.raw_pixel_pairs / 1e9:,.1f} bn",
            gigabytes(cost.embed_bytes),
            gigabytes(cost.train_bytes),
        )
        for cost in costs
    ]
    say_table(headings, rows, right=headings)
    for pair in odd:
        note(f"left out: {pair} patches is no whole number of patches")


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


def _of_workspace(workspace: Workspace, batch_size: int) -> Facts:
    from vitembed.collection.collection import Collection
    from vitembed.collection.founding import has_catalog

    facts = [("workspace", shown(workspace.dir))]
    if workspace.model_dir.is_dir():
        from vitembed.model.about import about

        facts += _of_model(about(workspace.model_dir, batch_size=batch_size))
    else:
        facts.append(("model", "none yet: run vitembed pretrain, or name a public one (vitembed models)"))
    named = workspace.named_models()
    if named:
        facts.append(("other models", ", ".join(path.name for path in named)))
    if has_catalog(workspace.index_dir):
        with Collection.open(workspace.index_dir) as collection:
            facts.append(("index", f"{counted(len(collection), 'image')}, {collection.dim} numbers each"))
            facts.append(("index is of", f"encoder {collection.fingerprint[:12] or 'unknown'}"))
            facts.append(("unreadable", counted(len(collection.bad()), "image")))
            facts += [
                (
                    "folder",
                    f"{shown(root.path)} ({counted(root.num_images, 'image')}{', offline' if root.is_offline else ''})",
                )
                for root in collection.roots()
            ]
            if num := collection.unfinished_rebuild():
                facts.append(
                    (
                        "unfinished",
                        f"--rebuild, {counted(num, 'image')} so far: run it again, or drop it "
                        "with vitembed index IMAGES --vacuum",
                    )
                )
    else:
        facts.append(("index", "none yet: run vitembed index"))
    return facts


def gigabytes(num_bytes: int) -> str:
    """Bytes as people say them."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.0f} MB"


def _short(value: Any) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
