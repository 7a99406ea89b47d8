"""Exports replace nothing that they did not write, and are there whole or not at all."""

from __future__ import annotations

import pytest

from vitembed.errors import ConfigError
from vitembed.model.export import formats, hf
from vitembed.model.export.formats import export

PLACES = [("timm", "model"), ("timm", "model.safetensors"), ("hf", "model"), ("onnx", "model.onnx")]


def content(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize(("to", "name"), PLACES)
def test_an_export_is_replaced_by_force_alone(tmp_path, make_encoder, to, name):
    path = tmp_path / "new" / name
    export(make_encoder(), to, path)
    before = content(path)
    with pytest.raises(ConfigError, match=r"is there already: name another place with -o, or replace it with --force"):
        export(make_encoder(pool="mean"), to, path)
    assert content(path) == before
    export(make_encoder(pool="mean"), to, path, force=True)
    assert content(path) != before
    assert not [file.name for file in path.parent.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize(("to", "name"), PLACES)
def test_whoever_may_read_other_new_files_may_read_an_export(tmp_path, make_encoder, to, name):
    (tmp_path / "new").write_text("")
    export(make_encoder(), to, tmp_path / name)
    made = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.stat().st_mode for file in made} == {(tmp_path / "new").stat().st_mode}


def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path, make_encoder):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds 1.jpg, which no export wrote"):
        export(make_encoder(), "hf", tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "1.jpg").read_bytes() == b"mine"


def test_a_failure_on_the_way_leaves_the_old_export(tmp_path, make_encoder, monkeypatch):
    path = tmp_path / "model"
    export(make_encoder(), "hf", path)
    before = content(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "model_card", full)
    with pytest.raises(ConfigError, match=r"cannot write .*model: No space left on device"):
        export(make_encoder(pool="mean"), "hf", path, force=True)
    assert content(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_wrong_names_are_one_line(tmp_path, make_encoder):
    with pytest.raises(ConfigError, match=f"unknown format 'keras': expected one of {', '.join(formats.FORMATS)}"):
        export(make_encoder(), "keras", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"model must end in \.onnx"):
        export(make_encoder(), "onnx", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"must be a folder: transformers reads several files"):
        export(make_encoder(), "hf", tmp_path / "model.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot make the folder"):
        export(make_encoder(), "onnx", tmp_path / "file" / "model.onnx")
