"""The model card: what exported weights are, how to use them, what they learned from and who may use them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder

# Licences that the Hugging Face hub knows by this name; any other is "other" with its name beside it.
_HUB_LICENCES = {
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc0-1.0",
}
_TRAINING = {
    "made_by": "made by",
    "num_images": "images",
    "num_steps": "steps",
    "seconds": "seconds",
    "family": "family",
    "hub_id": "from the hub",
    "revision": "revision",
    "sha256": "SHA-256 of the source",
}


def model_card(encoder: Encoder, library: str, use: str, remarks: Sequence[str] = ()) -> str:
    """A README.md for exported weights, with the header that the Hugging Face hub reads.

    Args:
        encoder: What was exported.
        library: The library's name on the hub: timm, transformers or onnx.
        use: Python code that gives the encoder's vector.
        remarks: Sentences about what differs from ``vitembed``.
    """
    preprocess = encoder.preprocess
    name = encoder.name.rstrip("/").rsplit("/", 1)[-1] or "encoder"
    num_millions = sum(weight.numel() for weight in encoder.vit.parameters()) / 1e6
    body = [
        _header(encoder.licence, library),
        f"# {name}",
        f"An image encoder: a vision transformer of {num_millions:.1f} million weights that turns an image of "
        f"{preprocess.img_size}x{preprocess.img_size} pixels into one vector of {encoder.embed_dim} numbers "
        f"({_POOLS[encoder.pool]}). Vectors are compared by their cosine. Exported by vitembed; fingerprint "
        f"`{encoder.fingerprint}`.",
        "## Use",
        f"```python\n{use.rstrip()}\n```",
        *([" ".join(remarks)] if remarks else []),
        "## Input",
        _input_words(preprocess.to_dict()),
        "## Training",
        _training_words(encoder.provenance),
        "## Licence",
        encoder.licence or "Not stated. Weights learned from your own images are yours; say here what others may do.",
    ]
    return "\n\n".join(body) + "\n"


_POOLS = {
    "cls": "the cls vector",
    "mean": "the mean of the patch tokens",
    "cls+mean": "the cls vector and the mean of the patch tokens, side by side",
}


def _header(licence: str | None, library: str) -> str:
    lines = [f"library_name: {library}", "pipeline_tag: image-feature-extraction", "tags: [vitembed, image-embeddings]"]
    if licence is None:
        lines.append("license: unknown")
    elif licence.lower() in _HUB_LICENCES:
        lines.append(f"license: {licence.lower()}")
    else:
        lines += ["license: other", f"license_name: {json.dumps(licence)}"]
    return "\n".join(["---", *lines, "---"])


def _input_words(preprocess: Mapping[str, Any]) -> str:
    size, share = preprocess["img_size"], preprocess["crop_pct"]
    ways = {
        "crop": f"the shorter side resized to {int(size / share)} px, the centre cut out",
        "squash": "both sides resized, whatever the aspect",
        "squash+crop": f"both sides resized to {int(size / share)} px, whatever the aspect, the centre cut out",
        "pad": f"the longer side resized, the rest filled with RGB {preprocess['background']}",
    }
    return (
        f"RGB, upright (EXIF), {ways[preprocess['resize']]}: {size} x {size} px, {preprocess['interpolation']} with "
        f"antialiasing; divided by 255, mean {preprocess['mean']}, std {preprocess['std']}. Transparent pixels lie on "
        f"RGB {preprocess['background']}. vitembed itself may decode a large JPEG scaled, which others do not; "
        "pixels then differ by about 0.2 of 255 on average."
    )


def _training_words(provenance: Mapping[str, Any]) -> str:
    if not provenance:
        return "Nothing is known about where the weights come from."
    rows = [f"- {words}: {provenance[key]}" for key, words in _TRAINING.items() if key in provenance]
    parent = provenance.get("parent")
    if isinstance(parent, Mapping):
        rows.append(f"- continued from: {parent.get('fingerprint')} (licence: {parent.get('licence') or 'not stated'})")
    text = "Self-supervised: no labels were used to learn.\n\n" if "config" in provenance else ""
    details = json.dumps(provenance, indent=2, sort_keys=True, default=str)
    everything = f"<details><summary>Everything that is recorded</summary>\n\n```json\n{details}\n```\n\n</details>"
    return text + "\n".join(rows) + ("\n\n" if rows else "") + everything
