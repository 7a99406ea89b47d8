"""Vectors that other programs wrote: which columns are read, what is left out with a line, what is refused."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from vitembed.collection.external import unit_vectors
from vitembed.embeddings import Embeddings, checked_ids, plain_array
from vitembed.errors import BadImage, DataError
from vitembed.images.decode import decode
from vitembed.images.source import ImageRef
from vitembed.vector_columns import ID_NAMES
from vitembed.vector_files import is_vector_file, vector_format

VECTORS = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
NAMES = [f"p/{row} é.jpg" for row in range(5)]
NUMBERED = [f"v{column}" for column in range(12)]


def table(columns, rows, *, sep=",", decimal="."):
    lines = [
        columns,
        *([str(cell).replace(".", decimal) if type(cell) is float else cell for cell in row] for row in rows),
    ]
    return "\n".join(sep.join(map(str, line)) for line in lines) + "\n"


def rows_of(*front, vectors=VECTORS):
    return [[*(cells[row] for cells in front), *vectors[row].tolist()] for row in range(len(vectors))]


def loads(path, ids=NAMES, vectors=VECTORS):
    found = Embeddings.load(path)
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.ids == list(ids)
    assert found.fingerprint == ""
    return found


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "Unnamed: 0.1", "index", "INDEX", "level_0", "__index_level_0__"])
@pytest.mark.parametrize(
    "columns", [NUMBERED, [str(number) for number in range(12)], [f"dim {n:03}" for n in range(1, 13)]]
)
def test_a_row_number_is_never_a_dimension(tmp_path, caplog, index, columns):
    counted, path = list(range(5)), tmp_path / "v.csv"
    path.write_text(table([index, *columns], rows_of(counted)), encoding="utf-8")
    loads(path, "01234")
    assert not caplog.records
    path.write_text(table([index, "Image Path", *columns], rows_of(counted, NAMES)), encoding="utf-8")
    loads(path)
    assert f"left out, not part of the vector: {index!r}; ids are 'Image Path'" in caplog.text
    path.write_text(table([index, *columns], rows_of(NAMES)), encoding="utf-8")
    loads(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be-mark"])
@pytest.mark.parametrize(("sep", "decimal"), [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ",")])
def test_csv_as_spreadsheets_write_it(tmp_path, encoding, sep, decimal):
    text = table(["FileName", *NUMBERED, "", ""], [[*row, "", ""] for row in rows_of(NAMES)], sep=sep, decimal=decimal)
    mark = b""
    if encoding == "utf-16-be-mark":
        mark, encoding = b"\xfe\xff", "utf-16-be"
    for body in (text, f"sep={sep}\n{text}"):
        (tmp_path / "v.csv").write_bytes(mark + body.replace("\n", "\r\n").encode(encoding))
        loads(tmp_path / "v.csv")


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz", "safetensors", "arrow"])
@pytest.mark.parametrize(
    "name", ["image_path", "Filepath", "file_path", "FILENAME", "file", "key", "id", "path", "URL"]
)
def test_ids_by_any_of_their_names_in_every_format(tmp_path, kind, name):
    path = tmp_path / f"v.{kind}"
    if kind == "csv":
        path.write_text(table([name, *NUMBERED], rows_of(NAMES)), encoding="utf-8")
    elif kind == "npz":
        np.savez(path, Embeddings=VECTORS, **{f"{name}s": NAMES})
    elif kind == "safetensors":
        save_file({"embeddings": VECTORS}, path, metadata={name: json.dumps(NAMES), "model": "x"})
    else:
        found = pa.table({name: NAMES, "clip": list(VECTORS)})
        if kind == "parquet":
            pq.write_table(found, path)
        else:
            with pa.ipc.new_file(path, found.schema) as sink:
                sink.write_table(found)
    loads(path)
    assert vector_format(path) == kind


def test_names_are_in_order_of_preference():
    assert ID_NAMES[:3] == ("id", "path", "image_path")


def test_other_columns_are_left_out_with_a_line(tmp_path, caplog):
    front = (NAMES, [640] * 5, list("aabbc"), ["x"] * 5)
    (tmp_path / "v.csv").write_text(
        table(["key", "width", "Label", "note", *NUMBERED], rows_of(*front)), encoding="utf-8"
    )
    assert loads(tmp_path / "v.csv").labels.tolist() == list("aabbc")
    assert "left out, not part of the vector: 'width', 'note'; ids are 'key'" in caplog.text
    caplog.clear()
    frame = {"image_path": NAMES, "tags": [["x"]] * 5, "embedding": list(VECTORS), "width": [640] * 5}
    pq.write_table(pa.table(frame), tmp_path / "v.parquet")
    loads(tmp_path / "v.parquet")
    assert "'tags', 'width'; ids are 'image_path'" in caplog.text


def test_columns_are_in_the_order_of_their_numbers(tmp_path):
    order = sorted(range(12), key=str)
    (tmp_path / "v.csv").write_text(table(["id", *(f"v{n}" for n in order)], rows_of(NAMES, vectors=VECTORS[:, order])))
    loads(tmp_path / "v.csv")
    columns = {f"v{n}": VECTORS[:, n] for n in order} | {"id": NAMES}
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    loads(tmp_path / "v.parquet")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.uint8, ">f4"])
def test_every_type_of_number(tmp_path, dtype):
    vectors = (VECTORS * 8 + 40).astype(dtype)
    expected = vectors.astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    np.savez(tmp_path / "v.npz", vectors=vectors)
    native = vectors.astype(vectors.dtype.newbyteorder("="))
    save_file({"vectors": native}, tmp_path / "v.safetensors")
    for size in (-1, 12):
        kind = pa.list_(pa.from_numpy_dtype(native.dtype), size)
        pq.write_table(pa.table({"vector": pa.array(native.tolist(), kind)}), tmp_path / f"v{size}.parquet")
    pq.write_table(pa.table({f"x{n}": native[:, n] for n in range(12)}), tmp_path / "columns.parquet")
    for name in ("v.npy", "v.npz", "v.safetensors", "v-1.parquet", "v12.parquet", "columns.parquet"):
        loads(tmp_path / name, "01234", expected)


def test_bfloat16_of_safetensors(tmp_path):
    import torch
    from safetensors.torch import save_file as save_tensors

    tensor = torch.from_numpy(VECTORS).bfloat16()
    save_tensors({"vectors": tensor}, tmp_path / "v.safetensors", metadata={"paths": json.dumps(NAMES)})
    loads(tmp_path / "v.safetensors", NAMES, tensor.float().numpy())
    np.testing.assert_array_equal(plain_array(tensor.requires_grad_()), tensor.detach().float().numpy())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty, expected a first line that names the columns"),
        ("path,label\na,b\n", "no column named 'vector' or 'embedding', and no numbered columns such as v0, v1, v2"),
        ("id,x,y,width\na,1,2,3\n", "no numbered columns such as v0, v1, v2; 'x', 'y', 'width' are none"),
        ("id,v0,v1,v3\na,1,2,3\n", "not numbered without a gap: v0 ... v3 lacks number 2"),
        ("id,v2,v3\na,1,2\n", "v2 ... v3 begins with another number than 0 or 1"),
        ("id,v0,v1,p1,p2\na,1,2,3,4\n", "columns v0 ... v1 and p1 ... p2 could all be the vector: keep one series"),
        ("id,v0,v0\na,1,2\n", "two columns are called 'v0'"),
        ("id,v0,v1\na,1,2\nb,1,x\n", "line 3, column 'v1': 'x' is not a number"),
        ("id,v0,v1\na,1,2\nb,,2\n", "line 3, column 'v0': the cell is empty"),
        ("id;v0;v1\na;1.234,5;2\n", "line 2, column 'v0': '1.234,5' is not a number"),
        ("id,v0,v1\na,1,2\nb,nan,2\n", "vector 1 of 2 holds NaN or infinity"),
        ("id,v0,v1\na,1,2\nb,1e39,2\n", "vector 1 of 2 holds NaN or infinity"),
        ("id,v0,v1\na,1,2\nb,1\n", "line 3 has 2 fields, expected 3"),
        ("path,v0,v1\na,1,2\n,3,4\n", "column 'path', line 3: the id is empty"),
        ("path,v0,v1\na,1,2\nb,3,4\na,5,6\n", "1 id occurs more than once: 'a' in rows 0 and 2"),
        ("0,0.5,1.5\n1,2.5,3.5\n2,1.0,1.0\n", "the first of them counts the rows"),
        ("a.jpg,0.5,1.5\nb.jpg,2.5,3.5\n", "the first line holds numbers, expected one that names the columns"),
        ('id,embedding\na,"[1.0, 2.0]"\nb,"[1.0 ... 2.0]"\n', "line 3: the vector was cut short with '...'"),
        ('id,embedding\na,"[1.0, 2.0]"\nb,"[1.0]"\n', "line 3 has a vector of length 1, line 2 of 2"),
        ("id,embedding\na,7\n", "line 2: '7' is not a list of numbers such as"),
    ],
)  # fmt: skip
def test_csv_that_is_refused(tmp_path, text, message):
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(DataError) as raised:
        Embeddings.load(tmp_path / "v.csv")
    assert message in str(raised.value)
    assert str(raised.value).count("v.csv") == 1
    assert "\n" not in str(raised.value)


def test_text_in_other_encodings_and_binary_files_are_told(tmp_path):
    text = table(["id", *NUMBERED], rows_of(NAMES))
    for data, message in (
        (text.encode("utf-16-le"), "seems to be UTF-16 without a byte order mark: save it as UTF-8"),
        (b"PK\x03\x04" + bytes(90), "a spreadsheet or an archive, expected CSV text"),
        (os.urandom(64) + b"\0\xff" + bytes(9), "expected"),
    ):
        (tmp_path / "v.csv").write_bytes(data)
        with pytest.raises(DataError, match=message):
            Embeddings.load(tmp_path / "v.csv")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"path": ["a", None, "c", "d", "e"], "vector": list(VECTORS)}, r"column 'path', row 1 .*: the id is null"),
        ({"key": [1.0, 2.0, np.nan, 4.0, 5.0], "vector": list(VECTORS)}, r"column 'key', row 2 .*: the id is null"),
        ({"path": list("abcbe"), "vector": list(VECTORS)}, "1 id occurs more than once: 'b' in rows 1 and 3"),
        ({"path": NAMES, "vector": [*VECTORS[:4].tolist(), None]}, "row 4 is null"),
        ({"path": NAMES, "vector": [*VECTORS[:4].tolist(), [1.0]]}, "different lengths: row 4 has length 1, row 0 12"),
        ({"path": NAMES, "vector": [*VECTORS[:4].tolist(), [None] * 12]}, "vector 4 of 5 holds NaN"),
        ({"path": NAMES, "a": list(VECTORS), "b": list(VECTORS)}, "columns a, b could all be the vector"),
        ({"path": NAMES, "v0": [1.0, None, 1.0, 1.0, 1.0], "v1": [1.0] * 5}, "column 'v0': row 1 is null"),
        ({"path": NAMES, "v0": list("abcde"), "v1": [1.0] * 5}, "column 'v0' is of type string, expected numbers"),
    ],
)
def test_parquet_that_is_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=message):
        Embeddings.load(tmp_path / "v.parquet")


def test_npz_that_is_refused(tmp_path):
    for arrays, message in (
        ({"vectors": VECTORS, "filenames": np.array(NAMES, dtype=object)}, "'filenames' holds Python objects"),
        ({"vectors": np.array([VECTORS, None], dtype=object)}, "'vectors' holds Python objects"),
        ({"arr_0": VECTORS, "arr_1": VECTORS}, "no array named 'vectors', only arr_0, arr_1"),
        ({"arr_0": VECTORS[0]}, "no array named 'vectors', only arr_0"),
        ({"embedding": VECTORS, "features": VECTORS}, "arrays embedding, features could all be the vectors"),
        ({"vectors": VECTORS, "ids": NAMES[:3]}, "3 ids for 5 vectors"),
        ({"vectors": VECTORS, "ids": ["a", "", "c", "d", "e"]}, "row 1 .*: the id is empty"),
    ):
        np.savez(tmp_path / "v.npz", allow_pickle=True, **arrays)
        with pytest.raises(DataError, match=message):
            Embeddings.load(tmp_path / "v.npz")


def test_unnamed_arrays_and_arrow_streams(tmp_path):
    np.savez(tmp_path / "one.npz", VECTORS)
    loads(tmp_path / "one.npz", "01234")
    np.savez(tmp_path / "two.npz", np.arange(5), VECTORS)
    loads(tmp_path / "two.npz", "01234")
    table = pa.table({"id": list("abcde"), "vector": VECTORS.tolist()})
    for opened, name in ((pa.ipc.new_stream, "stream"), (pa.ipc.new_file, "file")):
        with opened(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
        loads(tmp_path / name, "abcde")


@pytest.mark.parametrize("name", ["v.npz", "V.CSV", "v"])
def test_vectors_given_as_an_image_are_named(name, tmp_path):
    Embeddings(VECTORS, list("abcde"), "").save(tmp_path / ("v.csv" if name == "V.CSV" else "v.npz"))
    next(tmp_path.glob("v.*[vz]")).rename(tmp_path / name)
    with pytest.raises(BadImage, match="not an image, but a file of vectors"):
        decode(ImageRef(str(tmp_path / name)))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": [], "ids": []}', '{"format": 1, "ids": 7}', "{"])
def test_a_damaged_file_beside_vectors_is_named(text, tmp_path):
    Embeddings(VECTORS, list("abcde"), "").save(tmp_path / "v.npy")
    (tmp_path / "v.npy.json").write_text(text)
    with pytest.raises(DataError, match=r"v.npy.json is damaged \(.*\): delete it to read the vectors bare"):
        Embeddings.load(tmp_path / "v.npy")


def test_content_decides_what_a_file_is(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    for name in ("V.NPY", "vectors", "v.parquet", "v.csv"):
        (tmp_path / name).write_bytes((tmp_path / "v.npy").read_bytes())
        loads(tmp_path / name, "01234")
    (tmp_path / "album.npz").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.csv", format="PNG")
    for name, message in (("album.npz", "is a folder, expected a file of vectors"), ("picture.csv", "is an image")):
        assert not is_vector_file(tmp_path / name)
        with pytest.raises(DataError, match=message):
            Embeddings.load(tmp_path / name)
    (tmp_path / "notes.txt").write_text("a plain text, with commas, and 3 words\n")
    assert not is_vector_file(tmp_path / "notes.txt")


def test_ids_of_the_record_are_text():
    assert checked_ids([0, np.int64(1), "b", Path("a", "b"), b"c"]) == ["0", "1", "b", os.path.join("a", "b"), "c"]
    for ids in ([None], [np.nan], [("a",)], [True]):
        with pytest.raises(DataError, match="the id of row 0 is"):
            checked_ids(ids)
    with pytest.raises(DataError, match="1 id occurs more than once: 'a' in rows 0 and 2"):
        unit_vectors(Embeddings(VECTORS[:3], ["a", "b", "a"], ""))
    with pytest.raises(DataError, match="vector 1 of 2 is zero"):
        unit_vectors(Embeddings(np.array([[1.0, 0.0], [0.0, 0.0]]), ["a", "b"], ""))


def test_what_pandas_writes(tmp_path, caplog):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(VECTORS)
    named = frame.rename(columns=lambda number: f"emb_{number}")
    lists = pd.DataFrame({"path": NAMES, "embedding": list(VECTORS)})
    caplog.set_level(logging.ERROR)
    for write, ids in (
        (lambda path: frame.to_csv(path), "01234"),
        (lambda path: frame.to_csv(path, index=False), "01234"),
        (lambda path: frame.set_axis(NAMES).to_csv(path), NAMES),
        (lambda path: named.assign(width=3, file=NAMES).to_csv(path, sep=";", decimal=","), NAMES),
        (lambda path: named.reset_index().assign(file=NAMES).to_csv(path, sep="\t"), NAMES),
        (lambda path: named.to_parquet(path), "01234"),
        (lambda path: named.set_axis(NAMES).to_parquet(path), NAMES),
        (lambda path: named.set_axis(pd.Index(NAMES, name="photo")).to_parquet(path), NAMES),
        (lambda path: lists.to_parquet(path), NAMES),
        (lambda path: lists.to_feather(path), NAMES),
        (lambda path: lists.assign(embedding=VECTORS.tolist()).to_csv(path), NAMES),
    ):
        write(tmp_path / "v.csv")
        loads(tmp_path / "v.csv", ids)
