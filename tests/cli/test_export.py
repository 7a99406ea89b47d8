"""``vitembed export`` and ``--speed``, as a user types them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

from vitembed.embeddings import Embeddings
from vitembed.model.onnx_encoder import OnnxEncoder


@pytest.fixture
def photos(photo_folder):
    return sorted(photo_folder.rglob("*.png"))


def test_the_workspaces_model_is_exported_to_each_format(vitembed, workspace, photos):
    vitembed("embed", photos[0], "-o", "one.npy")
    (expected,) = np.load("one.npy")
    pixels = OnnxEncoder.open(_exported(vitembed, "onnx", "model.onnx")).preprocess.apply
    from PIL import Image

    array = pixels(Image.open(photos[0]))
    (found,) = OnnxEncoder.open("model.onnx").embed_arrays(array[None])
    np.testing.assert_allclose(found, expected, atol=1e-4)

    _exported(vitembed, "timm", "model")
    model = timm.create_model("local-dir:model", pretrained=True).eval()
    mean, std = (np.float32(model.pretrained_cfg[key]) for key in ("mean", "std"))
    with torch.inference_mode():
        found = model(torch.from_numpy((np.float32(array) / 255 - mean) / std).permute(2, 0, 1)[None])[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)

    result = vitembed("export", "--to", "hf", "-o", "hf")
    assert "AutoModel.from_pretrained('hf')" in result.stdout
    assert (workspace / "hf" / "README.md").is_file()


def _exported(vitembed, to, path):
    result = vitembed("export", "--to", to, "-o", path)
    assert result.stdout.startswith("exported")
    return path


def test_mistakes_are_one_line(vitembed, workspace, tmp_path):
    vitembed("export", "--to", "onnx", "-o", "model.onnx")
    result = vitembed("export", "--to", "onnx", "-o", "model.onnx", code=1)
    assert result.stderr == (
        "Error: model.onnx is there already: name another place with -o, or replace it with --force\n"
    )
    vitembed("export", "--to", "onnx", "-o", "model.onnx", "--force")
    assert "no model at" in vitembed("export", "./nothing", "--to", "onnx", "-o", "a.onnx", code=1).stderr
    vitembed("export", "--to", "keras", "-o", "a", code=2)


def test_an_index_keeps_its_speed_and_refuses_another(vitembed, workspace, photo_folder, photos):
    from PIL import Image

    vitembed("index", photo_folder, "--speed", "tome:2")
    Image.open(photos[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("fresh.png")
    found = json.loads(vitembed("search", "fresh.png", "-k", "24", "--json").stdout)["results"]
    vitembed("index", photo_folder)  # brings up to date at the index's own speed
    message = vitembed("index", photo_folder, "--speed", "exact", code=1).stderr
    assert message.startswith("Error: ")
    assert message.count("\n") == 1

    scores = {}
    for speed in ("tome:2", "exact"):
        vitembed("embed", photo_folder, "fresh.png", "--speed", speed, "-o", f"{speed[:4]}.npz")
        embeddings = Embeddings.load(f"{speed[:4]}.npz").normalized()
        scores[speed] = dict(zip(embeddings.ids, embeddings.vectors @ embeddings.vectors[-1], strict=True))
    for hit in found:
        assert hit["score"] == pytest.approx(scores["tome:2"][hit["path"]], abs=2e-3)
    assert max(abs(scores["tome:2"][path] - scores["exact"][path]) for path in scores["exact"]) > 0
    assert (
        "expected exact, half, tome:R"
        in vitembed("embed", photo_folder, "--speed", "fast", "-o", "a.npy", code=1).stderr
    )
