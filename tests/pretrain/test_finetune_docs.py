"""The example of docs/finetune.md runs."""

from __future__ import annotations

import re
from pathlib import Path

from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.vit import VisionTransformer

PAGE = Path(__file__).parents[2] / "docs" / "finetune.md"


def test_the_example_runs(photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo_folder.rename(tmp_path / "labelled")
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    save_model(tmp_path / "model", VisionTransformer(config), Preprocess(img_size=16))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 14
    exec(compile(block, PAGE.name, "exec"), {})
    out = capsys.readouterr().out
    assert "points against the linear probe" in out
    assert "discs_0.png" in out
