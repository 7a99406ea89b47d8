"""``--to onnx``: one file with weights, preprocessing and pooling inside, for onnxruntime and whatever reads ONNX.

``vitembed.model.onnx_encoder`` reads it back without torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.atomic import atomic_path
from vitembed.errors import ConfigError
from vitembed.model.checkpoint import fingerprint
from vitembed.model.export.fitting import facts, plain_vit
from vitembed.model.export.onnx_graph import build_graph
from vitembed.model.misfit import refuse_misfit
from vitembed.model.onnx_encoder import FORMAT, FORMAT_VERSION

if TYPE_CHECKING:
    from onnx import ModelProto

    from vitembed.model.encoder import Encoder

OTHER = "export it with --to timm, or to ONNX with its own library's exporter"
_LARGEST_BYTES = 1 << 30
"""Weights beyond this lie in a file beside the graph: protobuf, and so an ONNX file, ends at 2 GiB."""


def export_onnx(encoder: Encoder, path: str | Path, *, pool: str | None = None) -> Path:
    """Write an encoder as an ONNX file whose output is the vector that ``Encoder`` gives, within rounding.

    Input ``images``: uint8 [batch, s, s, c] as ``encoder.preprocess`` makes them (resized and cropped RGB; scaling,
    mean and std are in the graph). Output ``embeddings``: float32 [batch, d], not normalised. The batch may be any.
    ``metadata_props`` holds fingerprint, preprocessing, pooling, licence and provenance, the last four as JSON.

    Args:
        encoder: What to export; opened without ``speed``.
        path: The file; one that is there is replaced, when the new one is whole. Weights of more than 1 GiB go to
            ``<stem>-<fingerprint>.data`` beside it, which must move along.
        pool: cls, mean or cls+mean, instead of the encoder's own.

    Raises:
        ModelError: If the architecture has parts that cannot be written down.
        ConfigError: If ``pool`` is unknown.
        OSError: If the file cannot be written.
    """
    path, pool = Path(path), pool or encoder.pool
    if pool not in ("cls", "mean", "cls+mean"):
        raise ConfigError(f"unknown pool {pool!r}: expected one of cls, mean, cls+mean")
    vit = plain_vit(encoder, "the ONNX export", OTHER)
    refuse_misfit(vit.config, "the ONNX export", [], OTHER)
    model = build_graph(vit, encoder.preprocess, pool)
    described = facts(encoder)
    if pool != encoder.pool:
        described["fingerprint"] = fingerprint(vit.state_dict(), vit.config, encoder.preprocess, pool)
        described["pool"] = pool
    _describe(model, described)
    _write(model, path, described["fingerprint"])
    return path


def _describe(model: ModelProto, described: dict[str, Any]) -> None:
    from onnx import helper

    preprocess = described["preprocess"]
    size, chans = preprocess["img_size"], preprocess["in_chans"]
    texts = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "input": f"uint8 [batch, {size}, {size}, {chans}], RGB, resized and cropped as preprocess says; not scaled: "
        "division by 255, mean and std are in the graph",
        "output": "float32, not normalised; divide by the length for cosines",
        "fingerprint": described["fingerprint"],
        "pool": described["pool"],
        "made_by": described["made_by"],
        "name": described["name"],
        **{key: json.dumps(described[key], sort_keys=True) for key in ("preprocess", "licence", "provenance")},
    }
    helper.set_model_props(model, texts)


def _write(model: ModelProto, path: Path, print_: str) -> None:
    """Graph and weights, each whole or not at all; the weights first, under a name that no older graph points to."""
    # Shapes of a few numbers stay in the graph: runtimes want to know them before they open another file.
    weights = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 64]
    if sum(len(tensor.raw_data) for tensor in weights) > _LARGEST_BYTES:
        from onnx.external_data_helper import set_external_data

        beside = path.with_name(f"{path.stem}-{print_[:12]}.data")
        with atomic_path(beside) as temp, temp.open("wb") as file:
            for tensor in weights:
                data = tensor.raw_data
                set_external_data(tensor, beside.name, offset=file.tell(), length=len(data))
                file.write(data)
                tensor.ClearField("raw_data")
    with atomic_path(path) as temp:
        temp.write_bytes(model.SerializeToString(deterministic=True))
