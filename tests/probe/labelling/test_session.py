"""A session from first question to probe: what is asked, what is kept, what is refused."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest

import vitembed
from vitembed import faults
from vitembed.embeddings import Embeddings
from vitembed.errors import ConfigError, DataError
from vitembed.probe.labelling.class_names import checked_classes
from vitembed.probe.labelling.labels_file import LabelsFile
from vitembed.probe.labels import read_labelled


def pool(n=120, d=8, seed=0, names=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size=n)
    centres = 2.0 * np.random.default_rng(5).standard_normal((3, d))
    vectors = (centres[labels] + rng.standard_normal((n, d))).astype(np.float32)
    return Embeddings(vectors, names or [f"/img/{i}.png" for i in range(n)], "f" * 64), np.array(list("abc"))[labels]


def run(session, labels, num, batch=8):
    while session.num_labelled < num:
        rows = session.ask(batch)
        session.answer(rows, labels[rows])


def test_one_in_five_is_drawn_by_an_order_that_nothing_else_decides():
    found, labels = pool(200)
    session = vitembed.LabelSession(found, ["a", "b", "c"])
    for batch in (8, 3, 1, 1, 1, 10, 24):
        rows = session.ask(batch)
        assert len(set(rows.tolist())) == batch
        session.answer(rows, labels[rows])
        num = session.num_labelled
        drawn = [row for row in range(200) if session.chosen(row) == "random"]
        assert 0.2 * num <= len(drawn) < 0.2 * num + 1.01
    # The first of the order but for those that were asked about for another reason: nobody picked among them.
    picked = [row for row in range(200) if session.chosen(row) == "informative"]
    order = [row for row in session._pool.order if row not in picked]
    assert sorted(order[: len(drawn)]) == drawn


def test_it_learns():
    found, labels = pool(300)
    session = vitembed.LabelSession(found, ["a", "b", "c"])
    run(session, labels, 60)
    rest = [row for row, label in enumerate(session.labels) if label is None]
    assert session.probe().score(found.vectors[rest], labels[rest]) > 0.9
    hints = session.suggestions(rest)
    prob = session.probe().predict_proba(found.vectors[rest])
    np.testing.assert_allclose([hint.probability for hint in hints], prob.max(axis=1), atol=1e-4)
    assert np.mean([hint.label for hint in hints] == labels[rest]) > 0.9
    assert 0.8 < session.expected_accuracy().accuracy <= 1


def test_copies_are_never_asked_about():
    found, labels = pool(60)
    rng = np.random.default_rng(1)
    noise = found.vectors * (1 + 0.01 * rng.standard_normal(found.vectors.shape))
    twice = Embeddings(np.concatenate([found.vectors, noise]), [str(i) for i in range(120)], "")
    unit = twice.normalized().vectors
    session = vitembed.LabelSession(twice, ["a", "b", "c"])
    answers = np.concatenate([labels, labels])
    done = list[int]()
    while len(rows := session.ask(7)):
        near = unit @ unit[[*done, *rows]].T
        near[[*done, *rows], np.arange(near.shape[1])] = -1
        if (near[rows] >= 0.98).any():  # nothing else was left
            assert ((unit @ unit[done].T).max(axis=1) >= 0.98).all()
        assert (near[rows] < 0.999).all()
        session.answer(rows, answers[rows])
        done += rows.tolist()
    assert sorted(row % 60 for row in done) == list(range(60))


def test_asked_again_until_answered_skipped_or_put_aside():
    found, _ = pool(20)
    session = vitembed.LabelSession(found, ["a", "b"])
    first = session.ask(4)
    assert session.ask(4).tolist() == first.tolist()
    session.skip(first[:1])
    session.answer(first[1:2], [None])
    assert not set(first[:2].tolist()) & set(session.ask(20).tolist())
    assert session.unsure[first[1]]
    assert session.num_left == 19


def test_it_goes_on_from_its_file(tmp_path):
    found, labels = pool()
    file = tmp_path / "l.csv"
    session = vitembed.LabelSession(found, ["a", "b", "c"], labels_file=file, seed=3)
    run(session, labels, 30)
    session.answer(session.ask(1), [None])
    again = vitembed.LabelSession(found, labels_file=file)
    assert (again.classes, again.seed, again.labels) == (["a", "b", "c"], 3, session.labels)
    assert again.unsure == session.unsure
    assert again.ask(8).tolist() == session.ask(8).tolist()
    np.testing.assert_array_equal(again.probe().coef_, session.probe().coef_)
    assert again.expected_accuracy() == session.expected_accuracy()
    rows = list(csv.DictReader(file.open()))
    assert list(rows[0]) == ["path", "label", "chosen", "time"]
    assert {row["chosen"] for row in rows} == {"random", "informative"}


def test_classes_that_change(tmp_path):
    found, labels = pool()
    file = tmp_path / "l.csv"
    with pytest.raises(DataError, match="no classes yet"):
        vitembed.LabelSession(found, labels_file=file)
    run(vitembed.LabelSession(found, ["a", "b", "c", "never"], labels_file=file), labels, 10)
    session = vitembed.LabelSession(found, ["a", "b", "c", "d"], labels_file=file)
    assert session.notes == ["classes changed: added d, dropped never; now a, b, c, d"]
    with pytest.raises(DataError, match="labelled b already, which is not among the classes a, c"):
        vitembed.LabelSession(found, ["a", "c"], labels_file=file)
    session.add_class("e")
    session.answer(session.ask(1), "e")
    assert vitembed.LabelSession(found, labels_file=file).classes == ["a", "b", "c", "d", "e"]
    for wrong, why in (
        (["a"], "two or more"),
        (["a", "A"], "named twice"),
        (["a", ""], "printable"),
        (["a", "=cmd()"], "formula"),
        (["a", "?"], "none of the classes"),
    ):
        with pytest.raises(DataError, match=why):
            vitembed.LabelSession(found, wrong)
    assert vitembed.LabelSession(found, ["-1", "+1"]).classes == ["-1", "+1"]


def test_undo(tmp_path):
    found, labels = pool()
    session = vitembed.LabelSession(found, ["a", "b", "c"], labels_file=tmp_path / "l.csv")
    run(session, labels, 8)
    before = (tmp_path / "l.csv").read_bytes()
    asked = session.ask(8).tolist()
    session.answer(asked[:2], ["a", None])
    assert session.undo() == asked[1]
    assert not any(session.unsure)
    assert session.undo() == asked[0]
    assert (tmp_path / "l.csv").read_bytes() == before
    assert session.ask(8).tolist() == asked
    labelled = [row for row, label in enumerate(session.labels) if label]
    other = "b" if session.labels[labelled[0]] == "a" else "a"
    earlier = session.labels[labelled[0]]
    session.answer(labelled[0], other)
    assert session.labels[labelled[0]] == other
    session.undo()
    assert session.labels[labelled[0]] == earlier
    assert vitembed.LabelSession(found, ["a", "b"]).undo() is None


def test_wrong_use():
    found, _ = pool()
    session = vitembed.LabelSession(found, ["a", "b"])
    with pytest.raises(DataError, match="unknown label 'x'.* a, b"):
        session.answer([0, 1], ["a", "x"])
    assert session.num_labelled == 0
    for call, why in (
        (lambda: session.answer([0], ["a", "b"]), "2 labels for 1"),
        (lambda: session.answer([120], ["a"]), "row 120"),
        (lambda: session.ask(0), "1 or more"),
        (session.probe, "two classes"),
        (session.expected_accuracy, "two classes"),
        (lambda: vitembed.LabelSession(np.zeros((3, 4)), ["a", "b"]), "is zero"),
    ):
        with pytest.raises(DataError, match=why):
            call()


ODD = [
    "a,b.png",
    'quo"te.png',
    "line\nbreak.png",
    "return\rhere.png",
    " space .png",
    "caf\udce9.png",
    "=1+1.png",
    ";.png",
]


def test_odd_names_come_back_and_probe_reads_the_file(tmp_path, photo_folder):
    image = next(photo_folder.glob("*/*.png")).read_bytes()
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ODD:
        (folder / name).write_bytes(image)
    names = [os.path.join(folder, name) for name in ODD]
    found, labels = pool(len(ODD), names=names)
    file = tmp_path / "labels.csv"
    session = vitembed.LabelSession(found, ["a", "b", "c"], labels_file=file)
    session.answer(range(len(ODD) - 1), labels[:-1])
    session.answer(len(ODD) - 1, None)
    assert str(tmp_path).encode() not in file.read_bytes()  # both can move together
    again = vitembed.LabelSession(found, labels_file=file)
    assert again.labels == session.labels
    assert again.unsure == session.unsure
    read = read_labelled(file)
    assert dict(zip(read.paths, read.labels.tolist(), strict=True)) == dict(zip(names[:-1], labels, strict=False))


def test_columns_of_others_and_labels_of_other_images_are_kept(tmp_path):
    found, labels = pool()
    file = tmp_path / "mine.csv"
    file.write_text("Path,label,split\n/img/3.png,a,train\n/elsewhere/x.png,b,test\n")
    session = vitembed.LabelSession(found, ["a", "b", "c"], labels_file=file)
    assert session.chosen(3) == "given"
    assert session.notes == ["1 label of images that are not here: kept, not learned from"]
    assert session.num_labelled == 1
    run(session, labels, 9)
    rows = list(csv.DictReader(file.open()))
    assert [(row["path"], row["split"], row["chosen"]) for row in rows[:2]] == [
        ("/img/3.png", "train", "given"),
        ("/elsewhere/x.png", "test", "given"),
    ]
    assert len(rows) == 10


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name,label\nx,a\n", "path,label"),
        ("path,label\n/img/1.png\n", "line 2: 1 fields"),
        ("path,label\n/img/1.png,\n", "line 2: the label is empty"),
        ("path,label\n,a\n", "line 2: the path is empty"),
        ("path,label\n/img/1.png,a\n/img/1.png,b\n", "line 3: /img/1.png was given on line 2"),
        ("path,label,chosen\n/img/1.png,a,maybe\n", "chosen is 'maybe'"),
        ('path,label\n"/img/1.png,a\n', "line 2"),
    ],
)
def test_damaged_labels_are_refused_and_left_alone(tmp_path, text, why):
    file = tmp_path / "l.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=why):
        vitembed.LabelSession(pool()[0], ["a", "b"], labels_file=file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "damaged"),
        ("[]", "holds no JSON object"),
        ('{"kind": "vitembed labels", "format_version": 2}', "upgrade"),
        ('{"kind": "vitembed labels", "format_version": 1, "classes": "ab"}', "damaged"),
        ('{"kind": "vitembed labels", "format_version": 1, "classes": ["a", "b"], "asked": {"x": []}}', "damaged"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_damaged_settings_are_refused_and_left_alone(tmp_path, text, why):
    settings = tmp_path / "l.csv.json"
    settings.write_text(text)
    with pytest.raises(DataError, match=why):
        vitembed.LabelSession(pool()[0], ["a", "b"], labels_file=tmp_path / "l.csv")
    assert settings.read_text() == text


def test_a_change_by_another_program_is_never_overwritten(tmp_path):
    found, labels = pool()
    file = tmp_path / "l.csv"
    session = vitembed.LabelSession(found, ["a", "b", "c"], labels_file=file)
    run(session, labels, 8)
    file.write_text(file.read_text() + "/img/999.png,a,given,\n")
    num, rows = session.num_labelled, session.ask(2)
    with pytest.raises(DataError, match="changed by another program"):
        session.answer(rows, labels[rows])
    assert session.num_labelled == num
    assert "/img/999.png" in file.read_text()


def test_killed_at_any_write_at_most_one_answer_is_lost(tmp_path, monkeypatch):
    found, labels = pool(30)

    class Killed(BaseException):
        pass

    def steps_of(file, stop_at):
        num = 0

        def hook(step):
            nonlocal num
            num += 1
            if num == stop_at:
                raise Killed

        session = vitembed.LabelSession(found, ["a", "b", "c"], labels_file=file)
        session.answer([0, 1, 2], labels[:3])
        monkeypatch.setattr(faults, "hook", hook)
        done = 3
        try:
            for row in range(3, 6):
                session.answer(row, labels[row])
                done += 1
            session.answer(6, None)
        except Killed:
            pass
        finally:
            monkeypatch.setattr(faults, "hook", None)
        return num, done

    total, _ = steps_of(tmp_path / "whole.csv", -1)
    assert total > 12
    for stop_at in range(1, total + 1):
        file = tmp_path / f"{stop_at}.csv"
        _, done = steps_of(file, stop_at)
        again = vitembed.LabelSession(found, labels_file=file)
        known = [label for label in again.labels if label is not None]
        assert done <= len(known) <= done + 1
        assert known == labels[: len(known)].tolist()


def test_paths_inside_a_workspace_are_relative_to_the_file(tmp_path):
    file = LabelsFile(tmp_path / ".vitembed" / "labels" / "x.csv")
    assert file._stored(str(tmp_path / "images" / "1.png")) == os.path.join("..", "..", "images", "1.png")
    assert file._stored("/elsewhere/1.png") == "/elsewhere/1.png"
    assert file._stored("row 7") == "row 7"


def test_settings_file_is_plain_json(tmp_path):
    found, labels = pool()
    session = vitembed.LabelSession(found, ["a", "b", "c"], labels_file=tmp_path / "l.csv")
    rows = session.ask(5)
    session.save()
    document = json.loads((tmp_path / "l.csv.json").read_text())
    assert set(document["asked"]) == {found.ids[row] for row in rows}
    assert "random" in document["asked"].values()
    again = vitembed.LabelSession(found, labels_file=tmp_path / "l.csv")
    again.answer(rows, labels[rows])  # answered in a later session, as from a sheet
    assert {again.chosen(row) for row in rows.tolist()} == {"random", "informative"}


@pytest.mark.parametrize("classes", [(1, 2, 3), [np.int64(1), np.int64(2), np.int64(3)], ["1", 2, " 3 "], "1,2,3"])
def test_classes_may_be_numbers(tmp_path, classes):
    found, _ = pool()
    session = vitembed.LabelSession(found, classes, labels_file=tmp_path / "l.csv")
    assert session.classes == ["1", "2", "3"]
    session.answer([0, 1, 2], [1, np.int64(2), "3"])
    session.answer(3, 2)
    assert vitembed.LabelSession(found, labels_file=tmp_path / "l.csv").labels[:4] == ["1", "2", "3", "2"]


@pytest.mark.parametrize(
    ("classes", "why"),
    [
        ((1, 1), "class '1' is named twice"),
        ((True, False), "class name True: expected text"),
        (("a", ""), "class name '': expected 1 to 100 printable characters"),
        (("a", "b\nc"), "printable characters"),
        (("é", "e\u0301"), "class 'é' is named twice"),
        ("cat", "1 class: a probe tells two or more apart"),
    ],
)
def test_what_is_no_class(classes, why):
    with pytest.raises(DataError, match=why):
        vitembed.LabelSession(pool()[0], classes)


def test_names_that_are_neither_text_nor_whole_numbers():
    with pytest.raises(DataError, match="class name 1.5: expected text or a whole number"):
        checked_classes(iter([1.5, 2]))
    with pytest.raises(DataError, match="class name None: expected text"):
        checked_classes(iter([None, "a"]))


def test_answers_that_are_gone_beside_settings_that_are_there(tmp_path):
    found, _ = pool()
    file = tmp_path / "l.csv"
    vitembed.LabelSession(found, ["a", "b"], labels_file=file).answer([0, 1], ["a", "b"])
    file.unlink()
    session = vitembed.LabelSession(found, labels_file=file)
    assert session.classes == ["a", "b"]
    assert session.num_labelled == 0
    assert session.notes == [
        f"{file} is gone, its settings are still there: the classes are a, b, and no image has a label"
    ]
    session.answer(0, "b")
    assert vitembed.LabelSession(found, labels_file=file).notes == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_labels_that_a_spreadsheet_saved(tmp_path, encoding):
    found, _ = pool()
    file = tmp_path / "l.csv"
    text = "sep=;\r\nPath;Label;Chosen;Time;;\r\n/img/0.png;Käfer;Random;27.11.2026 21:00;;\r\n/img/1.png;b;;;;\r\n"
    file.write_bytes(text.encode(encoding))
    session = vitembed.LabelSession(found, ["Käfer", "b"], labels_file=file)
    assert session.labels[:2] == ["Käfer", "b"]
    assert session.chosen(0) == "random"
    session.answer(2, "b")
    assert file.read_text(encoding="utf-8").splitlines()[1] == "/img/0.png,Käfer,random,27.11.2026 21:00"


def test_a_seed_out_of_range_is_refused():
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=r"seed must be a whole number in 0..4294967295, got"):
            vitembed.LabelSession(np.eye(4, dtype=np.float32), classes=("a", "b"), seed=seed)
