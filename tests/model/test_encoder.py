"""Images in, vectors out, each with its own name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import vitembed
from vitembed.config import ViTConfig
from vitembed.errors import BadImage, ConfigError, DataError, ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.vit import VisionTransformer

CONFIG = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)


@pytest.fixture
def model_dir(tmp_path):
    torch.manual_seed(0)
    return save_model(tmp_path / "model", VisionTransformer(CONFIG), Preprocess(img_size=16))


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    for i in range(7):
        noise = np.random.default_rng(i).integers(0, 255, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{i}.png")
    return directory


def by_hand(vit, path, pool):
    """The same with torchvision-free NumPy steps: resize, crop, scale, standardise, forward."""
    pixels = Preprocess(img_size=16).apply(Image.open(path)).astype(np.float32) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        tokens = vit(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).unsqueeze(0))
    mean = tokens.patches.mean(1)
    return {"cls": tokens.cls, "mean": mean, "cls+mean": torch.cat([tokens.cls, mean], 1)}[pool][0].numpy()


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_each_image_gets_its_own_vector(model_dir, folder, pool):
    encoder = vitembed.load(model_dir, device="cpu", pool=pool)
    result = encoder.embed(folder, batch_size=3)
    assert [path[-5:] for path in result.ids] == [f"{i}.png" for i in range(7)]
    assert result.vectors.shape == (7, encoder.embed_dim)
    assert result.fingerprint == encoder.fingerprint
    for path, vector in zip(result.ids, result.vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(encoder.vit, path, pool), atol=1e-5)


def test_pools_have_different_fingerprints(model_dir):
    prints = {vitembed.load(model_dir, pool=pool).fingerprint for pool in ("cls", "mean", "cls+mean")}
    assert len(prints) == 3
    with pytest.raises(ConfigError, match="unknown pool 'max': expected one of cls, mean, cls\\+mean"):
        vitembed.load(model_dir, pool="max")


def test_a_bad_image_stops_or_is_listed_and_never_gets_a_vector(model_dir, folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    (folder / "9.jpg").write_bytes(b"")
    encoder = vitembed.load(model_dir)
    with pytest.raises(BadImage):
        encoder.embed(folder)
    result = encoder.embed(folder, on_bad="skip", batch_size=2)
    assert [path[-5] for path in result.ids] == list("012456")
    assert sorted(problem["path"][-5:] for problem in result.meta["bad"]) == ["3.png", "9.jpg"]
    for path, vector in zip(result.ids, result.vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(encoder.vit, path, "cls"), atol=1e-5)


def test_images_in_memory_and_on_disk_agree(model_dir, folder):
    encoder = vitembed.load(model_dir)
    paths = sorted(folder.iterdir())
    in_memory = encoder.embed([Image.open(path) for path in paths])
    np.testing.assert_allclose(in_memory.vectors, encoder.embed(paths).vectors, atol=1e-6)
    arrays = encoder.embed([np.asarray(Image.open(path)) for path in paths], batch_size=2)
    np.testing.assert_allclose(in_memory.vectors, arrays.vectors, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(Image.open(paths[0])).vectors[0], in_memory.vectors[0], atol=1e-6)
    one = np.asarray(Image.open(paths[0]))
    np.testing.assert_allclose(encoder.embed(one).vectors, in_memory.vectors[:1], atol=1e-6)
    np.testing.assert_allclose(encoder.embed(np.stack([one, one])).vectors, in_memory.vectors[[0, 0]], atol=1e-6)
    with pytest.raises(DataError, match="cannot be mixed"):
        encoder.embed([paths[0], Image.open(paths[1])])


def test_images_come_back_in_the_order_in_which_they_were_named(model_dir, folder):
    encoder = vitembed.load(model_dir)
    paths = [folder / f"{i}.png" for i in (5, 0, 3, 0)]
    result = encoder.embed([str(path) for path in paths], batch_size=2)
    assert result.ids == [str(path) for path in paths]
    for path, vector in zip(paths, result.vectors, strict=True):
        np.testing.assert_allclose(vector, by_hand(encoder.vit, path, "cls"), atol=1e-5)
    both = encoder.embed([paths[0], folder])
    assert [path[-5] for path in both.ids] == list("50123456")
    (folder / "note.txt").write_text("no image")
    with pytest.raises(BadImage, match=r"note.txt: not an image"):
        encoder.embed([folder / "0.png", folder / "note.txt"])


def test_no_image_is_an_error(model_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no readable image"):
        vitembed.load(model_dir).embed(tmp_path / "empty")


def test_load_without_a_name_takes_the_workspace_model(model_dir, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".vitembed" / "models").mkdir(parents=True)
    (home / "below").mkdir()
    monkeypatch.chdir(home / "below")
    monkeypatch.delenv("VITEMBED_WORKSPACE", raising=False)
    with pytest.raises(ModelError, match="has no model yet: run `vitembed pretrain IMAGES` first"):
        vitembed.load()
    model_dir.rename(home / ".vitembed" / "model")
    assert vitembed.load().embed_dim == 16
    save_model(home / ".vitembed" / "models" / "other", VisionTransformer(CONFIG), Preprocess(img_size=16))
    assert vitembed.load("other").fingerprint != vitembed.load().fingerprint
    with pytest.raises(ModelError, match="no model at .*missing"):
        vitembed.load("missing")
    with pytest.raises(ConfigError, match="unknown device 'gpu5'"):
        vitembed.load("other", device="gpu5")
