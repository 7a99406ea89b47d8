"""Each of our own files emptied, cut, replaced: one line with the way on, or made again; never a traceback."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vitembed.errors import DamagedFile
from vitembed.seal import read_document

RUN = [
    *("model.size=nano", "model.img_size=16", "model.patch_size=8", "model.depth=1", "model.embed_dim=32"),
    *("optim.max_steps=2", "optim.batch_size=8", "trainer.num_pictures=0", "objective.head_hidden_dim=16"),
    *("objective.head_dim=8", "objective.decoder_dim=32", "data.num_workers=0", "data.cache=disk"),
    *("trainer.accelerator=cpu", "model.num_heads=2"),
]
PRETRAIN = ["pretrain", "photos", *RUN]
INDEX, FRESH, KNOWN = ["index", "photos"], ["search", "query.png"], ["search", "photos/a/0.png"]
CLASSIFY = ["classify", "photos/a/0.png", "--probe", "probe.safetensors"]
PROBE = ["probe", "photos", "--save", "probe.safetensors", "--few-shot"]
LABEL = ["label", "photos"]
READ_BY = {
    # file of the workspace -> the commands that read it
    ".vitembed/runs/model/run.json": [PRETRAIN, ["pretrain", "photos"]],
    ".vitembed/model/config.json": [FRESH, INDEX, ["info"], ["models", "--json"], PRETRAIN],
    ".vitembed/model/encoder.safetensors": [["embed", "photos/a/0.png", "-o", "out.npy"]],
    ".vitembed/index/catalog.sqlite": [KNOWN, INDEX, ["dupes"], ["info"]],
    ".vitembed/index/vectors.json": [KNOWN, INDEX],
    ".vitembed/index/vectors.faiss": [KNOWN, INDEX],
    ".vitembed/index/background.json": [KNOWN],
    ".vitembed/index/query.json": [FRESH, INDEX],
    ".vitembed/index/query.onnx": [FRESH],
    ".vitembed/index/model.json": [INDEX],
    ".vitembed/index/ann.json": [KNOWN, INDEX],
    ".vitembed/.gitignore": [INDEX],
    ".vitembed/labels/photos.csv": [LABEL],
    ".vitembed/labels/photos.csv.json": [LABEL],
    "probe.safetensors": [CLASSIFY],
}
OF_AN_INTERRUPTED_RUN = [
    *(".vitembed/runs/model/run.json", ".vitembed/runs/model/last.ckpt", ".vitembed/runs/model/metrics.jsonl"),
    *(".vitembed/cache/*/cache.json", ".vitembed/cache/*/pixels.u8", ".vitembed/cache/*/aspect.f32"),
]
DERIVED = ("vectors.json", "vectors.faiss", "background.json", "query.json", "query.onnx", "model.json", "ann.json")
WAYS = ("empty", "{}", "[]", "null", "garbage", "cut", "deep", "other types", "folder")


@pytest.fixture(scope="module")
def app():
    from importlib.metadata import entry_points

    return next(iter(entry_points(group="console_scripts", name="vitembed"))).load()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, app):
    """A workspace with everything in it, and a copy of it: a run knows its images by their paths."""
    root = tmp_path_factory.mktemp("whole") / "work"
    root.mkdir()
    rng = np.random.default_rng(0)
    for kind, colour in (("a", 40), ("b", 200)):
        (root / "photos" / kind).mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 40, (24, 24, 3)) + colour
            Image.fromarray(pixels.astype(np.uint8)).save(root / "photos" / kind / f"{number}.png")
    Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(root / "query.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for command in (PRETRAIN, INDEX, FRESH, KNOWN, [*LABEL, "--classes", "a,b"], [*PROBE, "0"]):
            result = CliRunner().invoke(app, command, input="1\nq\n")
            assert result.exit_code == 0, (command, result.output)
    shutil.copytree(root, root.with_name("kept"))
    return root


@pytest.fixture
def workspace(whole, monkeypatch):
    monkeypatch.delenv("VITEMBED_WORKSPACE", raising=False)

    def fresh():
        monkeypatch.chdir(whole.parent)
        shutil.rmtree(whole)
        shutil.copytree(whole.with_name("kept"), whole)
        monkeypatch.chdir(whole)
        return whole

    return fresh


def other_types(value):
    if isinstance(value, dict):
        return {key: other_types(each) for key, each in value.items()}
    return 7 if isinstance(value, list) else []


def damage(path, way):
    data = path.read_bytes() if path.is_file() else b"{}"
    if way == "folder":
        path.unlink(missing_ok=True)
        path.mkdir()
        return
    if way == "other types":
        try:
            data = json.dumps(
                other_types(json.loads(data.splitlines()[0] if path.suffix == ".jsonl" else data))
            ).encode()
        except (ValueError, IndexError):
            data = b'{"vitembed": 7}'
    plain = {"empty": b"", "garbage": bytes(range(256)) * 2, "cut": data[: len(data) // 2], "deep": b"[" * 100_000}
    path.write_bytes({"{}": b"{}", "[]": b"[]", "null": b"null", "other types": data + b"\n", **plain}[way])


def check(app, command, path, way, *, never_fails=False):
    result = CliRunner().invoke(app, command)
    failed = (path.name, way, command[:2], result.output[-500:])
    assert result.exception is None or isinstance(result.exception, SystemExit), (*failed, repr(result.exception))
    if result.exit_code:
        assert len([line for line in result.output.splitlines() if "Error: " in line]) == 1, failed
        assert not never_fails, failed


CASES = [(name, command) for name, commands in READ_BY.items() for command in commands]


def test_a_damaged_file_is_one_line_or_made_again(app, workspace):
    for number, (name, command) in enumerate(CASES):
        way = WAYS[number % len(WAYS)]
        path = workspace() / name
        assert path.exists() or path.name == "ann.json", path
        damage(path, way)
        check(app, command, path, way, never_fails=path.name in DERIVED and way != "folder")


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_state_of_a_run_is_one_line(way, app, workspace):
    path = workspace() / ".vitembed/runs/model/run.json"
    damage(path, way)
    check(app, PRETRAIN, path, way)


def test_damaged_files_of_an_interrupted_run(app, workspace):
    for number, name in enumerate(OF_AN_INTERRUPTED_RUN):
        way = WAYS[number % len(WAYS)]
        root = workspace()
        state = root / ".vitembed/runs/model/run.json"
        state.write_text(json.dumps({**json.loads(state.read_text()), "status": "running"}))
        shutil.rmtree(root / ".vitembed/model")
        paths = list(root.glob(name))
        assert paths
        for path in paths:
            damage(path, way)
        check(app, PRETRAIN, paths[0], way)


def test_an_interrupted_run_is_resumed_where_nothing_is_damaged(app, workspace):
    root = workspace()
    state = root / ".vitembed/runs/model/run.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "status": "running"}))
    shutil.rmtree(root / ".vitembed/model")
    result = CliRunner().invoke(app, PRETRAIN)
    assert result.exit_code == 0, result.output


def test_a_damaged_run_can_be_started_again(app, workspace):
    root = workspace()
    (root / ".vitembed/runs/model/run.json").write_bytes(b"")
    result = CliRunner().invoke(app, PRETRAIN)
    assert result.exit_code == 1
    assert "run.json is damaged (it is no JSON): train again with --fresh" in result.output
    assert (root / ".vitembed/runs/model/last.ckpt").is_file()
    assert CliRunner().invoke(app, [*PRETRAIN, "--fresh"]).exit_code == 0
    assert (root / ".vitembed/runs/model@damaged/last.ckpt").is_file()
    assert (root / ".vitembed/runs/model/last.ckpt").is_file()


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_text('{"a": 1, "b": true}')
    assert read_document(path, needs={"a": int, "b": bool})["a"] == 1
    for needs, words in (({"b": int}, "'b' is not what it must be"), ({"c": int}, "'c' is missing")):
        with pytest.raises(DamagedFile, match=words):
            read_document(path, needs=needs)

    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", denied)
    with pytest.raises(DamagedFile, match=r"run.json is damaged \(it cannot be read: Permission denied\): ask$"):
        read_document(path, advice="ask")
