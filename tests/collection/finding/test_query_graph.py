"""The graph beside the index: the same vectors, made when it is needed, never trusted when it is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vitembed.collection.collection import Collection
from vitembed.collection.finding import query_graph
from vitembed.collection.finding.query_graph import (
    GRAPH_FILE,
    SEAL_FILE,
    keep_query_graph,
    open_query_graph,
    query_encoder,
)
from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.encoder import Encoder, load
from vitembed.model.vit import VisionTransformer

pytest.importorskip("onnxruntime")


def tiny(seed, **changes):
    torch.manual_seed(seed)
    vit = VisionTransformer(ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2))
    for weight in vit.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return Encoder(vit, Preprocess(img_size=32), **changes)


def never():
    raise AssertionError("the encoder was loaded without need")


def test_the_first_query_leaves_a_graph_for_the_next(tmp_path):
    encoder = tiny(0)
    assert open_query_graph(tmp_path, encoder.fingerprint) is None
    assert query_encoder(tmp_path, encoder.fingerprint, lambda: encoder) is encoder
    graph = query_encoder(tmp_path, encoder.fingerprint, never)
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(graph.embed_arrays(images), encoder.embed_arrays(images), atol=1e-4)
    assert json.loads((tmp_path / SEAL_FILE).read_bytes())["cosine"] > 0.9999
    # A model that the user names answers itself.
    assert query_encoder(tmp_path, encoder.fingerprint, lambda: encoder, graph=False) is encoder


def test_a_graph_of_another_encoder_is_replaced(tmp_path):
    old, new = tiny(0), tiny(1)
    assert keep_query_graph(tmp_path, old)
    assert open_query_graph(tmp_path, new.fingerprint) is None
    assert keep_query_graph(tmp_path, new)
    assert open_query_graph(tmp_path, old.fingerprint) is None
    assert open_query_graph(tmp_path, new.fingerprint).fingerprint == new.fingerprint


@pytest.mark.parametrize("name", [GRAPH_FILE, SEAL_FILE])
def test_damage_is_found_and_mended(tmp_path, name):
    encoder = tiny(0)
    keep_query_graph(tmp_path, encoder)
    whole = (tmp_path / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    for damaged in (b"", whole[: len(whole) // 2], bytes(flipped)):
        (tmp_path / name).write_bytes(damaged)
        graph = open_query_graph(tmp_path, encoder.fingerprint)
        assert graph is None
        assert keep_query_graph(tmp_path, encoder)
        assert open_query_graph(tmp_path, encoder.fingerprint) is not None
    (tmp_path / name).unlink()
    assert open_query_graph(tmp_path, encoder.fingerprint) is None


def test_large_weights_lie_beside_the_graph_and_are_watched_too(tmp_path, monkeypatch):
    monkeypatch.setattr(query_graph, "_ONE_FILE_BYTES", 1000)
    old, new = tiny(0), tiny(1)
    keep_query_graph(tmp_path, old)
    keep_query_graph(tmp_path, new)
    (weights,) = tmp_path.glob("*.data")
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    graph = open_query_graph(tmp_path, new.fingerprint)
    np.testing.assert_allclose(graph.embed_arrays(images), new.embed_arrays(images), atol=1e-4)
    flipped = bytearray(weights.read_bytes())
    flipped[1000] ^= 4
    weights.write_bytes(flipped)
    assert open_query_graph(tmp_path, new.fingerprint) is None
    assert keep_query_graph(tmp_path, new)
    weights.unlink()
    assert open_query_graph(tmp_path, new.fingerprint) is None


def test_an_encoder_that_no_graph_agrees_with_answers_itself(tmp_path, monkeypatch):
    encoder = tiny(0)
    monkeypatch.setattr(query_graph, "_agreement", lambda encoder, graph: 0.999)
    assert not keep_query_graph(tmp_path, encoder)
    assert not (tmp_path / GRAPH_FILE).exists()
    assert "agree to 0.999" in json.loads((tmp_path / SEAL_FILE).read_bytes())["problem"]
    monkeypatch.setattr(query_graph, "_make", lambda *given: never())  # it is not tried again
    assert query_encoder(tmp_path, encoder.fingerprint, lambda: encoder) is encoder


def test_another_encoder_leaves_no_graph(tmp_path):
    query_encoder(tmp_path, "0" * 64, lambda: tiny(0))
    assert list(tmp_path.iterdir()) == []


def test_the_agreement_is_that_of_the_worst_image():
    encoder, other = tiny(0), tiny(1)
    assert query_graph._agreement(encoder, encoder) == pytest.approx(1, abs=1e-6)
    assert query_graph._agreement(encoder, other) < 0.9


def test_a_fresh_query_imports_neither_torch_nor_lightning(tmp_path, photo_folder):
    """The whole command in a process of its own, with what it has loaded at the end."""
    encoder = tiny(0)
    model = save_model(tmp_path / ".vitembed" / "model", encoder.vit, encoder.preprocess)
    code = (
        "import sys, runpy; sys.argv = ['vitembed', *sys.argv[1:]]\n"
        "try: runpy.run_module('vitembed_cli', run_name='__main__')\n"
        "finally: print('LOADED', *[name for name in ('torch', 'pytorch_lightning', 'torchvision', 'sklearn', 'pandas',"
        " 'onnx', 'onnxruntime', 'faiss') if name in sys.modules], file=sys.stderr)"
    )

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout, done.stderr.split("LOADED")[1].split()

    encoder = load(model, device="cpu")
    index = tmp_path / ".vitembed" / "index"
    with Collection.create(index, fingerprint=encoder.fingerprint, dim=encoder.embed_dim) as collection:
        collection.update(encoder, [photo_folder])
    keep_query_graph(index, encoder)
    assert encoder.fingerprint == json.loads((tmp_path / ".vitembed/index" / SEAL_FILE).read_bytes())["fingerprint"]
    fresh = tmp_path / "fresh.png"
    source = photo_folder / "discs" / "discs_3.png"
    fresh.write_bytes(source.read_bytes() + b" ")  # other content, the same picture
    answer, loaded = run("search", fresh, "--json")
    assert loaded == ["onnxruntime", "faiss"]
    best = json.loads(answer)["results"][0]
    assert best["path"] == os.fspath(source)
    assert best["score"] == pytest.approx(1, abs=1e-3)
    assert run("search", source, "--json")[1] == ["faiss"]  # indexed: no encoder at all
    truth = encoder.embed([photo_folder]).normalized()
    cosines = truth.vectors @ truth.vectors[truth.ids.index(os.fspath(source))]
    for hit in json.loads(answer)["results"]:
        assert hit["score"] == pytest.approx(float(cosines[truth.ids.index(hit["path"])]), abs=2e-3)
