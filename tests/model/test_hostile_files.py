"""Files that are damaged or mean harm: one clear line each, nothing run, no more memory than the file is long."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from vitembed.errors import ModelError
from vitembed.model.convert import convert
from vitembed.model.weights_file import read_weights

WEIGHTS = {"patch_embed.proj.weight": torch.randn(16, 3, 8, 8), "cls_token": torch.randn(1, 1, 16)}


def refused(path, match):
    with pytest.raises(ModelError, match=match) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert str(path.name) in str(caught.value)


def safetensors(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty: download or copy it anew"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 346\n", "is a git-LFS pointer"),
        (b"hello, this is no model at all\n", "is no weights file .it starts with b'hello, this "),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is no weights file .it starts with b'<!DOCTYPE ht"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "is no weights file"),
        (b"PK\x03\x04 and then nothing of an archive", "is a damaged PyTorch file"),
        (b"\x80\x02 no pickle", "PyTorch file|holds more than tensors"),
        (b"\x80", "PyTorch file|holds more than tensors"),
        (struct.pack("<Q", 10 << 30) + b"{" + bytes(100), "claims a header of 10,737,418,240 bytes in a file of 109"),
        (struct.pack("<Q", 2**63) + b"{" + bytes(100), "claims a header of"),
        (safetensors(b'{"a":' * 20_000), "is a damaged safetensors file"),
        (safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, bytes(8)), "damaged safetensors"),
        (safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 16]}}, bytes(16)), "damaged safe"),
        (safetensors({"a": {"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 16]}}, bytes(16)), "damaged safe"),
        (safetensors({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, bytes(16)), "damaged safetens"),
        (safetensors({"a": {"dtype": "XYZ", "shape": [4], "data_offsets": [0, 16]}}, bytes(16)), "damaged safetens"),
        (safetensors({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, bytes(16)), "damaged safetens"),
        (
            safetensors(
                {
                    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                    "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
                },
                bytes(24),
            ),
            "damaged safetensors",
        ),
        (safetensors({}), "holds no tensors"),
    ],
)
def test_what_is_no_weights_file(content, match, tmp_path):
    path = tmp_path / "model.safetensors"
    if content.startswith((b"hello", b"<", b"\x89")):
        path = tmp_path / "model.bin"
    path.write_bytes(content)
    refused(path, match)


@pytest.mark.parametrize("header", [0x0280, 0x1480, 0x0480])
def test_a_header_whose_length_begins_as_a_pickle_does(header, tmp_path):
    weights = {"w": torch.arange(6.0).reshape(2, 3)}
    for length in range(header):  # metadata of the length that makes it so; the header is padded to eight bytes
        save_file(weights, tmp_path / "model.safetensors", metadata={"note": "x" * max(0, header - 110 + length)})
        start = (tmp_path / "model.safetensors").read_bytes()[:2]
        if start == header.to_bytes(2, "little"):
            break
    assert start[0] == 0x80
    assert torch.equal(read_weights(tmp_path / "model.safetensors")["w"], weights["w"])


def test_places_that_are_no_file(tmp_path):
    refused(tmp_path / "missing.pth", "cannot read .*No such file")
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "is not a regular file")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "no weights in .*: expected one of encoder.safetensors")


class Harm:
    """Runs a command when it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("kind", ["archive", "archive, hidden deep", "legacy", "bare pickle"])
def test_code_in_a_pickle_is_not_run(kind, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "model.pth"
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps({"a": Harm(mark)}))
    else:
        content = {"model": {"blocks": [WEIGHTS, Harm(mark)]}} if "deep" in kind else {**WEIGHTS, "x": Harm(mark)}
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "bare pickle":
        refused(path, "is a bare pickle, which is not loaded because it could run code")
    else:
        refused(path, "holds more than tensors, which is not loaded because it could run code .it wants .*system")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Harm(mark)))  # the bait itself works
    assert mark.exists()


def test_objects_beside_the_weights_are_not_loaded_either(tmp_path):
    import argparse

    torch.save({"model": WEIGHTS, "args": argparse.Namespace(lr=1.0)}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", "holds more than tensors.*Namespace.*save the state dict alone")


def test_a_torchscript_program_is_not_run(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.randn(1, 2)), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "is a TorchScript program, which is not run")


def archive(path, *, pickled=None, compression=zipfile.ZIP_STORED, change=None, extra=()):
    """A PyTorch file of ``WEIGHTS``, written anew with one thing otherwise."""
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", compression) as new:
        for record in old.infolist():
            content = old.read(record)
            if pickled is not None and record.filename.endswith("data.pkl"):
                content = pickled(content)
            if change is not None:
                content = change(record.filename, content)
            if content is not None:
                new.writestr(record.filename, content)
        for name, content in extra:
            new.writestr(name, content)


def claims(num):
    """The pickle with another number of elements for the first storage (16*3*8*8 = 3072)."""
    return lambda content: content.replace(b"M\x00\x0c", b"J" + struct.pack("<i", num), 1)


def test_the_archive_as_written_is_read(tmp_path):
    archive(tmp_path / "model.pth")
    for name, value in read_weights(tmp_path / "model.pth").items():
        assert torch.equal(value, WEIGHTS[name])


@pytest.mark.parametrize("num", [2**31 - 1, 3073, 3071, 0])
def test_a_storage_that_claims_another_size_than_its_record(num, tmp_path):
    archive(tmp_path / "model.pth", pickled=claims(num))
    refused(tmp_path / "model.pth", f"claims {4 * num:,} bytes for storage 0, but holds 12,288")


def test_a_packed_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "model.pth"
    archive(path, compression=zipfile.ZIP_DEFLATED, extra=[("archive/data/9", bytes(64 << 20))])
    assert path.stat().st_size < 1 << 20
    refused(path, "is packed or larger than the file")


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"change": lambda name, content: None if name.endswith("/data/0") else content}, "storage 0, but holds 0"),
        ({"change": lambda name, content: None if "data.pkl" in name else content}, "expected one data.pkl in it"),
        ({"extra": [("archive/more/data.pkl", b"x")]}, "expected one data.pkl in it"),
        ({"pickled": lambda content: content[: len(content) // 2]}, "PyTorch file"),
        ({"pickled": lambda content: b"\x80\x02" + b"(" * 100_000 + b"."}, "PyTorch file|more than tensors"),
        ({"pickled": lambda content: b"\x80\x02Nr\xff\xff\xff\x7f."}, "expected|holds no tensors|PyTorch file"),
    ],
)  # fmt: skip
def test_archives_that_are_not_whole(settings, match, tmp_path):
    archive(tmp_path / "model.pth", **settings)
    refused(tmp_path / "model.pth", match)


def test_a_tensor_larger_than_its_storage(tmp_path):
    # A stride of 0 makes any shape of one number: 4 TB if it were written out.
    torch.save({**WEIGHTS, "big": torch.zeros(1).as_strided((10**6, 10**6), (0, 0))}, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", r"big claims shape \(1000000, 1000000\)")


def test_what_is_no_dense_tensor(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    refused(tmp_path / "sparse.pth", "a is not a dense tensor")
    torch.save({"a": torch.empty(10**12, device="meta")}, tmp_path / "meta.pth")
    refused(tmp_path / "meta.pth", "a is not a dense tensor|PyTorch file|more than tensors")
    torch.save(torch.randn(3), tmp_path / "one.pth")
    refused(tmp_path / "one.pth", "holds a single tensor")
    torch.save([torch.randn(3)], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds no tensors")
    nested = {"a": torch.zeros(1)}
    for _ in range(40):
        nested = {"a": nested}
    torch.save(nested, tmp_path / "deep.pth")
    refused(tmp_path / "deep.pth", "nests dictionaries more than 16 deep")


@pytest.mark.parametrize("kind", ["safetensors", "archive", "legacy"])
def test_no_cut_and_no_flipped_bit_gives_other_weights_unnoticed(kind, tmp_path):
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(OrderedDict(WEIGHTS), path, _use_new_zipfile_serialization=kind == "archive")
    whole = path.read_bytes()
    assert set(read_weights(path)) == set(WEIGHTS)
    for share in (0.001, 0.02, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ModelError) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)
    header = 8 + int.from_bytes(whole[:8], "little") if kind == "safetensors" else 900
    places = range(0, len(whole) if kind == "archive" else header, 211 if kind == "archive" else 13)
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            read = read_weights(path)
        except ModelError:
            continue
        # Names and shapes are checked against the architecture later; an archive's values have checksums.
        if kind == "archive":
            assert all(torch.equal(read[name], value) for name, value in WEIGHTS.items() if name in read)


def test_values_that_are_no_numbers_are_found(tmp_path):
    from vitembed.config import ViTConfig
    from vitembed.model.vit import VisionTransformer

    vit = VisionTransformer(ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2))
    weights = dict(vit.state_dict())
    weights["norm.weight"] = torch.full((16,), float("inf"))
    with pytest.raises(ModelError, match=r"w.pth: norm.weight holds values that are no numbers"):
        convert(weights, {"num_attention_heads": 2}, where="w.pth")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, "names '../secret.safetensors': a shard must lie beside its"),
        ({"weight_map": {"a": "/etc/passwd"}}, "a shard must lie beside its index"),
        ({"weight_map": {"a": ".."}}, "a shard must lie beside its index|is not a regular file"),
        ({"weight_map": {"zzz": "part.safetensors"}}, "lacks zzz, which .* says it holds"),
        ({"weight_map": ["a"]}, "is no index of shards"),
        ({}, "is no index of shards"),
        ([], "is no index of shards"),
    ],
)
def test_an_index_that_points_elsewhere(index, match, tmp_path):
    save_file(WEIGHTS, tmp_path / "part.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=match):
        read_weights(path)


def test_memory_stays_bounded_by_the_file():
    # In a process of its own, which may map 3 GB more than it has: claims of terabytes would end it.
    code = """
import resource, struct, sys, tempfile, pathlib, pickle, io
import torch
from vitembed.errors import ModelError
from vitembed.model.weights_file import read_weights
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30), used + (3 << 30)))
folder = pathlib.Path(tempfile.mkdtemp())
torch.save({"a": torch.randn(3072)}, folder / "old.pth", _use_new_zipfile_serialization=False)
content = (folder / "old.pth").read_bytes()
(folder / "old.pth").write_bytes(content.replace(b"M\\x00\\x0c", b"\\x8a\\x05" + (2**38).to_bytes(5, "little")))
(folder / "memo.pth").write_bytes(b"\\x80\\x02Nr" + struct.pack("<I", 2**31 - 1) + b".")
(folder / "text.pth").write_bytes(b"\\x80\\x04\\x8d" + struct.pack("<Q", 2**40) + b"x.")
(folder / "header.safetensors").write_bytes(struct.pack("<Q", 99_000_000) + b"{" + bytes(50))
for path in sorted(folder.iterdir()):
    try:
        read_weights(path)
    except ModelError as error:
        print(path.name, error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stdout
    assert "MemoryError" not in result.stdout
    assert any("old.pth" in line and "truncated" in line for line in lines)
