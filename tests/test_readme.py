"""What the README shows is true: its Python runs, its commands and files exist."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(photo_folder, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "time_budget=600" in code
    code = code.replace("time_budget=600", 'config="smoke", overrides=["optim.max_steps=2"], progress=False')
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photo_folder, tmp_path / "images")
    Image.open(next(photo_folder.rglob("*.png"))).convert("RGB").save(tmp_path / "query.jpg")
    names = {"labels": [path.parent.name for path in sorted((tmp_path / "images").rglob("*.png"))]}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["vectors"]) == 24
    assert [hit.rank for hit in names["hits"]] == [1, 2, 3, 4, 5]
    assert 0 <= float(capsys.readouterr().out) <= 1


def test_every_command_and_option_exists():
    text = README.read_text(encoding="utf-8")
    documented = (README.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?:`|^)vitembed ([a-z]+) ([^`\n#]*)", text, re.MULTILINE)
    assert {"pretrain", "index", "search", "embed", "probe"} <= {name for name, _ in commands}
    for name, rest in commands:
        section = documented.split(f"## vitembed {name}\n")[1].split("\n## ")[0]
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
            assert re.search(rf"(?<!\S){re.escape(option)}\b", section), f"vitembed {name} has no {option}"


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/benchmarks.md",
        "docs/runs.md",
        "docs/continue.md",
        "docs/label.md",
        "docs/finetune.md",
        "docs/search.md",
    ],
)
def test_links_and_scripts_exist(page):
    root = README.parent
    text = (root / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (root / page).parent.joinpath(target).exists(), f"{page} links to {target}"
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (root / script).is_file(), f"{page} names {script}"


def test_the_tree_in_the_architecture_names_only_files_that_exist():
    root = README.parent
    tree = re.search(r"```\nvitembed/\n(.*?)```", (root / "ARCHITECTURE.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    rooms = re.findall(r"^( +)(\w+)/ +.*?  +(.+(?:\n {20,}.+)*)", tree, re.MULTILINE)
    inside = {
        **dict.fromkeys(("watch", "keep", "many", "onward", "supervised"), "pretrain"),
        **dict.fromkeys(("ann", "finding", "store"), "collection"),
        "export": "model",
        **dict.fromkeys(("evaluation", "labelling"), "probe"),
    }
    assert {room for _, room, _ in rooms} == {
        "images",
        "model",
        "pretrain",
        "collection",
        "probe",
        "demo",
        "page",
        *inside,
    }
    for _, room, names in rooms:
        assert len(names.split()) > 3
        folder = root / "vitembed" / inside.get(room, "") / room
        for name in re.findall(r"\b[a-z_]+\b", re.sub(r"\(.*?\)", "", names)):
            assert (folder / f"{name}.py").is_file(), f"{room}/{name}.py"
