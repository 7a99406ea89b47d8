"""Embeddings as files: npy, npz, parquet, csv and safetensors, exact both ways and checked on reading.

Every format carries the same header: fingerprint, meta and a checksum over vectors, ids and labels. npy and csv have no
room for it, so it lies beside them as ``<file>.json``. Ids that are paths with bytes outside UTF-8 survive everywhere.
What a file is, its content says, not its suffix. ``vector_columns.py`` tells the columns of other people's tables.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitembed.csv_text import delimited, encoding_of
from vitembed.embeddings import Embeddings, refuse_copies
from vitembed.errors import BadImage, DataError, printable
from vitembed.outputs import VECTORS, VECTORS_HEADER, check_output, is_stream, output_file, write_output
from vitembed.seal import read_document
from vitembed.vector_columns import (
    NAMES_VECTOR,
    Columns,
    as_ids,
    as_labels,
    ids_and_labels,
    one_vector_name,
    say_left_out,
    table_columns,
)

log = logging.getLogger("vitembed")

Header = dict[str, Any]
FORMAT_VERSION = 1
_HEAD_BYTES = 1 << 16
_ARROW_FILE = b"ARROW1"
_UNNAMED = re.compile(r"arr_\d+")
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
    """Read ``path`` in the format that its content tells, else its suffix; see ``Embeddings.load``."""
    if path.is_dir():
        raise DataError(f"{printable(path)} is a folder, expected a file of vectors")
    if not path.is_file():
        raise DataError(f"{printable(path)}: no such file")
    kind = vector_format(path)
    if kind is None and is_picture(os.fspath(path)):
        raise DataError(f"{printable(path)} is an image, expected a file of vectors")
    read = _READERS[kind] if kind in _READERS else _format_of(path)[1]
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
        if content.header is None:
            refuse_copies(embeddings.ids)
        return embeddings
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    except Exception as error:  # on damaged bytes the parsers raise whatever comes: it is the file's fault, not ours
        kind = kind or path.suffix.lower()[1:]
        raise DataError(f"{printable(path)}: not a readable {kind} file: {_one_line(error)}") from error


def vector_format(path: str | os.PathLike[str]) -> str | None:
    """Which kind of vector file this is by its content: npy, npz, parquet, arrow, safetensors or csv.

    None: a folder, no file, or something else. Text is ``csv`` where its first line names vector columns.
    """
    try:
        if not os.path.isfile(path):  # noqa: PTH113  names need not be text
            return None
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if head.startswith(b"PK"):
                with zipfile.ZipFile(file) as archive:
                    return "npz" if any(name.endswith(".npy") for name in archive.namelist()) else None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None
    for magic, kind in ((b"\x93NUMPY", "npy"), (b"PAR1", "parquet"), (_ARROW_FILE, "arrow")):
        if head.startswith(magic):
            return kind
    if head.startswith(b"\xff" * 4) and 0 < int.from_bytes(head[4:8], "little") < 1 << 24:
        return "arrow"  # a stream: messages, each with its length before it
    if head[8:9] == b"{":
        return "safetensors" if any(f'"{name}"'.encode() in head for name in NAMES_VECTOR) else None
    return "csv" if _is_table(head) else None


def is_vector_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of vectors: by its content, or by a suffix that its content does not belie."""
    name = os.fsdecode(path)
    if vector_format(name) is not None:
        return True
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return suffix in _FORMATS and not os.path.isdir(name) and not is_picture(name)  # noqa: PTH112


def is_picture(path: str) -> bool:
    """Whether a file is an image by its content; not one that cannot be read."""
    from vitembed.images.formats import sniff

    try:
        return sniff(path) is not None
    except BadImage:
        return False


def _is_table(head: bytes) -> bool:
    """Whether the beginning of a file is that of CSV whose columns are a vector's."""
    try:
        body, delimiter, _ = delimited(head.decode(encoding_of(head), "replace"), lambda columns: False)
        first = next(csv.reader(io.StringIO(body, newline=""), delimiter=delimiter), [])
        return len(first) > 1 and bool(table_columns(first, {}).vector)
    except (DataError, csv.Error):
        return False


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
        names = list(columns)

        def array(name: str) -> np.ndarray:
            try:
                found: np.ndarray = columns[name]
            except ValueError as error:
                if "allow_pickle" not in str(error):
                    raise
                raise DataError(
                    f"array {name!r} holds Python objects (a pickle), which are never loaded: save it as text or "
                    "numbers, such as np.array(ids, dtype=str)"
                ) from error
            return found

        unnamed = [name for name in names if _UNNAMED.fullmatch(name)]  # of np.savez(file, vectors, ...)
        matrices = [name for name in unnamed if array(name).ndim == 2] if unnamed == names else []
        vector = matrices[0] if len(matrices) == 1 else one_vector_name(names, "array")
        if "header" in names:  # one of ours
            ids = array("ids").astype(str).tolist() if "ids" in names else None
            labels = array("labels") if "labels" in names else None
            return Content(array(vector), ids, labels, json.loads(str(array("header"))))
        id_name, label_name = ids_and_labels(names)
        say_left_out([name for name in names if name not in (vector, id_name, label_name)], id_name)
        ids = None if id_name is None else as_ids(array(id_name), f"array {id_name!r}")
        labels = None if label_name is None else as_labels(array(label_name), f"array {label_name!r}")
        return Content(array(vector), ids, labels, None)


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
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        return _content_of(pq.ParquetFile(file).read())


def _read_arrow(path: Path) -> Content:
    import pyarrow as pa

    with path.open("rb") as file:
        is_file = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(0)
        return _content_of((pa.ipc.open_file(file) if is_file else pa.ipc.open_stream(file)).read_all())


def _content_of(table: Any) -> Content:
    """Vectors of an Arrow table: a column of lists, or one column for each number."""
    names = list(table.column_names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two columns are called {twice!r}")
    metadata = table.schema.metadata or {}
    header = json.loads(metadata[b"vitembed"]) if b"vitembed" in metadata else None
    if header is not None:  # one of ours
        columns = Columns(["vector"], "id", "label" if "label" in names else None, [], is_list=True)
    else:
        lists = {name: _is_number(getattr(table[name].type, "value_type", None)) for name in names}
        columns = table_columns(names, lists, pandas_index=_pandas_index(metadata))
    vectors = _list_column(table, columns.vector[0]) if columns.is_list else _scalar_columns(table, columns.vector)
    ids: list[str] | None = None
    labels: np.ndarray | None = None
    if header is not None:
        ids = [_to_text(name) for name in table["id"].to_pylist()]
        labels = None if columns.label is None else np.array(table["label"].to_pylist())
        return Content(vectors, ids, _labels_of(labels, header), header)
    say_left_out(columns.left_out, columns.ids)
    if columns.ids is not None:
        ids = as_ids(table[columns.ids].to_pylist(), f"column {columns.ids!r}")
    if columns.label is not None:
        labels = as_labels(table[columns.label].to_pylist(), f"column {columns.label!r}")
    return Content(vectors, ids, labels, None)


def _list_column(table: Any, name: str) -> np.ndarray:
    """A column of lists of numbers as ``[n, d]``."""
    import pyarrow as pa

    column = table[name].combine_chunks()
    kind = column.type
    if not pa.types.is_nested(kind) or not hasattr(kind, "value_type") or not _is_number(kind.value_type):
        raise DataError(f"column {name!r} is not a list of numbers in every row")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise DataError(f"column {name!r} is not a list of numbers in every row: row {row} is null (rows count from 0)")
    lengths = column.value_lengths().to_pylist()
    if len(set(lengths)) > 1:
        row = next(row for row, length in enumerate(lengths) if length != lengths[0])
        raise DataError(
            f"column {name!r} has rows of different lengths: row {row} has length {lengths[row]}, row 0 {lengths[0]} "
            "(rows count from 0)"
        )
    dim = lengths[0] if lengths else getattr(kind, "list_size", 0)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).astype(np.float64 if flat.dtype == object else flat.dtype).reshape(len(table), dim)


def _scalar_columns(table: Any, names: Sequence[str]) -> np.ndarray:
    """Columns of numbers side by side."""
    matrix = np.empty((len(table), len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        column = table[name]
        if not _is_number(column.type):
            raise DataError(f"column {name!r} is of type {column.type}, expected numbers")
        if column.null_count:
            row = column.is_null().to_pylist().index(True)
            raise DataError(f"column {name!r}: row {row} is null (rows count from 0)")
        with np.errstate(over="ignore"):  # becomes inf, and is refused as that
            matrix[:, place] = column.to_numpy().astype(np.float64)
    return matrix


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and bool(
        pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
    )


def _pandas_index(metadata: dict[bytes, bytes]) -> list[str]:
    """Columns that were the index of a pandas table."""
    try:
        stated = json.loads(metadata.get(b"pandas", b"{}")).get("index_columns", [])
    except (ValueError, AttributeError):
        return []
    return [name for name in stated if isinstance(name, str)]


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
    with path.open("rb") as binary:
        head = binary.read(_HEAD_BYTES)
    encoding = encoding_of(head)
    _, delimiter, num_skipped = delimited(head.decode(encoding, "replace"), lambda columns: False)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        for _ in range(num_skipped):
            file.readline()
        return _read_rows(csv.reader(file, delimiter=delimiter), delimiter, num_skipped, header)


def _read_rows(reader: Any, delimiter: str, num_skipped: int, header: Header | None) -> Content:
    first: list[str] = next(reader, [])
    if not first:
        raise DataError("the file is empty, expected a first line that names the columns, such as id,v0,v1")
    found = table_columns(first, {})
    place = {name: column for column, name in enumerate(first)}
    numbers = list(range(len(first))) if found.is_data else [place[name] for name in found.vector]
    id_column, label_column = (None if name is None else place[name] for name in (found.ids, found.label))
    ids, labels, lines, vectors = list[str](), list[str](), list[int](), list[np.ndarray]()
    for row in itertools.chain([first] if found.is_data else [], reader):
        line = reader.line_num + num_skipped
        if header is None and not "".join(row).strip():
            continue
        while len(row) > len(first) and not row[-1].strip():
            row.pop()
        if len(row) != len(first):
            raise DataError(f"line {line} has {len(row)} fields, expected {len(first)}")
        cells = [row[column] for column in numbers]
        vectors.append(_list_cell(cells[0], line) if found.is_list else _numbers(cells, line, delimiter, found.vector))
        ids.append("" if id_column is None else row[id_column])
        labels.append("" if label_column is None else row[label_column])
        lines.append(line)
        if vectors[-1].shape != vectors[0].shape:
            raise DataError(
                f"line {line} has a vector of length {vectors[-1].size}, line {lines[0]} of {vectors[0].size}"
            )
    matrix = np.stack(vectors) if vectors else np.zeros((0, len(numbers)), np.float32)
    if found.is_data and len(matrix) > 1 and np.array_equal(matrix[:, 0], np.arange(len(matrix)) + matrix[0, 0]):
        raise DataError(
            "no line names the columns, and the first of them counts the rows: take that column out, or name the "
            "columns, such as id,v0,v1"
        )
    if header is None:
        say_left_out(found.left_out, found.ids)
        named = None if id_column is None else as_ids(ids, f"column {found.ids!r}", lines)
        given = None if label_column is None else as_labels(labels, f"column {found.label!r}")
        return Content(matrix, named, given, None)
    texts = None if label_column is None else _labels_of(labels, header)
    return Content(matrix, None if id_column is None else ids, texts, header)


def _numbers(cells: list[str], line: int, delimiter: str, names: Sequence[str]) -> np.ndarray:
    """Cells of a row as numbers; beside semicolons and tabs a comma may be the decimal point."""
    with contextlib.suppress(ValueError), np.errstate(over="ignore"):  # becomes inf, and is refused as that
        return np.array(cells, dtype=np.float32)
    values = []
    for place, cell in enumerate(cells):
        text = cell.strip()
        if delimiter != "," and text.count(",") == 1 and "." not in text:
            text = text.replace(",", ".")
        try:
            values.append(float(text))
        except ValueError as error:
            where = f"line {line}, column {names[place]!r}" if names else f"line {line}, column {place + 1}"
            what = f"{printable(cell)[:40]!r} is not a number" if text else "the cell is empty"
            raise DataError(f"{where}: {what}") from error
    with np.errstate(over="ignore"):
        return np.array(values, dtype=np.float32)


def _list_cell(cell: str, line: int) -> np.ndarray:
    """Numbers of a cell such as ``[0.1, 0.2]`` or ``[0.1 0.2]``, as pandas writes lists and arrays."""
    text = cell.strip()
    if "..." in text:
        raise DataError(f"line {line}: the vector was cut short with '...' when it was written")
    if not (text.startswith("[") and text.endswith("]")):
        raise DataError(f"line {line}: {printable(text)[:40]!r} is not a list of numbers such as [0.1, 0.2]")
    try:
        return np.array(text[1:-1].replace(",", " ").split(), dtype=np.float32)
    except ValueError as error:
        raise DataError(
            f"line {line}: {printable(text)[:40]!r} is not a list of numbers: {_one_line(error)}"
        ) from error


def _write_safetensors(path: Path, embeddings: Embeddings, header: Header) -> Header | None:
    from safetensors.numpy import save

    tensors = {"vectors": embeddings.vectors, **_pack("ids", embeddings.ids)}
    if embeddings.labels is not None:
        text = header["label_type"] == "text"
        tensors |= _pack("labels", embeddings.labels.tolist()) if text else {"labels": embeddings.labels}
    path.write_bytes(save(tensors, metadata={"vitembed": json.dumps(header)}))
    return None


def _read_safetensors(path: Path) -> Content:
    from safetensors import deserialize
    from safetensors.numpy import load

    data = path.read_bytes()
    if b'"BF16"' in data[8 : 8 + int.from_bytes(data[:8], "little")]:  # which NumPy lacks: the upper half of float32
        tensors = {
            name: (np.frombuffer(part["data"], "<u2").astype(np.uint32) << 16).view(np.float32).reshape(part["shape"])
            for name, part in deserialize(data)  # type: ignore[no-untyped-call]
            if part["dtype"] == "BF16"
        }
    else:
        tensors = load(data)  # checks that offsets and shapes fit the file
    stated = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    if "vitembed" not in stated:
        return _foreign_tensors(tensors, stated)
    if "vectors" not in tensors:
        raise DataError(f"no tensor named 'vectors', only {', '.join(tensors) or 'none'}")
    ids = _unpack("ids", tensors) if "ids" in tensors else None
    labels = tensors.get("labels")
    if "labels_offsets" in tensors:
        labels = np.array(_unpack("labels", tensors), dtype=str)
    return Content(tensors["vectors"], ids, labels, json.loads(stated["vitembed"]))


def _foreign_tensors(tensors: dict[str, np.ndarray], stated: dict[str, str]) -> Content:
    """Vectors that another program wrote: ids are in the metadata, as a JSON list."""
    vector = one_vector_name(list(tensors), "tensor")
    lists = dict[str, list[Any]]()
    for name, text in stated.items():
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, list):
            lists[name] = value
    id_name, label_name = ids_and_labels(list(lists))
    numeric_ids, numeric_labels = ids_and_labels([name for name in tensors if name != vector])
    used = {vector, numeric_ids if id_name is None else None, numeric_labels if label_name is None else None}
    say_left_out([name for name in tensors if name not in used], id_name or numeric_ids)
    given = lists[id_name] if id_name is not None else None if numeric_ids is None else tensors[numeric_ids]
    labels = lists[label_name] if label_name is not None else tensors.get(numeric_labels or "")
    return Content(
        tensors[vector],
        None if given is None else as_ids(given, f"{id_name or numeric_ids!r}"),
        None if labels is None else as_labels(labels, f"{label_name or numeric_labels!r}"),
        None,
    )


_FORMATS: dict[str, tuple[Callable[[Path, Embeddings, Header], Header | None], Callable[[Path], Content]]] = {
    ".npy": (_write_npy, _read_npy),
    ".npz": (_write_npz, _read_npz),
    ".parquet": (_write_parquet, _read_parquet),
    ".csv": (_write_csv, _read_csv),
    ".safetensors": (_write_safetensors, _read_safetensors),
}

_READERS: dict[str | None, Callable[[Path], Content]] = {
    **{suffix[1:]: read for suffix, (_, read) in _FORMATS.items()},
    "arrow": _read_arrow,
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
    needs = {"format": int, **({"ids": list} if path.suffix.lower() == ".npy" else {})}
    header: Header = read_document(beside, needs=needs, advice="delete it to read the vectors bare")
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
