"""A day of accidents: drives that are away, links, odd times, editors that save by rename, unfinished downloads."""

from __future__ import annotations

import os
import shutil
import sys
import time

import numpy as np
import pytest

from vitembed.collection.collection import Collection
from vitembed.collection.plan import make_plan
from vitembed.collection.store.rows import Row
from vitembed.errors import CollectionError, DataError
from vitembed.images import source
from vitembed.images.source import FileEntry, Walk

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and odd times")


@pytest.fixture
def drive(tmp_path, draw):
    """A folder of 12 images beside another of 5."""
    for seed in range(12):
        draw(str(tmp_path / "usb" / "ab"[seed % 2] / f"{seed:02}.png"), seed)
    for seed in range(5):
        draw(str(tmp_path / "b" / f"{seed:02}.png"), 50 + seed)
    return tmp_path / "usb"


def unmount(drive, left=0):
    """Take the files away as a drive does that is not mounted; gives back where they are."""
    away = drive.with_name("away")
    shutil.move(drive, away)
    drive.mkdir()
    for path in sorted(away.rglob("*.png"))[:left]:
        shutil.copy2(path, drive / path.name)
    return away


@pytest.mark.parametrize("how", ["empty", "missing", "unreadable", "subfolders left", "other drive"])
def test_a_drive_that_is_away_keeps_its_rows(drive, make, encoder, draw, monkeypatch, how):
    collection = make()
    collection.update(encoder, [drive, drive.parent / "b"])
    before = collection.paths()
    encoder.seen.clear()
    if how == "unreadable":
        real = os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: real("/nowhere") if path == str(drive) else real(path))
    else:
        away = unmount(drive)
        if how == "missing":
            drive.rmdir()
        elif how == "subfolders left":
            (drive / "a").mkdir()
        elif how == "other drive":
            draw(str(drive / "of another.png"), 99)
    draw(str(drive.parent / "b" / "new.png"), 100)
    for inputs in ([drive, drive.parent / "b"], [drive]):
        report = collection.update(encoder, inputs)
        assert [(item.path, item.num_images) for item in report.offline] == [(str(drive), 12)]
        assert report.deleted == 0
        assert set(before) < set(collection.paths())
    assert str(drive.parent / "b" / "new.png") in collection.paths()
    hits = collection.search(collection.vector(before[-1]), k=30)
    expected = set() if how == "unreadable" else {path for path in before if path.startswith(str(drive))}
    assert {hit.path for hit in hits if hit.missing} == expected

    if how == "unreadable":
        monkeypatch.undo()
    else:
        shutil.rmtree(drive, ignore_errors=True)
        shutil.move(away, drive)
    report = collection.update(encoder, [drive])
    assert (report.offline, report.unchanged, report.num_embedded) == ([], 12, 0)
    assert not any(hit.missing for hit in collection.search(np.ones(48), k=30))
    assert all("usb" not in path for path in encoder.seen if "another" not in path)


@pytest.mark.parametrize(
    ("num_images", "num_left", "is_kept"),
    [(12, 5, True), (12, 6, False), (3, 0, True), (4, 1, False), (5, 1, True)],
)
def test_most_of_a_folder_gone(tmp_path, draw, make, encoder, num_images, num_left, is_kept):
    """More than half and at least four, or all of them."""
    for seed in range(num_images):
        draw(str(tmp_path / "p" / f"{seed}.png"), seed)
    (tmp_path / "p" / "notes.txt").write_text("stays")
    collection = make()
    collection.update(encoder, [tmp_path / "p"])
    for seed in range(num_left, num_images):
        os.remove(tmp_path / "p" / f"{seed}.png")
    report = collection.update(encoder, [tmp_path / "p"])
    assert len(collection) == (num_images if is_kept else num_left)
    assert (bool(report.offline), report.num_offline) == (is_kept, num_images - num_left if is_kept else 0)
    report = collection.update(encoder, [tmp_path / "p"], prune=True)
    assert (len(collection), report.offline) == (num_left, [])


def test_a_mount_point_below_an_input(drive, make, encoder, monkeypatch):
    """A share inside of a large folder: less than half of it, yet nobody has deleted its images."""
    mounted = {str(drive)}
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in mounted)
    real = os.stat

    def stat(path, *args, **kwargs):
        found = real(path, *args, **kwargs)
        if str(path).startswith(str(drive)) and mounted:
            return os.stat_result(
                [*found[:2], 12_345, *found[3:]], {"st_mtime_ns": found.st_mtime_ns, "st_ctime_ns": 1}
            )
        return found

    collection = make()
    for number in range(20):
        shutil.copy(drive / "a" / "00.png", drive.parent / "b" / f"copy{number}.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        collection.update(encoder, [drive.parent])
    assert [(root.path, root.num_images) for root in collection.roots()] == [(str(drive.parent), 37), (str(drive), 12)]
    for path in (drive / "a").iterdir():  # deleted by hand while it is mounted: gone
        os.remove(path)
    unmount_later = sorted((drive / "b").iterdir())
    assert collection.update(encoder, [drive.parent]).deleted == 6
    mounted.clear()
    os.remove(unmount_later[0])
    report = collection.update(encoder, [drive.parent])
    assert [(item.path, item.num_images) for item in report.offline] == [(str(drive), 1)]
    assert "nothing is mounted there now" in report.offline[0].reason
    assert [root.is_offline for root in collection.roots()] == [False, True]


def test_a_folder_named_once_is_kept_below_its_parent(drive, make, encoder, draw):
    for seed in range(40):
        draw(str(drive.parent / "many" / f"{seed}.png"), 200 + seed)
    collection = make()
    collection.update(encoder, [drive])
    collection.update(encoder, [drive.parent])
    shutil.rmtree(drive)
    shutil.rmtree(drive.parent / "b")  # never named by itself, and a small part of the whole
    report = collection.update(encoder, [drive.parent])
    assert [(item.path, item.reason, item.num_images) for item in report.offline] == [
        (str(drive), "no such file or folder", 12)
    ]
    assert (report.deleted, len(collection)) == (5, 52)
    assert collection.forget([drive]) == {str(drive): 12}
    assert (collection.update(encoder, [drive.parent]).offline, len(collection)) == ([], 40)


def test_a_folder_that_was_renamed_has_moved(drive, make, encoder):
    collection = make()
    collection.update(encoder, [drive])
    encoder.seen.clear()
    drive.rename(drive.with_name("other"))
    report = collection.update(encoder, [drive.with_name("other")])
    assert (report.moved, report.offline, encoder.seen, len(collection)) == (12, [], [], 12)
    report = collection.update(encoder, [drive.with_name("other"), drive])
    assert [error.path for error in report.missing] == [str(drive)]
    assert report.unchanged == 12


def test_what_comes_back_is_not_embedded_again_and_not_found_meanwhile(drive, make, encoder, referee):
    collection = make()
    collection.update(encoder, [drive])
    away = unmount(drive)
    encoder.seen.clear()
    assert collection.update(encoder, [drive], prune=True).deleted == 12
    referee(collection, [])
    collection.verify()
    (away / "a" / "00.png").rename(away / "a" / "renamed.png")
    drive.rmdir()
    shutil.move(away, drive)
    report = collection.update(encoder, [drive])
    assert (report.added, report.num_embedded, encoder.seen) == (12, 0, [])
    referee(collection, list(drive.rglob("*.png")))

    unmount(drive)
    collection.update(encoder, [drive], prune=True)
    collection.vacuum()
    shutil.copytree(drive.with_name("away"), drive, dirs_exist_ok=True)
    assert collection.update(encoder, [drive]).num_embedded == 12


def test_a_damaged_vector_of_a_file_that_was_gone_is_embedded_again(drive, make, encoder, referee):
    import sqlite3

    collection = make()
    collection.update(encoder, [drive])
    away = unmount(drive)
    collection.update(encoder, [drive], prune=True)
    with sqlite3.connect(collection.directory / "catalog.sqlite") as db:
        db.execute("UPDATE gone SET vector = zeroblob(96)")
    db.close()
    drive.rmdir()
    shutil.move(away, drive)
    encoder.seen.clear()
    assert collection.update(encoder, [drive]).num_embedded == 12
    referee(collection, list(drive.rglob("*.png")))


def test_a_list_of_files_on_a_drive_that_is_away(drive, make, encoder, tmp_path):
    listed = tmp_path / "list"
    listed.write_bytes(b"\0".join(os.fsencode(path) for path in sorted(tmp_path.rglob("*.png"))) + b"\0")
    collection = make()
    assert collection.update(encoder, [f"@{listed}"]).added == 17
    unmount(drive)
    report = collection.update(encoder, [f"@{listed}"])
    assert [(item.path, item.reason) for item in report.offline] == [(f"@{listed}", "12 of its 17 images are gone")]
    assert (report.deleted, report.unchanged, len(collection), report.bad) == (0, 5, 17, [])


def test_one_missing_input_stops_nothing(drive, make, encoder):
    collection = make()
    report = collection.update(encoder, [drive.parent / "never", drive])
    assert (report.added, [error.path for error in report.missing]) == (12, [str(drive.parent / "never")])
    with pytest.raises(DataError, match="no such file or folder: .*never"):
        collection.update(encoder, [drive.parent / "never"])


def test_a_rebuild_loses_nothing_unsaid(drive, make, encoder, color_grid):
    make().update(encoder, [drive, drive.parent / "b"])
    other = color_grid.ColorGrid(fingerprint="f00d" * 16)
    away = unmount(drive)
    with pytest.raises(CollectionError, match=r"not rebuilt.*usb: none of its images is there \(12 images\)"):
        make(fingerprint=other.fingerprint, rebuild=True).update(other, [drive, drive.parent / "b"])
    drive.rmdir()
    shutil.move(away, drive)

    def fail(_):
        raise RuntimeError("a model that cannot embed")

    other.after_batch = fail
    with pytest.raises(RuntimeError):
        make(fingerprint=other.fingerprint, rebuild=True).update(other, [drive], batch_size=4)
    assert (len(make()), make().fingerprint) == (17, encoder.fingerprint)
    other.after_batch = None
    other.seen.clear()
    report = make(fingerprint=other.fingerprint, rebuild=True).update(other, [drive], batch_size=4)
    assert len(other.seen) == 8  # four were kept of the one that failed
    assert report.num_left_out == 5
    assert len(make(fingerprint=other.fingerprint)) == 12


def test_a_collection_without_vectors_binds_nobody(tmp_path, make, encoder):
    make(fingerprint="dead" * 16, dim=7).close()
    assert make().fingerprint == encoder.fingerprint
    collection = make()
    collection.discard_if_empty()
    with pytest.raises(CollectionError, match="no collection"):
        Collection.open(collection.directory)


@posix
def test_the_same_file_reached_in_two_ways_is_embedded_once(drive, make, encoder, referee):
    top = drive.parent
    (top / "album").mkdir()
    (top / "album" / "link.png").symlink_to(drive / "a" / "00.png")
    os.link(drive / "a" / "02.png", top / "album" / "hard.png")
    (top / "linked").symlink_to(drive)
    collection = make()
    report = collection.update(encoder, [drive, top / "album", top / "linked", drive / "a", f"{drive}/../usb/"])
    assert (report.added, report.num_links, report.num_embedded, len(encoder.seen)) == (26, 14, 12, 12)
    inputs = [drive, top / "album"]
    referee(collection, [*drive.rglob("*.png"), *(top / "album").iterdir(), *(top / "linked").rglob("*.png")], k=5)
    assert collection.update(encoder, inputs).num_links == 2

    (drive / "a" / "bad.png").write_bytes((drive / "a" / "00.png").read_bytes()[:60])
    os.link(drive / "a" / "bad.png", top / "album" / "bad.png")
    report = collection.update(encoder, inputs)
    assert [os.path.relpath(error.path, top) for error in report.bad] == ["album/bad.png", "usb/a/bad.png"]


@posix
def test_odd_times_cost_nothing(drive, make, encoder, referee):
    odd = [-(2**30), -1, 0, 2**63 // 10**9, 9_223_459_200, 15_000_000_000]
    targets = sorted(str(path) for path in drive.rglob("*.png"))[: len(odd)]
    for path, seconds in zip(targets, odd, strict=True):
        os.utime(path, (0, seconds))
    found = [os.stat(path).st_mtime_ns for path in targets]  # some file systems keep others
    collection = make()
    assert collection.update(encoder, [drive]).added == 12
    encoder.seen.clear()
    report = collection.update(encoder, [drive])
    assert (report.unchanged, encoder.seen) == (12, [])
    referee(collection, list(drive.rglob("*.png")))
    for path, mtime_ns in zip(targets, found, strict=True):
        assert collection.get(path).mtime_ns == min(mtime_ns, 2**63 - 1)
        assert collection.vector(path, unchanged=True) is not None
    late = sum(mtime_ns > 2**62 for mtime_ns in found)
    assert len(collection.search(np.ones(48), k=20, where="mtime > 2100")) == late
    assert len(collection.search(np.ones(48), k=20, where="mtime < 2020")) == len(odd) - late


def test_an_editor_that_saves_by_rename_while_it_is_read(drive, make, encoder, draw, referee):
    target = drive / "a" / "00.png"

    def save(number):
        if number == 1:
            draw(str(drive / "saved"), 300)
            os.replace(drive / "saved", target)

    encoder.after_batch = save
    collection = make()
    collection.update(encoder, [drive], batch_size=1)
    encoder.after_batch = None
    collection.update(encoder, [drive])
    referee(collection, list(drive.rglob("*.png")))
    assert collection.update(encoder, [drive]).unchanged == 12


def test_a_file_becomes_a_folder_and_back(drive, make, encoder, draw, referee):
    collection = make()
    collection.update(encoder, [drive])
    target = drive / "a" / "00.png"
    target.unlink()
    draw(str(target / "inside.png"), 400)
    collection.update(encoder, [drive])
    referee(collection, [path for path in drive.rglob("*.png") if path.is_file()])
    shutil.rmtree(target)
    draw(str(target), 0)
    encoder.seen.clear()
    assert collection.update(encoder, [drive]).num_embedded == 0  # its content is known from before
    referee(collection, list(drive.rglob("*.png")))


def test_rows_in_folders_that_are_passed_over_now_go(drive, make, encoder, draw, monkeypatch):
    collection = make()
    for seed in range(9):
        draw(str(drive / ".Trash-1000" / "files" / f"{seed}.png"), 500 + seed)
    with monkeypatch.context() as patch:
        patch.setattr(source, "is_ignored_folder", lambda path: False)
        assert collection.update(encoder, [drive]).added == 21
    report = collection.update(encoder, [drive])
    assert (report.deleted, report.offline, report.passed_over) == (9, [], [str(drive / ".Trash-1000")])
    assert collection.update(encoder, [drive / ".Trash-1000"]).added == 9  # named outright
    assert collection.update(encoder, [drive]).deleted == 0


def test_many_names_beside_many_rows_take_no_time():
    """10,000 names with 10,000 rows elsewhere: near-linear, where every pair would be 100 million."""
    names = [FileEntry(f"/x/b/{number:05}.png", 10, 5) for number in range(10_000)]
    rows = [
        Row(number + 1, f"/x/{folder}/{number:05}.png", False, 10, 5, None, 8, 8, "ok", None)
        for folder in "ab"
        for number in range(10_000)
    ]
    inputs = [entry.path for entry in names]
    walked = Walk(names, [], set(inputs), inputs, {}, [], [], [], {})
    start = time.process_time()
    plan = make_plan(rows, walked)
    assert time.process_time() - start < 5
    assert (plan.num_unchanged, plan.deleted, plan.embed) == (10_000, [], [])


@posix
def test_files_of_one_size_and_time_that_swap_names(drive, make, encoder, referee):
    """A camera's bitmaps: neither size nor time tells that the names were swapped."""
    first, second = drive / "a" / "00.png", drive / "a" / "02.png"
    size = max(first.stat().st_size, second.stat().st_size)
    for path in (first, second):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (10**9, 10**9))
    make().update(encoder, [drive])
    first.rename(drive / "aside")
    second.rename(first)
    (drive / "aside").rename(second)
    encoder.seen.clear()
    report = make().update(encoder, [drive])
    assert (report.changed, encoder.seen) == (2, [])
    referee(make(), list(drive.rglob("*.png")))


def test_a_folder_whose_images_have_all_moved_is_forgotten(drive, make, encoder):
    collection = make()
    collection.update(encoder, [drive])
    drive.rename(drive.with_name("other"))
    collection.update(encoder, [drive.parent])
    assert [root.path for root in collection.roots()] == [str(drive.parent)]
