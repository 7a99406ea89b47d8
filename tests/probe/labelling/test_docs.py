"""The example of docs/label.md runs."""

from __future__ import annotations

import re
from pathlib import Path

from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.vit import VisionTransformer

PAGE = Path(__file__).parents[3] / "docs" / "label.md"


def test_the_example_runs(photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo_folder.rename(tmp_path / "images")
    config = ViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    save_model(tmp_path / "model", VisionTransformer(config), Preprocess(img_size=16))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, object] = {"ask_a_person": lambda path: Path(path).parent.name}
    exec(compile(block, PAGE.name, "exec"), names)
    assert "too few to tell" in capsys.readouterr().out
    assert len(names["labels"]) == 24
    num = names["session"].num_labelled
    assert num >= 6  # an untrained model finds many of these to be copies
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8").count("\n") == num + 1
