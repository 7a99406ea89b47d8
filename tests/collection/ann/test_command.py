"""`vitembed index --ann ...` and `vitembed search --exact`, as they are typed."""

from __future__ import annotations

import json
from importlib.metadata import entry_points

import numpy as np
import pytest
from typer.testing import CliRunner

from vitembed.embeddings import Embeddings


@pytest.fixture
def vitembed():
    (script,) = entry_points(group="console_scripts", name="vitembed")

    def run(*arguments, code=0):
        result = CliRunner().invoke(script.load(), [str(argument) for argument in arguments], prog_name="vitembed")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture
def vectors(tmp_path, tools):
    file = tmp_path / "vectors.npz"
    rows = tools.make_vectors()
    Embeddings(np.vstack([rows, rows[:1]]), [f"{row:05}" for row in range(tools.NUM + 1)], "f").save(file)
    return file


def test_an_index_is_asked_for_kept_and_passed_over(vitembed, vectors, tmp_path):
    at = ("--workspace", tmp_path)
    plain = vitembed("index", vectors, *at)
    assert "search" not in plain.stdout
    built = vitembed("index", vectors, *at, "--ann", "IVF64,SQ8", "--min-recall", "0.9")
    assert "building it takes about" in built.stderr
    assert "approximate: IVF64,SQ8, as asked for" in built.stdout
    assert "recall@10" in built.stdout
    again = vitembed("index", vectors, *at)
    assert "building" not in again.stderr
    assert "IVF64,SQ8" in again.stdout

    found = vitembed("search", "00000", *at)
    assert found.stdout.splitlines()[1].split()[-1] == f"{4000:05}"
    assert "approximate (the index finds" in found.stderr
    document = json.loads(vitembed("search", "00000", *at, "--json").stdout)
    assert document["exact"] is False
    assert document["recall"] >= 0.9
    exact = json.loads(vitembed("search", "00000", *at, "--json", "--exact").stdout)
    assert exact["exact"] is True
    assert "recall" not in exact

    off = vitembed("index", vectors, *at, "--ann", "exact")
    assert "exact, as asked for" in off.stdout
    assert json.loads(vitembed("search", "00000", *at, "--json").stdout)["exact"] is True


def test_wrong_settings_are_one_line_before_anything_is_read(vitembed, tmp_path):
    said = vitembed("index", tmp_path / "absent.npz", "--ann", "HNSW32", code=1).stderr
    assert said.startswith("Error: index family is 'HNSW32', expected auto, exact, or IVF")
    assert "min_recall is 2" in vitembed("index", tmp_path / "absent.npz", "--min-recall", "2", code=1).stderr
    assert len(said.strip().splitlines()) == 1
