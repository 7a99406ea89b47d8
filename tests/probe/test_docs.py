"""The examples of docs/probe.md run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import vitembed

PAGE = Path(__file__).parents[2] / "docs" / "probe.md"


def test_the_examples_run(photo_folder, tmp_path, monkeypatch, capsys, tiny_model, examples):
    monkeypatch.chdir(tmp_path)
    photo_folder.rename(tmp_path / "labelled")
    tiny_model(tmp_path / "model")
    text = PAGE.read_text(encoding="utf-8")
    blocks = examples(PAGE.name)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert sorted(set(names["labels"])) == sorted(folder.name for folder in (tmp_path / "labelled").iterdir())
    assert names["X"].shape == (24, 5, 32)
    np.testing.assert_allclose(names["X"][:, 0], names["found"].vectors, atol=0.01)
    assert "(1, 4, 5)" in capsys.readouterr().out
    for name in re.findall(r"^\| `(\w+)`", text, re.MULTILINE):
        assert name in vitembed.__all__
