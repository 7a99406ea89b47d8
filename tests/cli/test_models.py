"""``vitembed models``, ``vitembed info`` of models, and public models in the other commands."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest

from vitembed.model.catalogue import MODELS


@pytest.fixture
def cached(fake_hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    files = fake_hub.files_of(fake_hub.dinov2_model(), tmp_path / "made")
    return fake_hub.put(tmp_path / "hub", "facebook/dinov2-small", files)


def facts(result):
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in result.stdout.splitlines())


def test_models_lists_names_sizes_licences_and_what_is_on_disk(vitembed, cached):
    head, *rows = vitembed("models").stdout.splitlines()
    assert head.split() == ["name", "size", "dims", "patch", "input", "licence", "source", "on", "disk"]
    assert len(rows) == len(MODELS)
    small = next(row for row in rows if row.startswith("dinov2-small "))
    assert re.split(r" {2,}", small) == [
        "dinov2-small", "22.1 M", "384", "14 px", "224 px", "Apache-2.0", "facebook/dinov2-small", "yes"
    ]  # fmt: skip
    gated = next(row for row in rows if row.startswith("dinov3-small "))
    assert "DINOv3 License (gated)" in gated
    assert gated.endswith("-")


def test_models_as_json_with_ones_own(vitembed, cached, workspace, model_folder, fake_hub):
    shutil.copytree(model_folder, workspace / ".vitembed" / "models" / "second")
    (workspace / ".vitembed" / "models" / "broken").mkdir()
    listed = json.loads(vitembed("models", "--json").stdout)
    own = [entry for entry in listed if entry["family"] == "own"]
    assert [entry["name"] for entry in own] == ["model", "second"]
    from vitembed.model.checkpoint import read_model

    vit = read_model(model_folder).vit
    assert own[0]["num_params"] == sum(weight.numel() for weight in vit.parameters())
    assert (own[0]["embed_dim"], own[0]["on_disk"]) == (32, True)
    small = next(entry for entry in listed if entry["name"] == "dinov2-small")
    assert (small["on_disk"], small["revision"], small["path"]) == (True, fake_hub.COMMIT, str(cached))
    assert not next(entry for entry in listed if entry["name"] == "dinov2-base")["on_disk"]


def test_models_loads_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; sys.argv = ['vitembed', 'models']\n"
        "from vitembed_cli.main import app\n"
        "try: app()\n"
        "finally: print('torch' in sys.modules, 'huggingface_hub' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "False False"


def test_index_without_a_model_takes_a_public_one_and_remembers_it(
    vitembed, cached, photo_folder, monkeypatch, model_folder, fake_hub
):
    monkeypatch.chdir(photo_folder.parent)
    result = vitembed("index", "photos")
    assert "no model of your own here: using the public dinov2-small" in result.stderr
    (photo_folder.parent / "new.png").write_bytes((photo_folder / "discs" / "discs_0.png").read_bytes() + b" ")
    found = json.loads(vitembed("search", "new.png", "-k", "1", "--json").stdout)["results"][0]
    assert found["score"] == pytest.approx(1.0, abs=2e-3)
    # Another commit of main, and even a model of one's own, do not change what the index is of.
    root = cached.parents[1]
    (root / "refs" / "main").write_text("f" * 40)
    shutil.copytree(model_folder, photo_folder.parent / ".vitembed" / "model")
    assert facts(vitembed("index", "photos"))["this run"].endswith("24 unchanged")
    assert json.loads(vitembed("search", "new.png", "--json").stdout)["results"]
    vitembed("index", "photos", "--rebuild")
    assert "32 numbers" in facts(vitembed("info"))["index"]


def test_index_without_any_model_is_told_the_ways_on(vitembed, photo_folder, monkeypatch):
    monkeypatch.chdir(photo_folder.parent)
    result = vitembed("index", "photos", code=1)
    *_, said, error = result.stderr.splitlines()
    assert said.startswith("no model of your own here: using the public dinov2-small")
    assert error.startswith("Error: dinov2-small is not on this machine")
    assert "hf download facebook/dinov2-small" in error
    assert not (photo_folder.parent / ".vitembed").exists()


def test_a_public_model_in_embed_and_probe(vitembed, cached, photo_folder, monkeypatch):
    monkeypatch.chdir(photo_folder.parent)
    assert (
        "32, cls of dinov2-small"
        in facts(vitembed("embed", "photos", "-o", "v.npz", "--model", "dinov2-small"))["vectors"]
    )
    probed = json.loads(vitembed("probe", "photos", "--model", "facebook/dinov2-small", "--json").stdout)
    assert probed["num_images"] == 24
    vitembed("index", "photos", "--model", "dinov2-small", "--workspace", "elsewhere")


def test_info_of_a_public_model(vitembed, cached, fake_hub):
    shown = facts(vitembed("info", "dinov2-small"))
    assert shown["model"] == "dinov2-small"
    assert shown["hub_id"] == "facebook/dinov2-small"
    assert shown["revision"] == fake_hub.COMMIT
    assert shown["licence"] == "Apache-2.0"
    assert shown["tokens"] == "5"
    document = json.loads(vitembed("info", "dinov2-small", "--json", "--batch-size", "3").stdout)
    assert document["fingerprint"] == shown["fingerprint"]
    assert document["cost"]["batch_size"] == 3
    assert document["cost"]["flops"] == document["flops"]


def test_info_of_a_name_that_is_not_here_fetches_nothing(vitembed):
    shown = facts(vitembed("info", "dinov3-7b"))
    assert shown["weights"] == "not on this machine yet: fetched on first use"
    assert shown["licence"] == "DINOv3 License (gated)"
    assert "22,658,678,784" in shown["attention"]
    assert "fingerprint" not in shown


def test_info_table_of_sizes(vitembed, workspace):
    arguments = ("info", ".vitembed/model", "--img-size", "32,48", "--patch-size", "8,16,32")
    result = vitembed(*arguments)
    head, *rows = result.stdout.splitlines()
    assert head.split()[:5] == ["image", "patch", "tokens", "parameters", "GFLOPs"]
    assert [row.split()[0:3:2] for row in rows] == [["32", "8"], ["32", "16"], ["32", "32"], ["48", "8"], ["48", "16"]]
    assert "left out: 48 px in 32 px patches" in result.stderr
    document = json.loads(vitembed(*arguments, "--json").stdout)
    assert [row["num_tokens"] for row in document["table"]] == [17, 5, 2, 37, 10]
    assert document["do_not_fit"] == ["48 px in 32 px"]
    assert vitembed("info", "--patch-size", "4").stdout.count("\n") == 2
    assert "no list of sizes" in vitembed("info", "--img-size", "big", code=2).stderr


def test_info_tells_weights_from_vectors(vitembed, workspace, photo_folder):
    vitembed("embed", "photos", "-o", "v.safetensors")
    assert facts(vitembed("info", "v.safetensors"))["vectors"] == "24 x 32"
    weights = os.path.join(".vitembed", "model", "encoder.safetensors")
    assert facts(vitembed("info", weights))["vector"] == "32 numbers, cls"
