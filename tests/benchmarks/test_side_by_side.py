"""The parts of the comparison with rclip and clip-retrieval that need neither. No time is tested."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from index_search import in_rounds
from side_by_side.folders import many, photo_folders, with_truncated, with_turned
from side_by_side.measure import Command, Run, run
from side_by_side.tools import Failed, Rclip, Tool


def python(code: str) -> Command:
    return Command([sys.executable, "-c", code])


def test_what_a_command_and_its_children_use_is_counted():
    busy = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    parent = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {busy!r}]); child.wait()"
    done = run(python(parent))
    assert done.status == 0
    assert done.cpu >= 0.4
    assert done.wall >= 0.4
    held = run(python("import time; held = b'1' * (200 << 20); time.sleep(1)"))
    assert 200 << 20 < held.memory < 300 << 20


def test_a_kill_meets_the_children_too(tmp_path):
    child = f"import time; time.sleep(3); open({os.fspath(tmp_path / 'late')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = run(python(parent), kill_after=0.5)
    assert done.status == -9
    assert not (tmp_path / "late").exists()


def test_errors_are_shown():
    done = run(python("print('out'); raise SystemExit('what is wrong')"))
    assert done.status == 1
    assert "out" in done.output
    assert "what is wrong" in done.output


def test_folders_are_what_they_say(tmp_path):
    photos = photo_folders(tmp_path / "made", 3, 0)["0.3 MP"]
    lot = many(tmp_path / "many", photos, 7)
    files = [path.read_bytes() for path in sorted(lot.iterdir())]
    assert len(set(files)) == 7
    with Image.open(lot / "000000.jpg") as copy, Image.open(photos / "00000.jpg") as original:
        np.testing.assert_array_equal(np.asarray(copy), np.asarray(original))
    assert len(list(with_truncated(tmp_path / "cut", photos).iterdir())) == 4
    _, *files = with_turned(tmp_path / "turned", photos)
    images = [np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("L"), float) for path in files]
    assert np.abs(images[0] - images[1]).mean() < 2  # encoded apart, so not the very same
    assert np.abs(images[0] - images[2]).mean() > 10


def test_every_tool_has_its_turn_and_one_that_fails_is_left_out():
    tools = [Tool(name, Path()) for name in "abc"]
    turns = []

    def work(tool: Tool, number: int) -> Run:
        turns.append(f"{tool.name}{number}")
        if tool.name == "b":
            raise Failed("b: no")
        return Run(number, 0, 0, 0, "")

    runs = in_rounds(tools, 3, work)
    assert turns == ["a0", "b0", "c0", "c1", "a1", "c2", "a2"]
    assert {name: [one.wall for one in done] for name, done in runs.items()} == {"a": [0, 1, 2], "c": [0, 1, 2]}


def test_vectors_are_put_into_rclips_table_and_read_back(tmp_path):
    """The table as rclip 3.3 makes it."""
    (tmp_path / "state").mkdir()
    with sqlite3.connect(tmp_path / "state" / "db.sqlite3") as database:
        database.execute(
            "CREATE TABLE images (id INTEGER PRIMARY KEY, deleted BOOLEAN, filepath TEXT NOT NULL UNIQUE, modified_at "
            "DATETIME NOT NULL, size INTEGER NOT NULL, vector BLOB NOT NULL, indexing BOOLEAN, hash TEXT)"
        )
    tool = Rclip(weights=tmp_path, python=tmp_path / "bin" / "python")
    vectors = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    tool.fill(tmp_path / "state", ["/a", "/b", "/c"], vectors)
    found = tool.vectors(tmp_path / "state")
    np.testing.assert_array_equal(np.stack([found[name] for name in ("/a", "/b", "/c")]), vectors)
    assert tool.vectors(tmp_path / "none") == {}
