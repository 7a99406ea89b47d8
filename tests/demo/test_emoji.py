"""The archive that ships is what its table and its notices say, and unpacking leaves all or nothing."""

import csv
import hashlib
import io
import stat
import zipfile
from collections import Counter
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from vitembed.demo.datasets import emoji
from vitembed.demo.publish import publish, unpack
from vitembed.errors import DataError

DATA = resources.files("vitembed.demo") / "data"


@pytest.fixture(scope="module")
def archive():
    with (DATA / "emoji.zip").open("rb") as file, zipfile.ZipFile(file) as opened:
        yield opened


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return emoji(tmp_path_factory.mktemp("demo") / "emoji")


def table(archive):
    return list(csv.DictReader(io.StringIO(archive.read("emoji.csv").decode("utf-8"))))


def test_the_archive_holds_what_the_table_lists_and_nothing_else(archive):
    rows = table(archive)
    listed = {f"{vendor}/{row['category']}/{row['name']}.webp" for vendor in ("google", "twitter") for row in rows}
    assert set(archive.namelist()) == listed | {"emoji.csv"}
    assert len(rows) == 1906
    assert len({row["unified"] for row in rows}) == 1906
    assert len({row["category"] for row in rows}) == 9
    assert archive.testzip() is None


def test_names_suit_every_file_system(archive):
    reserved = {"con", "prn", "aux", "nul"} | {f"{port}{i}" for port in ("com", "lpt") for i in range(10)}
    names = [row["name"] for row in table(archive)]
    assert not [name for name in names if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii()]
    assert not [name for name in names if name != name.lower() or name[0] in "-_" or name in reserved]
    assert {"thumbsup", "thumbsdown"} <= set(names)


def test_the_archive_is_small_and_reproducible(archive):
    assert len((DATA / "emoji.zip").read_bytes()) <= 6_000_000
    infos = archive.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {(info.create_system, info.external_attr, info.extra) for info in infos} == {(3, 0o100644 << 16, b"")}


def test_the_notices_name_sources_licences_and_changes():
    notice = (DATA / "NOTICE.md").read_text(encoding="utf-8")
    for words in ("googlefonts/noto-emoji", "Apache License, Version 2.0", "jdecked/twemoji", "CC-BY-4.0"):
        assert words in notice
    for words in ("What was changed", "rounded", "16.0.0", "The MIT License (MIT)", "Copyright (c) 2013 Cal Henderson"):
        assert words in notice


def test_drawings_are_64_px_with_transparent_ground(data):
    for path in (data.google + data.twitter)[::97]:
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("WEBP", (64, 64), "RGBA")
    alpha = np.asarray(Image.open(data.google[data.names.index("apple")]))[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[32, 32] == 255


def test_rows_are_one_emoji_by_two_artists(data):
    assert len(data) == len(data.google) == len(data.twitter) == len(data.titles) == len(data.subcategories) == 1906
    for name, category, google, twitter in zip(data.names, data.categories, data.google, data.twitter, strict=True):
        assert google == data.directory / "google" / category / f"{name}.webp"
        assert twitter == data.directory / "twitter" / category / f"{name}.webp"
    row = data.names.index("apple")
    assert (data.titles[row], data.categories[row]) == ("red apple", "food-drink")
    assert Counter(data.categories)["people-body"] == 386  # counted in emoji.json of the npm package


def test_a_second_call_uses_what_is_there(data):
    before = data.google[5].stat().st_mtime_ns
    assert emoji(data.directory) == data
    assert data.google[5].stat().st_mtime_ns == before


def test_a_folder_that_lost_a_file_is_refused(tmp_path):
    data = emoji(tmp_path / "emoji")
    data.twitter[7].unlink()
    with pytest.raises(
        DataError, match=rf"lacks twitter.{data.categories[7]}.{data.names[7]}\.webp: remove the folder"
    ):
        emoji(tmp_path / "emoji")


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        emoji(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def fill_half(target):
    with publish(target) as staging:
        (staging / "half").write_text("half")
        raise KeyboardInterrupt


def test_publish_leaves_nothing_behind_after_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill_half(tmp_path / "deep" / "result")
    assert list((tmp_path / "deep").iterdir()) == []


def test_publish_fills_an_empty_folder_and_is_readable(tmp_path):
    target = tmp_path / "result"
    target.mkdir()
    with publish(target) as staging:
        (staging / "a").write_text("a")
        assert not (target / "a").exists()
    assert (target / "a").read_text() == "a"
    assert list(tmp_path.iterdir()) == [target]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_publish_onto_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is not a folder"), publish(tmp_path / "file"):
        pass


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\..\\evil", "C:evil", "link"])
def test_zip_slip_writes_nothing(tmp_path, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("good.txt", "good")
        info = zipfile.ZipInfo(name)
        info.filename = name
        info.external_attr = (0o120777 if name == "link" else 0o100644) << 16
        made.writestr(info, "/etc/passwd")
    target = tmp_path / "in" / "target"
    target.mkdir(parents=True)
    with zipfile.ZipFile(buffer) as opened, pytest.raises(DataError, match="no plain file inside it: not unpacked"):
        unpack(opened, target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_damaged_archive_is_a_data_error(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.txt", "some words that will be damaged")
    damaged = buffer.getvalue().replace(b"words", b"sword")
    with zipfile.ZipFile(io.BytesIO(damaged)) as opened, pytest.raises(DataError, match=r"damaged at 'a\.txt'"):
        unpack(opened, tmp_path)


def test_the_archive_is_the_one_whose_numbers_are_documented():
    # Results in the docs are of these bytes. After rebuilding the archive on purpose, measure again and change this.
    digest = hashlib.sha256((DATA / "emoji.zip").read_bytes()).hexdigest()
    assert digest == "def557f8ca533bec7079a69482b732d9ae047637d714cde5062fce1662a00ce6"
