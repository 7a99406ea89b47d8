"""The example of docs/label.md runs."""

from __future__ import annotations

from pathlib import Path


def test_the_example_runs(photo_folder, tmp_path, monkeypatch, capsys, tiny_model, examples):
    monkeypatch.chdir(tmp_path)
    photo_folder.rename(tmp_path / "images")
    tiny_model(tmp_path / "model")
    (block,) = examples("label.md")
    names: dict[str, object] = {"ask_a_person": lambda path: Path(path).parent.name}
    exec(block, names)
    assert "too few to tell" in capsys.readouterr().out
    assert len(names["labels"]) == 24
    num = names["session"].num_labelled
    assert num >= 6  # an untrained model finds many of these to be copies
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8").count("\n") == num + 1
