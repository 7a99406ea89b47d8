"""label as users type it: in the terminal by a pipe, by sheets, and on to probe and classify."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

CLASSES = "discs,stripes,squares"


@pytest.fixture
def label(app, workspace, photo_folder):
    """Run ``vitembed label photos ARGUMENTS...`` and type ``lines``."""

    def run(*arguments, lines="", code=0, folder="photos"):
        words = ["label", folder, *map(str, arguments)]
        result = CliRunner().invoke(app, words, prog_name="vitembed", input=lines)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


def rows_of(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def fill(sheet, filled):
    rows = rows_of(sheet)
    for row in rows:
        row["label"] = Path(row["path"]).parent.name
    with open(filled, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return filled


def test_a_pipe_answers_and_the_same_command_goes_on(label, vitembed, workspace, photo_folder):
    (photo_folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n half")
    first = label("--classes", CLASSES, lines="discs\nst\n3\n?\nq\n")
    assert "24 of these images, 24 of them embedded now" in first.stderr
    assert "broken.png" in first.stderr  # never asked about, but reported
    assert "stopped; run the same command to continue (3 labels in .vitembed/labels/photos.csv)" in first.stderr
    second = label(lines="1\n2")
    assert "24 of these images, 0 of them embedded now" in second.stderr
    assert "[4]" in second.stderr
    rows = rows_of(".vitembed/labels/photos.csv")
    assert [row["label"] for row in rows] == ["discs", "stripes", "squares", "discs", "stripes"]
    assert {row["chosen"] for row in rows} == {"random", "informative"}
    assert len({row["path"] for row in rows}) == 5
    assert all(os.path.exists(os.path.join(".vitembed/labels", row["path"])) for row in rows)
    hits = json.loads(vitembed("search", photo_folder / "discs" / "discs_0.png", "--json").stdout)["results"]
    assert hits  # searchable afterwards
    label("--strict", code=3)
    assert "classes changed: added more" in label("--classes", f"{CLASSES},more").stderr
    assert "which is not among the classes" in label("--classes", "discs,stripes", code=1).stderr


def test_sheets_probe_and_classify(label, vitembed, workspace):
    label("--classes", CLASSES, "--sheet", "ask.html", "-n", 12)
    assert "</html>" in Path("ask.html").read_text(encoding="utf-8")
    label("--sheet", "ask.csv", "-n", 12)
    for _ in range(3):  # an untrained model takes some images for copies: those come later
        fill("ask.csv", "filled.csv")
        num = len(rows_of("filled.csv"))
        Path("ask.csv").unlink()
        done = label("--answers", "filled.csv", "--sheet", "ask.csv", "-n", 12)
        assert f"filled.csv: {num} new labels" in done.stderr
        if not Path("ask.csv").exists():
            assert "no images are left to ask about" in done.stderr
            break
    assert (
        "probe: kinds.safetensors (3 classes; "
        in label("--answers", "filled.csv", "--save", "kinds.safetensors").stderr
    )
    document = json.loads(label("--answers", "filled.csv", "--json").stdout)
    rows = rows_of(".vitembed/labels/photos.csv")
    assert document["num_labelled"] == len(rows) >= 10
    assert document["expected"]["num_random"] == [row["chosen"] for row in rows].count("random") >= 2
    found = json.loads(
        vitembed("classify", "photos", "--probe", "kinds.safetensors", "--threshold", 0, "--json").stdout
    )
    right = [Path(result["path"]).parent.name == result["label"] for result in found["results"]]
    assert sum(right) >= 20  # colours alone tell the kinds apart, also for an untrained model
    report = json.loads(vitembed("probe", ".vitembed/labels/photos.csv", "--few-shot", 0, "--json").stdout)
    assert report["num_images"] == len(rows)


def test_wrong_lines_end_in_an_error_after_the_right_ones_were_taken(label, workspace, photo_folder):
    Path("a.csv").write_text("path,label\nphotos/discs/discs_0.png,discs\nphotos/discs/discs_1.png,moon\n")
    wrong = label("--classes", CLASSES, "--answers", "a.csv", "--sheet", "next.csv", code=1)
    assert "a.csv, line 3: unknown label 'moon'" in wrong.stderr
    assert "Error: 1 answer of a.csv could not be taken, all others were" in wrong.stderr
    assert [row["label"] for row in rows_of(".vitembed/labels/photos.csv")] == ["discs"]
    assert rows_of("next.csv")


def test_a_labels_file_of_ones_own(label, workspace, photo_folder):
    Path("mine.csv").write_text("path,label\nphotos/discs/discs_0.png,discs\nphotos/stripes/stripes_0.png,stripes\n")
    label("--labels", "mine.csv", lines="discs\nq\n")
    rows = rows_of("mine.csv")
    assert [row["chosen"] for row in rows][:2] == ["given", "given"]
    assert rows[2]["path"].startswith("photos/")


def test_mistakes_are_met_before_the_work(label, workspace):
    assert "no classes yet" in label(code=1).stderr
    assert "two or more" in label("--classes", "one", code=1).stderr
    assert "there is no folder" in label("--classes", CLASSES, "--sheet", "none/x.html", code=1).stderr
    label("--classes", CLASSES, "--sheet", "x.pdf", code=2)
    label("--classes", CLASSES, "--precision", 2, code=2)
    assert not (workspace / ".vitembed" / "index").exists()
    assert "two classes or more" in label("--classes", CLASSES, "--save", "p.safetensors", code=1).stderr
    Path("empty").mkdir()
    assert "no readable image in empty" in label("--classes", CLASSES, folder="empty", code=1).stderr
