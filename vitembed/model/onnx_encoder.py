"""An exported encoder without torch: vectors from an ONNX file through onnxruntime, which starts much sooner."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitembed.errors import DataError, ModelError
from vitembed.images.loader import default_workers
from vitembed.images.preprocess import Preprocess

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = "vitembed-onnx"
FORMAT_VERSION = 1


class OnnxEncoder:
    """What ``export_onnx`` wrote, opened.

    Attributes:
        fingerprint: That of the encoder it was exported from: their vectors may meet.
        preprocess: How images become its input.
        pool: cls, mean or cls+mean.
        embed_dim: Width of a vector.
        name: What the exported encoder was called.
        licence: Licence of the weights, if known.
        provenance: Where the weights come from.
    """

    def __init__(self, session: InferenceSession, described: Mapping[str, str]) -> None:
        self.fingerprint = described["fingerprint"]
        self.preprocess = Preprocess.from_dict(json.loads(described["preprocess"]))
        self.pool = described["pool"]
        self.name = described["name"]
        self.licence: str | None = json.loads(described["licence"])
        self.provenance: dict[str, Any] = json.loads(described["provenance"])
        self._session = session
        self._input = session.get_inputs()[0].name
        self.embed_dim = int(session.get_outputs()[0].shape[1])
        size, chans = self.preprocess.img_size, self.preprocess.in_chans
        if session.get_inputs()[0].shape[1:] != [size, size, chans]:
            raise ModelError(f"the graph takes {session.get_inputs()[0].shape[1:]}, its preprocessing gives {size} px")

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, num_threads: int | None = None) -> OnnxEncoder:
        """Open an exported file.

        Args:
            path: The ``.onnx`` file.
            num_threads: Cores to use; none: ``OMP_NUM_THREADS``, else all that this process may use.

        Raises:
            ModelError: If it is absent, damaged, of a newer format, or was not exported by vitembed.
        """
        import onnxruntime

        if not Path(path).is_file():
            raise ModelError(f"no ONNX file at {path}: write one with `vitembed export --to onnx -o {path}`")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = num_threads or _num_threads()
        try:
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common class
            if type(error).__module__.startswith("onnxruntime"):
                reason = str(error).splitlines()[0]
                raise ModelError(f"cannot read {path}: {reason}; export it anew") from error
            raise
        described = session.get_modelmeta().custom_metadata_map
        if described.get("format") != FORMAT:
            raise ModelError(f"{path} was not written by `vitembed export --to onnx`: it has no preprocessing")
        if not described["format_version"].isdecimal() or int(described["format_version"]) > FORMAT_VERSION:
            raise ModelError(
                f"{path} has format version {described['format_version']}, this vitembed reads up to {FORMAT_VERSION}: "
                "update vitembed"
            )
        try:
            return cls(session, described)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path} is damaged: {error}; export it anew") from error

    def embed_arrays(self, images: np.ndarray) -> npt.NDArray[np.float32]:
        """Vectors of preprocessed images.

        Args:
            images: uint8 [b, s, s, c], as ``preprocess`` makes them.

        Returns:
            float32 [b, d], not normalised.

        Raises:
            DataError: If the array has another type or shape.
        """
        size, chans = self.preprocess.img_size, self.preprocess.in_chans
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, chans):
            raise DataError(
                f"expected uint8 images [b, {size}, {size}, {chans}], got {images.dtype} {list(images.shape)}: "
                "preprocess them first"
            )
        if len(images) == 0:
            return np.zeros((0, self.embed_dim), np.float32)
        vectors: npt.NDArray[np.float32] = self._session.run(None, {self._input: np.ascontiguousarray(images)})[0]
        return vectors


def _num_threads() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) else default_workers()
