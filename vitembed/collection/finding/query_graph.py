"""The encoder as an onnxruntime graph beside the index, so that a fresh query need not wait for torch to load.

A cache: made from the encoder itself, compared with it once when made, and made again when it is absent, damaged or of
another encoder. Where onnxruntime or the graph cannot do it, the encoder answers as before.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitembed.atomic import atomic_path
from vitembed.embeddings import unit_rows
from vitembed.errors import CollectionError, DamagedFile, VitembedError
from vitembed.lock import exclusive
from vitembed.seal import read_document

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder
    from vitembed.model.onnx_encoder import OnnxEncoder

GRAPH_FILE = "query.onnx"
SEAL_FILE = "query.json"
LOCK_FILE = "query.lock"
MIN_COSINE = 0.9999
"""What the graph's vectors must agree to with the encoder's own."""
_NUM_CHECKED = 4
_ONE_FILE_BYTES = 1 << 25
"""Larger weights lie beside the graph, where onnxruntime maps them: a ViT-B in half of the memory."""
_FORMAT_VERSION = 1

log = logging.getLogger("vitembed")


def open_query_graph(directory: Path, fingerprint: str) -> OnnxEncoder | None:
    """The graph of the encoder with this fingerprint, if there is a whole one; loads no torch.

    Args:
        directory: Of the collection.
        fingerprint: Of the encoder that the collection is of.
    """
    try:
        seal = read_document(directory / SEAL_FILE)
        if (seal["format"], seal["fingerprint"]) != (_FORMAT_VERSION, fingerprint):
            return None
        if not seal["usable"]:
            return None
        if {name: _crc32(directory / name) for name in seal["files"]} != seal["files"]:
            log.warning("the graph for queries is damaged: the model answers, and it is made anew")
            return None
        from vitembed.model.onnx_encoder import OnnxEncoder

        encoder = OnnxEncoder.open(directory / GRAPH_FILE)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ImportError, VitembedError) as error:
        log.info("no graph for queries: %s", error)
        return None
    return encoder if encoder.fingerprint == fingerprint else None


def query_encoder(
    directory: Path, fingerprint: str, load: Callable[[], Encoder], *, graph: bool = True
) -> Encoder | OnnxEncoder:
    """What embeds a fresh query: the graph where there is one, else the encoder, which then leaves one on CPU.

    Args:
        directory: Of the collection.
        fingerprint: Of the encoder that the collection is of.
        load: Gives the encoder itself.
        graph: Off where the user has named a model: then it is that one that answers.
    """
    found = open_query_graph(directory, fingerprint) if graph else None
    if found is not None:
        return found
    encoder = load().that_made(fingerprint)
    if encoder.fingerprint == fingerprint:
        keep_query_graph(directory, encoder)
    return encoder


def keep_query_graph(directory: Path, encoder: Encoder) -> bool:
    """Make sure that the graph of this encoder lies in ``directory`` (of its collection); False if it cannot be.

    That it cannot be is remembered, so that it is not tried at each query. An encoder on a GPU gets none: there it is
    the encoder itself that answers.
    """
    if encoder.device.type != "cpu":
        return False
    try:
        with exclusive(directory / LOCK_FILE, CollectionError):
            known = _sealed(directory, encoder.fingerprint)
            if known is not None:
                return known
            return _make(directory, encoder)
    except (OSError, CollectionError) as error:  # a medium that cannot be written, or another process at it
        log.info("no graph for queries kept: %s", error)
        return False


def is_settled(directory: Path, fingerprint: str) -> bool:
    """Whether the graph of this encoder is there and whole, or known to be impossible: ``keep_query_graph`` is idle."""
    return _sealed(directory, fingerprint) is not None


def _make(directory: Path, encoder: Encoder) -> bool:
    (directory / SEAL_FILE).unlink(missing_ok=True)  # first: never a seal on files that are being replaced
    _clear(directory)
    try:
        from vitembed.model.export.onnx import export_onnx
        from vitembed.model.onnx_encoder import OnnxEncoder

        export_onnx(encoder, directory / GRAPH_FILE, one_file_bytes=_ONE_FILE_BYTES)
        cosine = _agreement(encoder, OnnxEncoder.open(directory / GRAPH_FILE))
        problem = "" if cosine >= MIN_COSINE else f"its vectors agree to {cosine:.6f} only"
    except (ImportError, VitembedError) as error:
        problem, cosine = str(error), 0.0
    if problem:
        log.info("queries go through torch, not through a graph: %s", problem)
        _clear(directory)
    document = {
        "format": _FORMAT_VERSION,
        "fingerprint": encoder.fingerprint,
        "usable": not problem,
        "problem": problem,
        "cosine": cosine,
        "files": {path.name: _crc32(path) for path in _files(directory)},
    }
    with atomic_path(directory / SEAL_FILE) as temp:
        temp.write_text(json.dumps(document, indent=2), encoding="utf-8")
    return not problem


def _files(directory: Path) -> list[Path]:
    """The graph, and the weights beside it where they are too large to lie in it."""
    return [path for path in directory.glob(f"{Path(GRAPH_FILE).stem}*") if path.suffix in (".onnx", ".data")]


def _clear(directory: Path) -> None:
    for path in _files(directory):
        path.unlink(missing_ok=True)


def _sealed(directory: Path, fingerprint: str) -> bool | None:
    """Whether a graph of this encoder is usable; None if nobody has tried, or it is no longer whole."""
    try:
        seal = read_document(directory / SEAL_FILE)
        if (seal["format"], seal["fingerprint"]) != (_FORMAT_VERSION, fingerprint):
            return None
        whole = {name: _crc32(directory / name) for name in seal["files"]} == seal["files"]
        return bool(seal["usable"]) if whole else None
    except (OSError, DamagedFile, ValueError, KeyError, TypeError):
        return None


def _agreement(encoder: Encoder, graph: OnnxEncoder) -> float:
    """The worst cosine between the two over a few images: noise, even ones, and smooth ones in between."""
    size, chans = encoder.preprocess.img_size, encoder.preprocess.in_chans
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_NUM_CHECKED, size, size, chans), dtype=np.uint8)
    images[1] = 255
    images[2:4] = np.linspace(0, 255, size, dtype=np.uint8)[None, :, None, None]
    images[3] = images[3].transpose(1, 0, 2) // 2
    truth, found = unit_rows(encoder.embed_arrays(images)), unit_rows(graph.embed_arrays(images))
    return float((truth * found).sum(axis=1).min())


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value
