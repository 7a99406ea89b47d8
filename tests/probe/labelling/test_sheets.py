"""Sheets out and back: CSV by a person or a spreadsheet, and the page."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re

import numpy as np
import pytest

from vitembed.embeddings import Embeddings
from vitembed.errors import DataError
from vitembed.probe.labelling.session import LabelSession
from vitembed.probe.labelling.sheet_csv import image_key, refuse_problems, take_sheet, write_csv_sheet
from vitembed.probe.labelling.sheet_page import write_page_sheet

ODD = ["a,b.png", 'quo"te.png', "line\nbreak.png", "<b>&.png", "caf\udce9.png", "5.png", "6.png", "7.png"]


@pytest.fixture
def session(tmp_path, photo_folder):
    image = next(photo_folder.glob("*/*.png")).read_bytes()
    names = [str(tmp_path / "images" / name) for name in ODD]
    os.mkdir(tmp_path / "images")
    for name in names[:-1]:  # the last one is gone
        with open(name, "wb") as file:
            file.write(image)
    vectors = np.random.default_rng(0).standard_normal((len(ODD), 8)).astype(np.float32)
    return LabelSession(Embeddings(vectors, names, ""), ["cat", "<dog>", "o, ther"], labels_file=tmp_path / "l.csv")


def fill(path, answer, **format):
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["label"] = answer(number, row)
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), **format)
        writer.writeheader()
        writer.writerows(rows)


def test_a_sheet_comes_back_whatever_the_names(tmp_path, session):
    rows = session.ask(8)
    write_csv_sheet(tmp_path / "ask.csv", session, rows)
    fill(tmp_path / "ask.csv", lambda number, row: ["cat", "<DOG>", "o, ther", "?", ""][number % 5])
    taken = take_sheet(tmp_path / "ask.csv", session)
    assert (taken.num_new, taken.num_unsure, taken.num_empty, taken.num_same, taken.problems) == (6, 1, 1, 0, [])
    assert [session.labels[row] for row in rows.tolist()] == [
        "cat", "<dog>", "o, ther", None, None, "cat", "<dog>", "o, ther",
    ]  # fmt: skip
    again = take_sheet(tmp_path / "ask.csv", session)
    assert (again.num_new, again.num_same, again.changed) == (0, 7, [])
    refuse_problems(again, "ask.csv")


def test_semicolons_and_spoilt_paths_of_spreadsheets(tmp_path, session):
    rows = session.ask(8)
    write_csv_sheet(tmp_path / "ask.csv", session, rows)

    def spoil(number, row):
        row["path"] = row["path"].encode("utf-8", "replace").decode()
        return "cat"

    fill(tmp_path / "ask.csv", spoil, delimiter=";")
    assert take_sheet(tmp_path / "ask.csv", session).num_new == 8


def test_every_wrong_line_is_named_and_no_right_one_is_lost(tmp_path, session):
    names = session.ids
    session.answer(5, "cat")
    file = tmp_path / "answers.csv"
    file.write_text(
        "path,label,key\n"
        f"{names[5]},<dog>,\n"
        f"{names[6]},cat,\n"
        f"{names[6]},cat,\n"
        f"{names[7]},bird,\n"
        f"{tmp_path}/nowhere.png,cat,\n"
        "images/5.png,,\n"
        f"{names[3]},cat,{image_key(names[6])}\n"
        f'"{names[0]}",cat,\n'
        f'"{names[0]}",<dog>,\n'
    )
    taken = take_sheet(file, session)
    assert taken.num_new == 1
    assert taken.changed == [f"{names[5]}: now <dog>, was cat"]
    text = "\n".join(taken.problems)
    assert len(taken.problems) == 4
    for line, why in (
        (5, "unknown label 'bird', expected one of cat, <dog>, o, ther or [?]"),
        (6, "nowhere.png is not among the images"),
        (8, "path and key are of two images"),
        (10, "answered differently on line 9"),
    ):
        assert re.search(f"answers.csv, line {line}: .*{why}", text)
    assert [session.labels[row] for row in (0, 3, 5, 6, 7)] == [None, None, "<dog>", "cat", None]
    with pytest.raises(DataError, match="4 answers of answers.csv could not be taken, all others were"):
        refuse_problems(taken, "answers.csv")


@pytest.mark.parametrize(("text", "why"), [("a,b\n1,2\n", "path,label"), ("path,label\nx\n", "line 2: 1 fields")])
def test_what_is_no_sheet(tmp_path, session, text, why):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=why):
        take_sheet(tmp_path / "x.csv", session)
    with pytest.raises(DataError, match="cannot read"):
        take_sheet(tmp_path / "none.csv", session)
    with pytest.raises(DataError, match="cannot write"):
        write_csv_sheet(tmp_path / "none" / "x.csv", session, [0])


def test_the_page_holds_everything_and_runs_nothing_else(tmp_path, session):
    session.answer([5, 6], ["cat", "<dog>"])
    rows = [0, 1, 2, 3, 4, 7]
    bad = write_page_sheet(tmp_path / "ask.html", session, rows)
    assert [problem.path for problem in bad] == [session.ids[7]]
    page = (tmp_path / "ask.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in page
    hints = session.suggestions(rows)
    assert [card["suggested"] for card in data["cards"]] == [session.classes.index(hint.label) for hint in hints]
    assert [bool(card["picture"]) for card in data["cards"]] == [True] * 5 + [False]
    assert data["cards"][0]["picture"].startswith("data:image/jpeg;base64,")
    # What the script joins: the start of a line, a class, the key.
    cells = [base64.b64decode(each["cell"]) for each in data["classes"]]
    lines = [
        base64.b64decode(card["start"]) + b"," + cells[number % 3] + b"," + card["key"].encode()
        for number, card in enumerate(data["cards"])
    ]
    (tmp_path / "answers.csv").write_bytes(b"path,label,key\n" + b"\n".join(lines) + b"\n")
    taken = take_sheet(tmp_path / "answers.csv", session)
    assert taken.problems == []
    assert [session.labels[row] for row in rows] == [session.classes[number % 3] for number in range(6)]
