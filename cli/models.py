"""``vitembed models``: what ``--model`` can name."""

from __future__ import annotations

from .options import JsonOption, WorkspaceOption
from .output import note, say_json, say_table, shown


def models(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the public models and your own.

    Public models are vision transformers that others trained. Weights are fetched once, on first use, into the Hugging
    Face cache (HF_HOME); from then on they work offline. Beside these names, timm/NAME and ORG/NAME of the hub work,
    and any of them with @REVISION. Mind the licences.

    \b
    Examples:
      vitembed models
      vitembed models --json
      vitembed index ./images --model dinov2-base
    """  # noqa: D301
    from vitembed.model.listing import list_models

    listed = list_models(workspace)
    if json:
        say_json([entry.to_dict() for entry in listed])
        return
    say_table(
        ["name", "size", "dims", "patch", "input", "licence", "source", "on disk"],
        [
            (
                entry.name,
                f"{entry.num_params / 1e6:,.1f} M",
                str(entry.embed_dim),
                f"{entry.patch_size} px",
                f"{entry.img_size} px",
                (entry.licence or "yours") + (" (gated)" if entry.gated else ""),
                entry.source if entry.hub_id else shown(entry.source),
                "yes" if entry.on_disk else "-",
            )
            for entry in listed
        ],
        right=["size", "dims", "patch", "input"],
    )
    if any(entry.gated for entry in listed):
        note("gated: accept the licence on the model's page at huggingface.co first, then log in with hf auth login")
