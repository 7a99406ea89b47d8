"""Filters, against Python doing the same by hand over the files."""

from __future__ import annotations

import fnmatch
import os
import re
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from vitembed.collection.collection import Collection
from vitembed.collection.finding.label_file import read_labels
from vitembed.collection.finding.where import FIELDS, Clause, parse_where
from vitembed.collection.finding.where_values import parse_number, parse_time
from vitembed.embeddings import Embeddings
from vitembed.errors import DataError

DAY = 24 * 3600


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """Sixty tiny files in three folders with known sizes and times, their vectors random; and five outside names."""
    tmp_path = tmp_path_factory.mktemp("dated")
    root, rng, names = tmp_path / "library", np.random.default_rng(0), []
    for number in range(60):
        folder = root / ("cats", "dogs", "it's odd")[number % 3] / ("2024" if number % 2 else "2023")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"img_{number:02}.{('jpg', 'png')[number % 5 == 0]}"
        path.write_bytes(b"x" * (number * 100))
        when = datetime(2024, 1, 1).timestamp() + number * 7 * DAY
        os.utime(path, (when, when))
        names.append(str(path))
    names += [f"outside {number}" for number in range(5)]
    vectors = rng.standard_normal((65, 16)).astype(np.float32)
    collection = Collection.create(tmp_path / ".vitembed" / "index", fingerprint="f" * 64, dim=16, root=root)
    collection.update_from(Embeddings(vectors, names, "f" * 64))
    yield collection, root, vectors
    collection.close()


TOM = '"tom, the cat"'


def found(collection, where):
    matches = collection.matches(where)
    return sorted(image.path for image, hit in zip(collection.facts(), matches, strict=True) if hit)


def expected(collection, test):
    return sorted(path for path in collection.paths() if test(path))


def is_file(path):
    return os.path.isabs(path)


def mtime(path):
    return datetime.fromtimestamp(os.stat(path).st_mtime)


@pytest.mark.parametrize(
    ("where", "test"),
    [
        ("name ~ '*.png'", lambda p: p.endswith(".png")),
        ("*.png", lambda p: p.endswith(".png")),
        ("path ~ 'cats/*'", lambda p: "/cats/" in p),
        ("path !~ 'cats/*'", lambda p: "/cats/" not in p),
        ("path ~ '*/cats/2024/*'", lambda p: "/cats/2024/" in p),
        ("folder = 2024", lambda p: os.path.basename(os.path.dirname(p)) == "2024"),
        ("label in (2023, 2024)", is_file),
        ("path ~ 'it''s odd/*'", lambda p: "it's odd" in p),
        ('path ~ "it\'s odd/*"', lambda p: "it's odd" in p),
        ("name ~ 'img_?1.*'", lambda p: fnmatch.fnmatchcase(os.path.basename(p), "img_?1.*")),
        ("name ~ 'img_[0-2]1.*'", lambda p: fnmatch.fnmatchcase(os.path.basename(p), "img_[0-2]1.*")),
        ("name ~ outside*", lambda p: not is_file(p)),
        ("name = 'outside 3'", lambda p: p == "outside 3"),
        ("size > 2k", lambda p: is_file(p) and os.path.getsize(p) > 2000),
        ("size <= 1.5kB", lambda p: is_file(p) and os.path.getsize(p) <= 1500),
        ("size = 0 or size == 5900", lambda p: is_file(p) and os.path.getsize(p) in (0, 5900)),
        ("size != 0", lambda p: is_file(p) and os.path.getsize(p) != 0),
        ("size in (100, 200, 300B)", lambda p: is_file(p) and os.path.getsize(p) in (100, 200, 300)),
        ("mtime >= 2024-06", lambda p: is_file(p) and mtime(p) >= datetime(2024, 6, 1)),
        ("mtime > 2024", lambda p: is_file(p) and mtime(p) >= datetime(2025, 1, 1)),
        ("mtime = 2024", lambda p: is_file(p) and mtime(p).year == 2024),
        ("mtime != 2024", lambda p: is_file(p) and mtime(p).year != 2024),
        ("mtime <= 2024-01-15", lambda p: is_file(p) and mtime(p) < datetime(2024, 1, 16)),
        ("mtime < 2024-01-15T00:00", lambda p: is_file(p) and mtime(p) < datetime(2024, 1, 15)),
        ("mtime in (2024-01-01, 2024-01-08)", lambda p: is_file(p) and mtime(p) < datetime(2024, 1, 9)),
        ("not size > 2k", lambda p: is_file(p) and os.path.getsize(p) <= 2000),
        (
            "size > 1k and name ~ *.png or size = 100 and not (folder = 2023)",
            lambda p: is_file(p)
            and ((os.path.getsize(p) > 1000 and p.endswith(".png")) or (os.path.getsize(p) == 100 and "/2024/" in p)),
        ),
        ("size > 1k AND (name ~ *.png OR folder = 2023)", lambda p: is_file(p) and os.path.getsize(p) > 1000
            and (p.endswith(".png") or "/2023/" in p)),
    ],
)  # fmt: skip
def test_it_finds_what_a_loop_over_the_files_finds(dated, where, test):
    collection, _, _ = dated
    right = expected(collection, test)
    assert found(collection, where) == right
    assert 0 < len(right) < len(collection)


def test_a_whole_path_may_be_absolute_or_below_the_root(dated):
    collection, root, _ = dated
    one = str(root / "cats" / "2023" / "img_00.png")
    assert found(collection, f"path = '{one}'") == [one]
    assert found(collection, "path = cats/2023/img_00.png") == [one]
    assert found(collection, f"path ~ '{root}/cats/*'") == found(collection, "path ~ 'cats/*'")
    assert one not in found(collection, f"path != '{one}'")
    assert one not in found(collection, "path != cats/2023/img_00.png")
    assert len(found(collection, f"path != '{one}'")) == 64


def test_labels_of_a_file_take_the_place_of_folders(dated, tmp_path):
    collection, root, _ = dated
    below = sorted(Path(path) for path in collection.paths() if is_file(path))
    file = root / "labels.csv"
    rows = [f"{path.relative_to(root)},{'its' if i % 2 == 0 else TOM},x" for i, path in enumerate(below[:6])]
    rows += ["outside 3,tom,x", "gone.png,tom,x", f"{below[7]},,x"]
    file.write_text("\n".join(["path,label,added", *rows]))
    collection.use_labels(read_labels(file))
    try:
        assert found(collection, "label = 'tom, the cat'") == [str(path) for path in below[1:6:2]]
        assert found(collection, "label ~ tom*") == sorted([*(str(path) for path in below[1:6:2]), "outside 3"])
        assert found(collection, "label != tom") == [str(path) for path in below[:6]]
        assert found(collection, "label in (its, tom) and name ~ img*") == [str(path) for path in below[:6:2]]
        assert collection.num_unknown("label = tom") == len(collection) - 7
        assert found(collection, "folder = 2024")
    finally:
        collection.use_labels(None)
    assert found(collection, "label = 2024") == found(collection, "folder = 2024")
    assert collection.num_unknown("label = tom") == 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,class\na.png,b\n", r"the first line must name the columns path,label"),
        ("path,label\na.png,b\n./a.png,c\n", r"line 3: ./a.png is c here and b further up"),
        ("path,label\na.png\n", r"line 2: 1 fields, the header has 2"),
    ],
)
def test_a_label_file_that_says_two_things_is_refused(tmp_path, text, problem):
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=problem):
        read_labels(file)


def test_what_is_not_known_meets_nothing_and_is_counted(dated):
    collection, _, _ = dated
    assert found(collection, "width > 0 or not width > 0") == []
    assert collection.num_unknown("width > 0") == 65
    assert collection.num_unknown("size > 0 and name ~ *.png") == 5
    assert collection.num_unknown("name ~ *.png") == 0


@pytest.mark.parametrize(
    "attack",
    [
        "name = 'x'' OR 1=1 --'",
        'name = "x\'; DROP TABLE files; --"',
        "path ~ ''') OR 1=1 OR ('''",
        "folder in ('a'')) OR ((1=1', b)",
    ],
)
def test_text_stays_text(dated, attack):
    collection, _, _ = dated
    assert found(collection, attack) == []
    assert len(collection) == 65
    clause = parse_where(attack).clause({name: Clause("x") for name in (*FIELDS, "absolute")})
    assert re.fullmatch(r"(\(|\)|x|=|GLOB|CAST\(\? AS TEXT\)|OR| )+", clause.sql)  # only words of ours
    assert clause.sql.count("?") == len(clause.parameters)


@pytest.mark.parametrize(
    "attack", ["1=1", "size > 3; DROP TABLE files", "size > 3 --", "size > (SELECT 1)", "vector = 1", "rowid > 3"]
)
def test_sql_is_no_filter(dated, attack):
    collection, _, _ = dated
    with pytest.raises(DataError, match="--where, at character"):
        found(collection, attack)


@pytest.mark.parametrize(
    ("where", "character", "message"),
    [
        ("", 1, "nothing in it"),
        ("siz > 3", 1, "did you mean 'size'"),
        ("size > big", 8, "expected a number such as"),
        ("size", 5, "expected a comparison after 'size'"),
        ("size >", 7, "expected a value"),
        ("size > 3 and", 13, "expected one of path"),
        ("size > 3 name = x", 10, "expected 'and', 'or' or the end, got 'name'"),
        ("(size > 3", 10, r"expected '\)' for the '\(' at character 1"),
        ("size ~ 3*", 6, "size is a number"),
        ("name > x", 6, "name is text"),
        ("name ~ 'x", 8, "a quote is not closed"),
        ("mtime > 2024-13", 9, "expected a time such as"),
        ("mtime > 2023-02-29", 9, "expected a time such as"),
        ("size in 3", 9, r"expected '\(' after 'in'"),
        ("size in (3", 11, r"expected ',' or '\)'"),
        ("size ! 3", 6, "no such operator"),
        ("size > 99999999999999G", 8, "expected a number"),
        ("(" * 60 + "size > 3" + ")" * 60, 52, "nested more than 50 deep"),
        ("size > 3 or " * 400 + "size > 3", 3001, "too long"),
    ],
)
def test_a_mistake_is_shown_at_its_place(where, character, message):
    with pytest.raises(DataError, match=rf"--where, at character {character}: .*{message}") as error:
        parse_where(where)
    before, after = str(error.value).split(", in: ")[1].split("[here]")
    assert where[: character - 1].endswith(before.removeprefix("..."))
    assert where[character - 1 :].startswith(after.removesuffix("..."))
    assert len(str(error.value)) < 400


def test_numbers_and_times():
    assert [parse_number(text) for text in ("0", "1.5k", "2MB", "2GiB", "3ki", "7b")] == [
        0, 1500, 2_000_000, 2 << 30, 3072, 7,
    ]  # fmt: skip
    now = datetime(2024, 5, 31, 12).timestamp()
    assert parse_time("-7d", now).start == parse_time("-7d", now).end == int(now - 7 * DAY) * 10**9
    assert parse_time("2024-12", now).end == parse_time("2025", now).start
    assert parse_time("2024-02-29 10:59", now).end == parse_time("2024-02-29T11:00:00", now).start


def moments(condition, times, now=0.0):
    """Which of the times (nanoseconds) meet a condition."""
    clause = parse_where(condition, now=now).clause({"mtime": Clause("mtime")})
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE files (mtime INTEGER)")
        db.executemany("INSERT INTO files VALUES (?)", [(time,) for time in times])
        return [row[0] for row in db.execute(f"SELECT mtime FROM files WHERE {clause.sql}", clause.parameters)]


SPANS = {
    # value: its first moment, and the first one after it
    "2024": (datetime(2024, 1, 1), datetime(2025, 1, 1)),
    "2024-05": (datetime(2024, 5, 1), datetime(2024, 6, 1)),
    "2024-12": (datetime(2024, 12, 1), datetime(2025, 1, 1)),
    "2024-05-31": (datetime(2024, 5, 31), datetime(2024, 6, 1)),
    "2024-05-31T18:30": (datetime(2024, 5, 31, 18, 30), datetime(2024, 5, 31, 18, 31)),
    "'2024-05-31 18:30:15'": (datetime(2024, 5, 31, 18, 30, 15), datetime(2024, 5, 31, 18, 30, 16)),
    "1965": (datetime(1965, 1, 1), datetime(1966, 1, 1)),
}
# What each operator says of: before the span, its first moment, its last, and the first one after it.
OF_SPANS = {"=": "nyyn", "==": "nyyn", "in": "nyyn", "!=": "ynny", "<": "ynnn", "<=": "yyyn", ">": "nnny", ">=": "nyyy"}
# Of an age: an older time, the moment itself, a newer one, one to come.
OF_AGES = {"<": "ynnn", "<=": "ynnn", ">": "nyyy", ">=": "nyyy"}


@pytest.mark.parametrize("sign", OF_SPANS)
@pytest.mark.parametrize("value", SPANS)
def test_times_are_compared_as_people_read_them(value, sign):
    start, end = (int(when.timestamp()) * 10**9 for when in SPANS[value])
    times = [start - 1, start, end - 1, end]
    right = [time for time, answer in zip(times, OF_SPANS[sign], strict=True) if answer == "y"]
    assert moments(f"mtime {sign} ({value})" if sign == "in" else f"mtime {sign} {value}", times) == right


@pytest.mark.parametrize("sign", OF_AGES)
@pytest.mark.parametrize(
    ("age", "seconds"), [("-12h", DAY / 2), ("-30d", 30 * DAY), ("-4w", 28 * DAY), ("-7D", 7 * DAY)]
)
def test_ages_are_newer_or_older_than_a_moment(age, seconds, sign):
    now = datetime(2024, 5, 31, 12).timestamp()
    then = int(now - seconds) * 10**9
    times = [then - 1, then, then + 1, int(now + DAY) * 10**9]
    right = [time for time, answer in zip(times, OF_AGES[sign], strict=True) if answer == "y"]
    assert moments(f"mtime {sign} {age}", times, now) == right


@pytest.mark.parametrize("where", ["mtime = -7d", "mtime != -7d", "mtime in (2024, -7d)"])
def test_an_age_equals_nothing(where):
    with pytest.raises(DataError, match=r"an age goes with > \(newer\) and < \(older\), as in mtime > -7d"):
        parse_where(where)


def test_days_are_those_of_the_local_clock(monkeypatch):
    """In Berlin clocks went forward on 31 March 2024 and back on 27 October."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        hours = {day: (parse_time(day, 0.0).end - parse_time(day, 0.0).start) / 3.6e12
                 for day in ("2024-03-31", "2024-06-01", "2024-10-27")}  # fmt: skip
        minute = parse_time("2024-10-27T02:59", 0.0)
        start = parse_time("2024-03-31", 0.0).start
    finally:
        monkeypatch.undo()
        time.tzset()
    assert hours == {"2024-03-31": 23, "2024-06-01": 24, "2024-10-27": 25}
    assert minute.end - minute.start == 60 * 10**9
    assert start == 1711839600 * 10**9  # 2024-03-30 23:00 UTC


def test_times_beyond_what_sqlite_counts():
    times = [-(2**63) + 1, -(10**18), 0, 10**18, 2**63 - 1]
    assert moments("mtime < 2300", times) == times[:4]
    assert moments("mtime <= 9999-12-31", times) == times[:4]  # as of any year that is not counted
    assert (moments("mtime > 9999", times), moments("mtime = 9999", times)) == (times[4:], [])
    assert moments("mtime > 1500", times) == moments("mtime > -99999w", times) == times
    assert moments("mtime > 2300 or mtime < 1500", times) == times[4:]


@pytest.mark.parametrize("where", ["name ~ *.png", "size > 1k", "folder = 2024 or not size > 3k", "name ~ nothing*"])
@pytest.mark.parametrize("later", [False, True])
def test_search_under_a_filter_is_brute_force_over_what_meets_it(dated, where, later):
    collection, _, vectors = dated
    if (
        later and collection.search(vectors[0], k=1)[0].score > 0.99
    ):  # some rows are not in FAISS's file yet, some in it are dead
        facts = {image.path: row for row, image in enumerate(collection.facts())}
        changed = [path for path in facts if facts[path] % 4 == 0]
        collection.update_from(Embeddings(-vectors[[facts[path] for path in changed]], changed, "f" * 64))
    stored = collection.embeddings()
    allowed = found(collection, where)
    for query in np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32):
        unit = query / np.linalg.norm(query)
        right = sorted((-float(v @ unit), path) for v, path in zip(stored.vectors, stored.ids, strict=True)
                       if path in allowed)[:7]  # fmt: skip
        hits = collection.search(query, k=7, where=where)
        assert [hit.path for hit in hits] == [path for _, path in right]
        np.testing.assert_allclose([hit.score for hit in hits], [-score for score, _ in right], atol=1e-5)
        if right:
            others = collection.search(query, k=100, where=where, exclude_paths=[right[0][1]])
            assert len(others) == len(allowed) - 1
            assert right[0][1] not in [hit.path for hit in others]


def test_names_that_are_not_text(tmp_path):
    names = [os.fsdecode(b"/lib/\xff\xfe.jpg"), os.fsdecode("/lib/größe.jpg".encode()), "/lib/a\nb.png"]
    with Collection.create(tmp_path / "index", fingerprint="f" * 64, dim=3, root="/lib") as collection:
        collection.update_from(Embeddings(np.eye(3, dtype=np.float32), names, "f" * 64))
        assert found(collection, "name ~ 'gr*e.jpg'") == [names[1]]
        assert found(collection, f"name = '{os.path.basename(names[0])}'") == [names[0]]
        assert found(collection, "name ~ '*.jpg'") == sorted(names[:2])
        assert found(collection, "name = 'a\nb.png'") == [names[2]]
