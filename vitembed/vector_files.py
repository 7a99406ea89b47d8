"""Embeddings as files: npy, npz, parquet, csv and safetensors, exact both ways and checked on reading.

Every format carries the same header: fingerprint, meta and a checksum over vectors, ids and labels. npy and csv have no
room for it, so it lies beside them as ``<file>.json``. Ids that are paths with bytes outside UTF-8 survive everywhere.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError, printable
from vitembed.outputs import VECTORS, VECTORS_HEADER, check_output, is_stream, output_file, write_output

log = logging.getLogger("vitembed")

Header = dict[str, Any]
FORMAT_VERSION = 1
_WITH_SIDECAR = (".npy", ".csv")
_OLD, _NEW_CRC32 = "replaced", "crc32"  # in the file beside them, for the moment in which vectors are replaced


class Content(NamedTuple):
    """What a reader found: ids, labels and header are None where the file has none."""

    vectors: np.ndarray
    ids: list[str] | None
    labels: np.ndarray | None
    header: Header | None


def save_embeddings(embeddings: Embeddings, path: Path) -> None:
    """Write ``path`` in the format that its suffix names; see ``Embeddings.save``."""
    check_vector_output(path)
    write, _ = _format_of(path)
    try:
        header = {
            "format": FORMAT_VERSION,
            "fingerprint": embeddings.fingerprint,
            "meta": embeddings.meta,
            "label_type": None
            if embeddings.labels is None
            else "text"
            if embeddings.labels.dtype.kind == "U"
            else "int",
            "checksum": _checksum(embeddings.vectors, embeddings.ids, embeddings.labels),
        }
        json.dumps(header)
        with output_file(path, VECTORS) as temp:
            beside = write(temp, embeddings, header)
            if beside is not None and is_stream(path):
                log.warning("%s: only the vectors are written, as nothing can lie beside it (parquet holds all)", path)
                beside = None
            replaces = beside is not None and path.exists()
            if beside is not None:  # with the old header too, so that a power cut leaves vectors that fit one
                old = {_NEW_CRC32: _crc32(temp), _OLD: _old_header(path)} if replaces else {}
                write_output(_sidecar(path), VECTORS_HEADER, json.dumps({**beside, **old}))
        if replaces:
            write_output(_sidecar(path), VECTORS_HEADER, json.dumps(beside))
    except (TypeError, ValueError) as error:  # UnicodeError is a ValueError
        raise DataError(f"{printable(path)}: cannot hold this as {path.suffix}: {_one_line(error)}") from error


def check_vector_output(path: Path) -> None:
    """Refuse, before the work, what ``save_embeddings`` would refuse after it.

    Raises:
        DataError: If the suffix is unknown, or something is there that vitembed did not write as vectors.
    """
    _format_of(path)
    check_output(path, VECTORS)
    if path.suffix.lower() in _WITH_SIDECAR and not is_stream(path):
        check_output(_sidecar(path), VECTORS_HEADER)


def load_embeddings(path: Path) -> Embeddings:
    """Read ``path`` in the format that its suffix names; see ``Embeddings.load``."""
    _, read = _format_of(path)
    if not path.is_file():
        raise DataError(f"{printable(path)}: no such file")
    try:
        content = read(path)
        header = content.header or {}
        if header.get("format", FORMAT_VERSION) > FORMAT_VERSION:
            raise DataError(
                f"format {header['format']} is newer than this vitembed reads ({FORMAT_VERSION}): upgrade vitembed"
            )
        ids = content.ids if content.ids is not None else [str(row) for row in range(len(content.vectors))]
        embeddings = Embeddings(
            content.vectors, ids, str(header.get("fingerprint", "")), content.labels, dict(header.get("meta", {}))
        )
        checksum = header.get("checksum")
        if checksum is not None and checksum != _checksum(embeddings.vectors, embeddings.ids, embeddings.labels):
            beside = f"; delete {printable(_sidecar(path).name)} to read it bare" if _sidecar(path).is_file() else ""
            raise DataError(f"its content does not match its checksum: damaged or edited{beside}")
        return embeddings
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    except Exception as error:  # on damaged bytes the parsers raise whatever comes: it is the file's fault, not ours
        raise DataError(f"{printable(path)}: not a readable {path.suffix[1:]} file: {_one_line(error)}") from error


def _write_npy(path: Path, embeddings: Embeddings, header: Header) -> Header | None:
    with path.open("wb") as file:
        np.save(file, embeddings.vectors, allow_pickle=False)
    labels = None if embeddings.labels is None else embeddings.labels.tolist()
    return {**header, "ids": embeddings.ids, "labels": labels}


def _read_npy(path: Path) -> Content:
    with path.open("rb") as file:
        vectors = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise DataError("bytes after the end of the array")
    header = _read_sidecar(path)
    if header is None:
        return Content(vectors, None, None, None)
    return Content(vectors, header["ids"], _labels_of(header["labels"], header), header)


def _write_npz(path: Path, embeddings: Embeddings, header: Header) -> Header | None:
    if any(name.endswith("\0") for name in embeddings.ids):
        raise ValueError("an id ends in a NUL character")
    # Header first: a damaged zip directory can lose the entries after a place, and then the checksum tells.
    columns = {"header": np.array(json.dumps(header)), "vectors": embeddings.vectors}
    columns["ids"] = np.array(embeddings.ids, dtype=str)
    if embeddings.labels is not None:
        columns["labels"] = embeddings.labels
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **columns)
    return None


def _read_npz(path: Path) -> Content:
    with np.load(path, allow_pickle=False) as columns:
        if "vectors" not in columns:
            raise DataError(f"no array named 'vectors', only {', '.join(columns) or 'none'}")
        ids = columns["ids"].astype(str).tolist() if "ids" in columns else None
        labels = columns.get("labels")
        header = json.loads(str(columns["header"])) if "header" in columns else None
        return Content(columns["vectors"], ids, labels, header)


def _write_parquet(path: Path, embeddings: Embeddings, header: Header) -> Header | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        ids = pa.array(embeddings.ids, pa.string())
    except UnicodeError:  # a path that is not UTF-8: the column is then bytes, as the file system has them
        ids = pa.array([_to_bytes(name) for name in embeddings.ids], pa.binary())
    columns = {"id": ids}
    if embeddings.labels is not None:
        columns["label"] = pa.array(
            embeddings.labels.tolist(), pa.int64() if header["label_type"] == "int" else pa.string()
        )
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.vectors.reshape(-1)), embeddings.dim)
    table = pa.table(columns).replace_schema_metadata({"vitembed": json.dumps(header)})
    with path.open("wb") as file:
        pq.write_table(table, file)
    return None


def _read_parquet(path: Path) -> Content:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        table = pq.ParquetFile(file).read()
    names = {name: name for name in table.column_names}
    vector, name_column = names.get("vector", names.get("embedding")), names.get("id", names.get("path"))
    if vector is None:
        raise DataError(f"no column named 'vector' or 'embedding', only {', '.join(names) or 'none'}")
    column = table[vector].combine_chunks()
    if column.null_count or not pa.types.is_nested(column.type):
        raise DataError(f"column {vector!r} is not a list of numbers in every row")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    if len(set(column.value_lengths().to_pylist())) > 1:
        raise DataError(f"column {vector!r} has rows of different lengths")
    dim = len(flat) // len(table) if len(table) else getattr(column.type, "list_size", 0)
    ids = None if name_column is None else [_to_text(name) for name in table[name_column].to_pylist()]
    labels = None if "label" not in names else np.array(table["label"].to_pylist())
    metadata = (table.schema.metadata or {}).get(b"vitembed")
    header = None if metadata is None else json.loads(metadata)
    return Content(flat.reshape(len(table), dim), ids, _labels_of(labels, header), header)


def _write_csv(path: Path, embeddings: Embeddings, header: Header) -> Header | None:
    named = ["id"] if embeddings.labels is None else ["id", "label"]
    # surrogateescape writes the bytes of an undecodable path as they are; 9 digits are exact for float32.
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*named, *(f"v{column}" for column in range(embeddings.dim))])
        for row, name in enumerate(embeddings.ids):
            if "\0" in name:
                raise ValueError("an id holds a NUL character")
            labels = [] if embeddings.labels is None else [embeddings.labels[row]]
            writer.writerow([name, *labels, *(f"{value:.9g}" for value in embeddings.vectors[row].tolist())])
    return header


def _read_csv(path: Path) -> Content:
    header = _read_sidecar(path)
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        columns = next(reader, [])
        id_column = next((columns.index(name) for name in ("id", "path") if name in columns), None)
        label_column = columns.index("label") if "label" in columns else None
        numbers = [column for column in range(len(columns)) if column not in (id_column, label_column)]
        ids, labels, vectors = [], [], []
        for row in reader:
            if len(row) != len(columns):
                raise DataError(f"line {reader.line_num} has {len(row)} fields, expected {len(columns)}")
            vectors.append(np.array([row[column] for column in numbers], dtype=np.float32))
            ids.append("" if id_column is None else row[id_column])
            labels.append("" if label_column is None else row[label_column])
    matrix = np.stack(vectors) if vectors else np.zeros((0, len(numbers)), np.float32)
    if label_column is None:
        return Content(matrix, None if id_column is None else ids, None, header)
    return Content(matrix, None if id_column is None else ids, _labels_of(labels, header), header)


def _write_safetensors(path: Path, embeddings: Embeddings, header: Header) -> Header | None:
    from safetensors.numpy import save

    tensors = {"vectors": embeddings.vectors, **_pack("ids", embeddings.ids)}
    if embeddings.labels is not None:
        text = header["label_type"] == "text"
        tensors |= _pack("labels", embeddings.labels.tolist()) if text else {"labels": embeddings.labels}
    path.write_bytes(save(tensors, metadata={"vitembed": json.dumps(header)}))
    return None


def _read_safetensors(path: Path) -> Content:
    from safetensors.numpy import load

    data = path.read_bytes()
    tensors = load(data)  # checks that offsets and shapes fit the file
    if "vectors" not in tensors:
        raise DataError(f"no tensor named 'vectors', only {', '.join(tensors) or 'none'}")
    entry = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}).get("vitembed")
    header = None if entry is None else json.loads(entry)
    ids = _unpack("ids", tensors) if "ids" in tensors else None
    labels = tensors.get("labels")
    if "labels_offsets" in tensors:
        labels = np.array(_unpack("labels", tensors), dtype=str)
    return Content(tensors["vectors"], ids, labels, header)


_FORMATS: dict[str, tuple[Callable[[Path, Embeddings, Header], Header | None], Callable[[Path], Content]]] = {
    ".npy": (_write_npy, _read_npy),
    ".npz": (_write_npz, _read_npz),
    ".parquet": (_write_parquet, _read_parquet),
    ".csv": (_write_csv, _read_csv),
    ".safetensors": (_write_safetensors, _read_safetensors),
}


def _format_of(path: Path) -> tuple[Callable[[Path, Embeddings, Header], Header | None], Callable[[Path], Content]]:
    found = _FORMATS.get(path.suffix.lower())
    if found is None:
        known = ", ".join(suffix[1:] for suffix in _FORMATS)
        raise DataError(f"{printable(path)}: unknown suffix {path.suffix!r} for vectors, expected one of {known}")
    return found


def _checksum(vectors: np.ndarray, ids: list[str], labels: np.ndarray | None) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(vectors, dtype="<f4").data, digest_size=16)
    digest.update(json.dumps([ids, None if labels is None else labels.tolist()]).encode("ascii"))
    return digest.hexdigest()


def _sidecar(path: Path) -> Path:
    real = Path(os.path.realpath(path))  # of a link, beside the file itself
    return real.with_name(real.name + ".json")


def _read_sidecar(path: Path) -> Header | None:
    beside = _sidecar(path)
    if not beside.is_file():
        beside = path.with_name(path.name + ".json")
        if not beside.is_file():
            return None
    header = json.loads(beside.read_text(encoding="utf-8"))
    if not isinstance(header, dict):
        raise DataError(f"{printable(beside.name)} beside it is not a header")
    if _OLD in header and header[_NEW_CRC32] != _crc32(path):  # writing was cut short: the old vectors are there
        old: Header | None = header[_OLD]
        return old
    return header


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _old_header(path: Path) -> Header | None:
    """The header of the vectors that are about to be replaced."""
    try:
        return _read_sidecar(path)
    except (DataError, OSError, ValueError):
        return None


def _labels_of(values: Sequence[Any] | np.ndarray | None, header: Header | None) -> np.ndarray | None:
    """Labels in the type that the header names; without a header numbers are taken for what they look like."""
    if values is None:
        return None
    array = np.asarray(values)
    wanted = (header or {}).get("label_type")
    if wanted is None and array.dtype.kind == "U":
        wanted = "int" if len(array) and all(label.lstrip("-").isdecimal() for label in array.tolist()) else "text"
    return array.astype(str) if wanted == "text" else array.astype(np.int64) if wanted == "int" else array


def _pack(name: str, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Texts as bytes end to end and the ``n + 1`` places where they meet."""
    encoded = [_to_bytes(text) for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_offsets": offsets}


def _unpack(name: str, tensors: dict[str, np.ndarray]) -> list[str]:
    joined, offsets = tensors[name].tobytes(), tensors[f"{name}_offsets"].tolist()
    return [_to_text(joined[start:stop]) for start, stop in itertools.pairwise(offsets)]


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _to_text(text: str | bytes) -> str:
    return text.decode("utf-8", "surrogateescape") if isinstance(text, bytes) else str(text)


def _one_line(error: BaseException) -> str:
    """First line of a parser's complaint, short enough for a terminal."""
    text = printable((str(error).strip() or type(error).__name__).splitlines()[0])
    return text if len(text) <= 120 else text[:117] + "..."
