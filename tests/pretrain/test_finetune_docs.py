"""The example of docs/finetune.md runs."""

from __future__ import annotations


def test_the_example_runs(photo_folder, tmp_path, monkeypatch, capsys, tiny_model, examples):
    monkeypatch.chdir(tmp_path)
    photo_folder.rename(tmp_path / "labelled")
    tiny_model(tmp_path / "model")
    (block,) = examples("finetune.md")
    exec(block, {})
    out = capsys.readouterr().out
    assert "points against the linear probe" in out
    assert "discs_0.png" in out
