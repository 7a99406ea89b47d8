"""A model is replaced after an index and a probe were made with it: each keeps the encoder that it belongs to."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image

from vitembed.model.kept import keep_finished
from vitembed.model.late import stated_fingerprint
from vitembed.workspace import find_workspace


def replace_model(place):
    """As ``pretrain --fresh`` does at its end, without the training."""
    import torch

    from vitembed.config import ViTConfig
    from vitembed.images.preprocess import Preprocess
    from vitembed.model.checkpoint import save_model
    from vitembed.model.vit import VisionTransformer

    torch.manual_seed(1)
    vit = VisionTransformer(ViTConfig(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=2))
    with keep_finished(place.model_dir, place):
        save_model(place.model_dir, vit, Preprocess(img_size=32))


@pytest.mark.parametrize("how", [(), ("--depth", "12"), ("--speed", "half")], ids=" ".join)
def test_an_index_keeps_its_encoder(how, workspace, photo_folder, vitembed):
    place = find_workspace(workspace)
    old = stated_fingerprint(place.model_dir)
    query = workspace / "query.png"
    Image.open(photo_folder / "discs" / "discs_1.png").rotate(90).save(query)
    vitembed("index", "photos", *how)
    answered = json.loads(vitembed("search", query, "--json").stdout)["results"]
    replace_model(place)
    assert json.loads(vitembed("search", query, "--json").stdout)["results"] == answered
    for graph in place.index_dir.glob("query.*"):  # the model itself answers, from where it is now
        graph.unlink()
    again = json.loads(vitembed("search", query, "--json").stdout)["results"]
    assert [hit["path"] for hit in again[:3]] == [hit["path"] for hit in answered[:3]]
    assert again[0]["score"] == pytest.approx(answered[0]["score"], abs=2e-3)
    shutil.copyfile(query, photo_folder / "new.png")
    updated = vitembed("index", "photos")
    assert "1 added, 0 changed, 0 moved, 0 deleted, 24 unchanged" in updated.stdout
    assert f"now in {place.dir / 'models' / f'model@{old[:12]}'}" in updated.stderr
    assert vitembed("index", "photos").stdout.count("25 unchanged")
    copy = json.loads(vitembed("search", query, "--json").stdout)["results"][0]
    assert copy["path"].endswith("photos/new.png")
    assert copy["score"] == 1.0


def test_a_probe_keeps_its_encoder_and_the_rest_names_both(workspace, photo_folder, vitembed):
    place = find_workspace(workspace)
    old = stated_fingerprint(place.model_dir)
    vitembed("index", "photos")
    vitembed("probe", "photos", "--save", "p.safetensors")
    before = vitembed("classify", "photos", "--probe", "p.safetensors", "--csv").stdout
    replace_model(place)
    new = stated_fingerprint(place.model_dir)
    assert vitembed("classify", "photos", "--probe", "p.safetensors", "--csv").stdout == before
    facts = json.loads(vitembed("info", "--json").stdout)
    assert old[:12] in json.dumps(facts)
    assert new[:12] in json.dumps(facts)
    listed = {entry["name"] for entry in json.loads(vitembed("models", "--json").stdout)}
    assert {"model", f"model@{old[:12]}"} <= listed
    vitembed("label", "photos", "--classes", "a,b", "--sheet", "s.csv")
    vitembed("index", "photos", "--rebuild")
    found = json.loads(vitembed("search", "photos/discs/discs_1.png", "--json").stdout)
    assert found["results"]
    assert new[:12] in vitembed("info").stdout


def test_an_index_without_its_encoder_says_what_to_do(workspace, photo_folder, vitembed):
    place = find_workspace(workspace)
    old = stated_fingerprint(place.model_dir)
    vitembed("index", "photos/discs")
    replace_model(place)
    shutil.rmtree(place.dir / "models")
    for graph in place.index_dir.glob("query.*"):
        graph.unlink()
    Image.new("RGB", (9, 9)).save("query.png")
    for words in (("search", "query.png"), ("index", "photos/discs")):
        said = vitembed(*words, code=1).stderr
        assert f"holds vectors of encoder {old[:12]}" in said
        assert "--rebuild" in said
    vitembed("index", "photos/discs", "--rebuild")


def test_a_kept_model_is_its_own_folder(workspace, photo_folder):
    """Links of the user's, modes, a copy that a kill left, another classifier on the same encoder."""
    place = find_workspace(workspace)
    model, old = place.model_dir, stated_fingerprint(place.model_dir)
    weights = model / "encoder.safetensors"
    weights.rename(workspace / "far.safetensors")
    weights.symlink_to("../../far.safetensors")
    weights.with_name("config.json").chmod(0o600)
    data = weights.read_bytes()
    with pytest.raises(ZeroDivisionError), keep_finished(model, place):
        _ = 1 // 0
    assert not list((place.dir / "models").iterdir())
    replace_model(place)
    kept = place.dir / "models" / f"model@{old[:12]}"
    assert (kept / "encoder.safetensors").read_bytes() == data
    assert not (kept / "encoder.safetensors").is_symlink()
    assert (workspace / "far.safetensors").read_bytes() == data
    assert (kept / "config.json").stat().st_mode & 0o777 == 0o600
    # Back to the first model, which is then replaced again: the copy that is there is used.
    shutil.rmtree(model)
    model.symlink_to(workspace / "elsewhere")
    shutil.copytree(kept, workspace / "elsewhere")
    replace_model(place)
    assert model.is_symlink()
    assert [path.name for path in (place.dir / "models").iterdir()] == [kept.name]
    # Another classifier makes it another model.
    shutil.rmtree(workspace / "elsewhere")
    shutil.copytree(kept, workspace / "elsewhere")
    (model / "probe.safetensors").write_bytes(b"classifier")
    replace_model(place)
    assert (place.dir / "models" / f"{kept.name}.2" / "probe.safetensors").read_bytes() == b"classifier"


def test_a_model_is_kept_where_there_are_no_hard_links(workspace, photo_folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(1, "Operation not permitted")

    place = find_workspace(workspace)
    old, data = stated_fingerprint(place.model_dir), (place.model_dir / "encoder.safetensors").read_bytes()
    monkeypatch.setattr(os, "link", refuse)
    replace_model(place)
    assert (place.dir / "models" / f"model@{old[:12]}" / "encoder.safetensors").read_bytes() == data
