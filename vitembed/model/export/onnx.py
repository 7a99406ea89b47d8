"""``--to onnx``: one file with weights, preprocessing and pooling inside, for onnxruntime and whatever reads ONNX.

``vitembed.model.onnx_encoder`` reads it back without torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vitembed.atomic import atomic_path
from vitembed.errors import ConfigError
from vitembed.model.checkpoint import fingerprint
from vitembed.model.export.fitting import facts, plain_vit
from vitembed.model.export.onnx_graph import build_graph
from vitembed.model.misfit import refuse_misfit
from vitembed.model.onnx_encoder import FORMAT, FORMAT_VERSION
from vitembed.outputs import ONNX, check_output, write_output

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

    from vitembed.model.encoder import Encoder

OTHER = "export it with --to timm, or to ONNX with its own library's exporter"
LARGEST_BYTES = 1 << 30
"""Weights beyond this lie in a file beside the graph: protobuf, and so an ONNX file, ends at 2 GiB."""
_SMALLEST_BYTES = 64


def export_onnx(
    encoder: Encoder, path: str | Path, *, pool: str | None = None, one_file_bytes: int = LARGEST_BYTES
) -> Path:
    """Write an encoder as an ONNX file whose output is the vector that ``Encoder`` gives, within rounding.

    Input ``images``: uint8 [batch, s, s, c] as ``encoder.preprocess`` makes them (resized and cropped RGB; scaling,
    mean and std are in the graph). Output ``embeddings``: float32 [batch, d], not normalised. The batch may be any.
    ``metadata_props`` holds fingerprint, preprocessing, pooling, licence and provenance, the last four as JSON.

    Args:
        encoder: What to export; opened without ``speed``.
        path: The file; an earlier export there is replaced, when the new one is whole.
        pool: cls, mean or cls+mean, instead of the encoder's own.
        one_file_bytes: Weights of more go to ``<stem>-<fingerprint>.data`` beside it, which must move along; that is
            written and opened in less memory and time.

    Raises:
        ModelError: If the architecture has parts that cannot be written down.
        ConfigError: If ``pool`` is unknown.
        DataError: If the file cannot be written, or something else is there.
    """
    path, pool = Path(path), pool or encoder.pool
    if pool not in ("cls", "mean", "cls+mean"):
        raise ConfigError(f"unknown pool {pool!r}: expected one of cls, mean, cls+mean")
    check_output(path, ONNX)
    vit = plain_vit(encoder, "the ONNX export", OTHER)
    refuse_misfit(vit.config, "the ONNX export", [], OTHER)
    described = facts(encoder)
    if pool != encoder.pool:
        described["fingerprint"] = fingerprint(vit.state_dict(), vit.config, encoder.preprocess, pool)
        described["pool"] = pool
    if sum(4 * weight.numel() for weight in vit.parameters()) <= one_file_bytes:
        model = build_graph(vit, encoder.preprocess, pool)
    else:  # first the weights, under a name that no older graph points to, then the graph
        beside = path.with_name(f"{path.stem}-{described['fingerprint'][:12]}.data")
        with atomic_path(beside) as temp, temp.open("wb") as file:
            model = build_graph(vit, encoder.preprocess, pool, store=_Beside(file, beside.name))
    _describe(model, described)
    write_output(path, ONNX, model.SerializeToString(deterministic=True))
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


class _Beside:
    """A file of weights beside the graph, written as they come: protobuf would hold all of them, several times over."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name

    def __call__(self, array: np.ndarray, name: str) -> TensorProto:
        """Put an array there, unless it is small: runtimes want to know shapes before they open another file."""
        from onnx import TensorProto, helper, numpy_helper

        if array.nbytes <= _SMALLEST_BYTES:
            return numpy_helper.from_array(array, name)
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": self.name, "offset": self.file.tell(), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
        return tensor
