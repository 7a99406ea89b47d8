"""The examples of docs/probe.md run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import vitembed
from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.vit import VisionTransformer

PAGE = Path(__file__).parents[2] / "docs" / "probe.md"


def test_the_examples_run(photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo_folder.rename(tmp_path / "labelled")
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    save_model(tmp_path / "model", VisionTransformer(config), Preprocess(img_size=16))
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert sorted(set(names["labels"])) == sorted(folder.name for folder in (tmp_path / "labelled").iterdir())
    assert names["X"].shape == (24, 5, 32)
    np.testing.assert_allclose(names["X"][:, 0], names["found"].vectors, atol=0.01)
    assert "(1, 4, 5)" in capsys.readouterr().out
    for name in re.findall(r"^\| `(\w+)`", text, re.MULTILINE):
        assert name in vitembed.__all__
