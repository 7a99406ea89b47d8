from __future__ import annotations

import os
from pathlib import Path

import pytest

from vitembed.errors import ConfigError, VitembedError
from vitembed.workspace import Workspace, check_name, find_workspace


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("VITEMBED_WORKSPACE", raising=False)


def test_walks_up_to_the_nearest(tmp_path):
    (tmp_path / ".vitembed").mkdir()
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_workspace(start=deep).root == tmp_path
    (tmp_path / "a" / ".vitembed").mkdir()
    assert find_workspace(start=deep).root == tmp_path / "a"
    assert find_workspace(start=deep).index_dir == tmp_path / "a" / ".vitembed" / "index"


def test_named_one_wins_over_variable_and_walk(tmp_path, monkeypatch):
    for name in ("named", "variable", "here"):
        (tmp_path / name / ".vitembed").mkdir(parents=True)
    monkeypatch.setenv("VITEMBED_WORKSPACE", str(tmp_path / "variable"))
    monkeypatch.chdir(tmp_path / "here")
    assert find_workspace(tmp_path / "named").root == tmp_path / "named"
    assert find_workspace(tmp_path / "named" / ".vitembed").root == tmp_path / "named"
    assert find_workspace().root == tmp_path / "variable"
    monkeypatch.setenv("VITEMBED_WORKSPACE", "")
    assert find_workspace().root == tmp_path / "here"


def test_relative_names_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_workspace(Path("photos"), create=True).root == tmp_path / "photos"
    assert find_workspace(Path("photos")).dir.is_dir()


def test_create_makes_it_here_and_keeps_it_out_of_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace = find_workspace(create=True)
    assert workspace.root == tmp_path
    assert (workspace.dir / ".gitignore").read_text() == "*\n"


def test_none_found_says_what_to_do(tmp_path):
    with pytest.raises(VitembedError, match=r"no workspace at or above .*run vitembed pretrain or vitembed index"):
        find_workspace(start=tmp_path)
    with pytest.raises(VitembedError, match=r"named by --workspace"):
        find_workspace(tmp_path)


def test_variable_that_points_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("VITEMBED_WORKSPACE", str(tmp_path / "gone"))
    with pytest.raises(VitembedError, match="named by VITEMBED_WORKSPACE"):
        find_workspace()


def test_lost_current_folder_is_one_line(tmp_path, monkeypatch):
    lost = tmp_path / "lost"
    lost.mkdir()
    monkeypatch.chdir(lost)
    os.rmdir(lost)
    with pytest.raises(VitembedError, match="current folder no longer exists"):
        find_workspace()


def test_cannot_create_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(VitembedError, match="cannot make a workspace"):
        find_workspace(tmp_path / "file" / "deeper", create=True)


@pytest.mark.parametrize("name", ["model", "mine", "Katzen_2024-07", "7", "_x", "a" * 64])
def test_what_is_a_name(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/etc",
        "../../notes",
        "a\\b",
        "a.b",
        ".hidden",
        "-x",
        "a b",
        "a" * 65,
        "ä",
        "a\n",
        "a\x00",
        "CON",
        "nul",
        "com1",
        "Model",
        "a@b",
        "C:",
        "~",
    ],
)
def test_what_is_none(tmp_path, name):
    place = Workspace(tmp_path)
    for use in (check_name, place.model_named, place.run_named):
        with pytest.raises(ConfigError, match="--name") as refused:
            use(name)
        assert "\n" not in str(refused.value)


def test_models_are_found_by_name_alone(tmp_path):
    place = Workspace(tmp_path)
    for name in (
        "models/mine",
        "models/old.name 2",
        "models/mine@0123456789ab",
        "models/.mine.new-7",
        "model",
        "notes",
    ):
        (place.dir / name).mkdir(parents=True)
    assert place.find_model("mine") == place.dir / "models" / "mine"
    assert place.find_model("old.name 2") == place.dir / "models" / "old.name 2"
    assert place.find_model("mine@0123456789ab") == place.dir / "models" / "mine@0123456789ab"
    assert place.find_model("model") == place.model_dir
    for path in ("../notes", "..", ".", "", "./mine", str(place.dir / "notes"), ".mine.new-7", "none", "a\0"):
        assert place.find_model(path) is None
    assert [path.name for path in place.named_models()] == ["mine", "mine@0123456789ab", "old.name 2"]
