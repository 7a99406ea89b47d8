"""docs/search.md is true: its Python runs, its filters are filters, its options exist."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import torch
from PIL import Image
from typer.testing import CliRunner

from vitembed.collection.finding.where import parse_where
from vitembed.config import ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.encoder import load
from vitembed.model.vit import VisionTransformer

TEXT = (Path(__file__).parents[3] / "docs" / "search.md").read_text(encoding="utf-8")


def test_the_python_runs(photo_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2))
    encoder = load(save_model(tmp_path / ".vitembed" / "model", vit, Preprocess(img_size=32)))
    source = next(photo_folder.rglob("*.png"))
    shutil.copy(source, source.with_name("copy.png"))
    Image.open(source).convert("RGB").save("query.jpg")
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        if "vitembed.load()" in block:
            import vitembed

            with vitembed.Collection.create(
                ".vitembed/index", fingerprint=encoder.fingerprint, dim=encoder.embed_dim
            ) as collection:
                collection.update(encoder, [photo_folder])
        exec(compile(block, "docs/search.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1000 added"
    assert lines[1].startswith("[(1, 'cat/0005', 1.0), ")
    assert lines[2] == "True"
    assert lines[3:7] == ["1000 (64,)", "cat/0005 None", "100 of 100 find themselves", "998 left"]
    assert lines[7] == "exact: few enough to compare with all"
    assert lines[8].startswith("IVF256,SQ8 True ")
    assert re.fullmatch(r"False (0\.9\d*|1\.0) 00005", lines[9])
    assert lines[10] == "True"
    assert any(line.startswith("keep ") and "copy.png" in line for line in lines[11:])
    assert (tmp_path / "result.html").is_file()


def test_its_filters_are_filters():
    examples = re.findall(r'--where "([^"]+)"', TEXT)
    assert len(examples) == 4
    for example in examples:
        assert parse_where(example).fields


def test_its_options_exist():
    (script,) = entry_points(group="console_scripts", name="vitembed")

    def vitembed_help(command):
        return CliRunner().invoke(script.load(), [command, "--help"]).stdout

    for command, rest in re.findall(r"^(?:vitembed )([a-z]+) ([^\n]*)", TEXT, re.MULTILINE):
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
            assert re.search(rf"(?<!\S){re.escape(option)}\b", vitembed_help(command)), f"{command} has no {option}"
