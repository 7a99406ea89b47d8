"""One way in for every format: what ``vitembed export`` and ``vitembed.model.export.formats.export`` do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitembed.errors import ConfigError, printable
from vitembed.model.export.publish import check_files, check_folder
from vitembed.outputs import CARD, ONNX, WEIGHTS

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder

FORMATS = ("timm", "hf", "onnx")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    """The file or folder."""
    code: str
    """Python that loads it and gives the encoder's vector."""


def export(encoder: Encoder, to: str, path: str | Path, *, force: bool = False) -> Exported:
    """Write an encoder for another library.

    Args:
        encoder: What to export; opened without ``speed``.
        to: timm (a folder, or a ``.safetensors`` file), hf (a folder) or onnx (a file).
        path: Where to.
        force: Replace an earlier export that is there.

    Raises:
        ConfigError: If the format is unknown, or something is at ``path`` that must not be replaced.
        DataError: If a file is there that is no export of this kind.
        ModelError: If the format cannot hold this encoder.
    """
    path = Path(path)
    if to not in FORMATS:
        raise ConfigError(f"unknown format {to!r}: expected one of {', '.join(FORMATS)}")
    if to == "onnx" and path.suffix != ".onnx":
        raise ConfigError(f"{path} must end in .onnx")
    if to == "hf" and path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".json"):
        raise ConfigError(f"{path} must be a folder: transformers reads several files")
    if to == "onnx":
        check_files([(path, ONNX)], force=force)
    elif to == "timm" and path.suffix == ".safetensors":
        check_files([(path, WEIGHTS), (path.with_suffix(".md"), CARD)], force=force)
    else:
        check_folder(path, force=force)
    try:
        if to == "timm":
            from vitembed.model.export.timm import export_timm

            return Exported(path, export_timm(encoder, path))
        if to == "hf":
            from vitembed.model.export.hf import export_hf

            return Exported(path, export_hf(encoder, path))
        from vitembed.model.export.onnx import export_onnx

        return Exported(export_onnx(encoder, path), _ONNX_CODE.format(path=str(path)))
    except OSError as error:
        raise ConfigError(f"cannot write {printable(path)}: {error.strerror or error}") from error


_ONNX_CODE = """\
from vitembed.model.onnx_encoder import OnnxEncoder

encoder = OnnxEncoder.open({path!r})
vectors = encoder.embed_arrays(pixels)  # uint8 [b, s, s, 3], as encoder.preprocess.apply(image) gives them"""
