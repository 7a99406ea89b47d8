"""When `vitembed index` reads its model: when there is something to embed, and when nobody vouches for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest


def indexed_again(workspace, named):
    """``vitembed index photos`` in a process of its own, which says at the end whether it loaded torch."""
    code = (
        f"import sys, runpy; sys.argv = ['vitembed', 'index', 'photos', *{named}]\n"
        "try: runpy.run_module('vitembed_cli', run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=workspace)


@pytest.mark.parametrize("named", [[], ["--model", ".vitembed/model"]])
def test_nothing_to_embed_takes_no_model(workspace, photo_folder, vitembed, named):
    vitembed("index", "photos")

    def again():
        return indexed_again(workspace, named)

    done = again()
    assert (done.returncode, "24 unchanged" in done.stdout, done.stdout.split()[-1]) == (0, True, "False")
    shutil.copy(photo_folder / "discs" / "discs_1.png", photo_folder / "discs" / "new.png")
    (photo_folder / "discs" / "changed.png").write_bytes((photo_folder / "discs" / "discs_2.png").read_bytes() + b" ")
    done = again()  # a copy keeps its vector, the other is embedded
    assert (done.returncode, "2 added" in done.stdout, done.stdout.split()[-1]) == (0, True, "True")


@pytest.mark.parametrize("named", ["exported", "exported/model.safetensors"])
def test_nothing_to_embed_takes_no_model_of_others_either(workspace, photo_folder, vitembed, named):
    """A file that no fingerprint stands in is noted by size and time, and read as soon as these differ."""
    vitembed("export", "--to", "timm", "-o", "exported")
    vitembed("index", "photos", "--model", named)
    for again in ([], ["--model", named]):
        done = indexed_again(workspace, again)
        assert (done.returncode, "24 unchanged" in done.stdout, done.stdout.split()[-1]) == (0, True, "False")
    weights = workspace / "exported" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    assert indexed_again(workspace, []).stdout.split()[-1] == "True"  # read, found to be the same, and noted
    assert indexed_again(workspace, []).stdout.split()[-1] == "False"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "this is encoder" in indexed_again(workspace, []).stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b'"exact"', b'"half"'),
        lambda data: data[: len(data) // 2],
        lambda data: b"[]",
        lambda data: data.replace(b'"fingerprint": "', b'"fingerprint": "0'),
    ],
)
def test_a_damaged_note_is_none(workspace, photo_folder, vitembed, damage):
    vitembed("export", "--to", "timm", "-o", "exported")
    vitembed("index", "photos", "--model", "exported")
    note = workspace / ".vitembed" / "index" / "model.json"
    note.write_bytes(damage(note.read_bytes()))
    done = indexed_again(workspace, [])
    assert (done.returncode, "24 unchanged" in done.stdout, done.stdout.split()[-1]) == (0, True, "True")
    assert indexed_again(workspace, []).stdout.split()[-1] == "False"  # read once, and noted anew


def test_a_note_of_the_model_is_believed_by_nobody_who_embeds(workspace, photo_folder, vitembed):
    vitembed("export", "--to", "timm", "-o", "exported")
    vitembed("index", "photos", "--model", "exported")
    weights = workspace / "exported" / "model.safetensors"
    old = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(old.st_atime_ns, old.st_mtime_ns))
    (photo_folder / "discs" / "new.png").write_bytes((photo_folder / "discs" / "discs_2.png").read_bytes() + b" ")
    assert "was replaced just now" in vitembed("index", "photos", code=1).stderr
    assert "this is encoder" in vitembed("index", "photos", code=1).stderr


def test_weights_that_were_changed_embed_nothing(workspace, photo_folder, vitembed):
    vitembed("index", "photos")
    weights = workspace / ".vitembed" / "model" / "encoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (photo_folder / "discs" / "new.png").write_bytes((photo_folder / "discs" / "discs_2.png").read_bytes() + b" ")
    assert "was changed after it was written" in vitembed("index", "photos", code=1).stderr


def test_reading_a_model_to_embed_loads_no_scikit_learn(workspace, photo_folder, vitembed):
    vitembed("export", "--to", "timm", "-o", "exported")
    code = (
        "import sys, vitembed\n"
        "vitembed.load('exported').embed(['photos/discs/discs_0.png'])\n"
        "print(sorted({'sklearn', 'scipy', 'pytorch_lightning'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=workspace)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("command", [["index", "photos"], ["embed", "photos", "-o", "vectors.npy"]])
def test_decoding_on_a_gpu_is_refused_without_one(workspace, photo_folder, vitembed, command, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = vitembed(*command, "--gpu-decode", code=1)
    assert done.stderr == ("Error: decoding on a GPU needs a CUDA device, and this encoder is on cpu: leave it out\n")
    assert not (workspace / "vectors.npy").exists()
