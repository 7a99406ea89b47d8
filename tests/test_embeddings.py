from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from vitembed.embeddings import Embeddings, unit_rows
from vitembed.errors import DataError

SUFFIXES = ("npy", "npz", "parquet", "csv", "safetensors")
HOSTILE = [
    "plain.jpg",
    "new\nline.jpg",
    'quo"te,comma.jpg',
    os.fsdecode(b"not-utf8-\xff\xfe.jpg"),
    "日本 é.png",
    " ",
    "\r\n",
]


def record(ids=HOSTILE, dim=5, labels=None):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(ids), dim)).astype(np.float32) * np.float32(10) ** rng.integers(
        -30, 30, (len(ids), 1)
    )
    vectors[0, :3] = [-0.0, np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]
    return Embeddings(
        vectors.astype(np.float32), list(ids), "ab" * 32, labels, {"model": "tiny é", "normalized": False}
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labels", [None, "text", "int", "digits"])
def test_round_trip_is_exact(tmp_path, suffix, labels):
    values = {
        None: None,
        "text": np.array(["a", "b,\n", "", "é", "1", "x", "y"]),
        "int": np.arange(7) - 3,
        "digits": np.array(list("0123456")),  # text that looks like numbers stays text
    }[labels]
    before = record(labels=values)
    path = tmp_path / f"vectors.{suffix}"
    before.save(path)
    after = Embeddings.load(path)
    assert after.vectors.dtype == np.float32
    assert after.vectors.tobytes() == before.vectors.tobytes()
    assert after.ids == before.ids
    assert (after.fingerprint, after.meta) == (before.fingerprint, before.meta)
    if values is None:
        assert after.labels is None
    else:
        assert after.labels.dtype.kind == values.dtype.kind
        assert after.labels.tolist() == values.tolist()
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_rows_round_trip(tmp_path, suffix):
    empty = record()[:0]
    empty.save(tmp_path / f"e.{suffix}")
    after = Embeddings.load(tmp_path / f"e.{suffix}")
    assert after.vectors.shape == (0, 5)
    assert after.ids == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_damage_is_one_line(tmp_path, suffix):
    path = tmp_path / f"v.{suffix}"
    before = record(ids=[f"{row}.jpg" for row in range(40)])
    before.save(path)
    good = path.read_bytes()
    rng = np.random.default_rng(1)
    damages = [good[:cut] for cut in (0, 1, 7, len(good) // 2, len(good) - 1)]
    for place in rng.integers(0, len(good), 60):
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(rng.integers(0, 8))
        damages.append(bytes(flipped))
    for damaged in damages:
        path.write_bytes(damaged)
        complaint = ""
        try:
            after = Embeddings.load(path)
        except DataError as error:
            complaint = str(error)
        if complaint:
            assert "\n" not in complaint
            assert str(path) in complaint
        else:  # a flip in padding or in a field nobody reads changes nothing that counts
            assert after.vectors.tobytes() == before.vectors.tobytes()
            assert after.ids == before.ids


def test_pickled_array_is_not_loaded(tmp_path):
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable npy"):
        Embeddings.load(tmp_path / "p.npy")


def test_bare_vectors_from_elsewhere(tmp_path):
    vectors = np.eye(3, dtype=np.float64)
    np.save(tmp_path / "bare.npy", vectors)
    bare = Embeddings.load(tmp_path / "bare.npy")
    assert (bare.ids, bare.fingerprint) == (["0", "1", "2"], "")
    (tmp_path / "bare.csv").write_text("path,label,v0,v1\na.jpg,3,1,0\nb.jpg,4,0,1\n")
    table = Embeddings.load(tmp_path / "bare.csv")
    assert (table.ids, table.labels.tolist(), table.vectors.tolist()) == (["a.jpg", "b.jpg"], [3, 4], [[1, 0], [0, 1]])
    np.savez(tmp_path / "other.npz", weights=vectors)
    with pytest.raises(DataError, match="no array named 'vectors', only weights"):
        Embeddings.load(tmp_path / "other.npz")


def test_vectors_replaced_under_an_old_sidecar_are_noticed(tmp_path):
    record().save(tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.ones((7, 5), np.float32))
    with pytest.raises(DataError, match=r"does not match its checksum.*delete v.npy.json"):
        Embeddings.load(tmp_path / "v.npy")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    record().save(tmp_path / "v.csv")
    good = (tmp_path / "v.csv").read_bytes()
    with pytest.raises(DataError, match="NUL"):
        record(ids=["a", "b\0"]).save(tmp_path / "v.csv")
    assert (tmp_path / "v.csv").read_bytes() == good
    assert Embeddings.load(tmp_path / "v.csv").ids == HOSTILE
    assert sorted(os.listdir(tmp_path)) == ["v.csv", "v.csv.json"]


def test_wrong_use_is_named(tmp_path):
    with pytest.raises(DataError, match=r"unknown suffix '.txt'.*npy, npz, parquet, csv, safetensors"):
        record().save(tmp_path / "v.txt")
    with pytest.raises(DataError, match="no such file"):
        Embeddings.load(tmp_path / "absent.npy")
    with pytest.raises(DataError, match="cannot write"):
        record().save(tmp_path / "absent" / "v.npy")
    with pytest.raises(DataError, match=r"shape \[3\], expected \[n, d\]"):
        Embeddings(np.zeros(3, np.float32), ["a"], "")
    with pytest.raises(DataError, match="2 ids for 1 vectors"):
        Embeddings(np.zeros((1, 3), np.float32), ["a", "b"], "")
    with pytest.raises(DataError, match="vector 1 of 2 holds NaN"):
        Embeddings(np.array([[1.0], [np.nan]]), ["a", "b"], "")
    with pytest.raises(DataError, match=r"labels have shape \[2\], expected \[1\]"):
        Embeddings(np.ones((1, 3)), ["a"], "", np.array([1, 2]))
    with pytest.raises(DataError, match="cannot hold this"):
        Embeddings(np.ones((1, 3)), ["a"], "", None, {"odd": object()}).save(tmp_path / "v.npz")


def test_rows_are_chosen_with_their_ids_and_labels():
    rows = record(labels=np.arange(7))
    assert rows[2:4].ids == HOSTILE[2:4]
    picked = rows[np.array([True, False, False, False, False, False, True])]
    assert (picked.ids, picked.labels.tolist(), len(picked), picked.dim) == ([HOSTILE[0], HOSTILE[6]], [0, 6], 2, 5)
    assert rows[[6, 0]].labels.tolist() == [6, 0]
    assert len(rows[np.zeros(7, bool)]) == len(rows[[]]) == 0


def test_unit_rows_of_any_magnitude():
    unit = record(dim=8).normalized()
    np.testing.assert_allclose(np.linalg.norm(unit.vectors.astype(np.float64), axis=1), 1, atol=1e-6)
    assert unit.meta["normalized"] is True
    with pytest.raises(DataError, match="vector 1 of 2 is zero"):
        unit_rows(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(DataError, match="NaN or infinity"):
        unit_rows(np.array([[np.inf, 0.0]]))


def test_import_is_light():
    code = (
        "import sys, vitembed.vector_files, vitembed.workspace; print({'torch', 'faiss', 'pyarrow'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
