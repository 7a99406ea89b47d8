"""The file itself: formats, journals, types of vectors, checksums, and what else may be done with rows."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from vitembed.collection.catalog import CATALOG_FILE
from vitembed.collection.collection import Collection
from vitembed.collection.store import connect, filesystem
from vitembed.collection.store.filesystem import is_network
from vitembed.embeddings import Embeddings
from vitembed.errors import CollectionError, DataError, MismatchError

FORMAT_1 = Path(__file__).parent / "data" / "format1.sqlite"
MOUNTS = rb"""proc /proc proc rw 0 0
/dev/sda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb1 /home/me/disk ext4 rw 0 0
//nas/photos /mnt/my\040photos cifs rw 0 0
me@far:/ /mnt/far fuse.sshfs rw 0 0
/dev/sdc1 /mnt/stick fuseblk rw 0 0
pool /mnt/pool fuse.mergerfs rw 0 0
tmpfs /mnt/far/over tmpfs rw 0 0
"""


def journal_of(directory):
    with sqlite3.connect(directory / CATALOG_FILE) as db:
        mode = db.execute("PRAGMA journal_mode").fetchone()[0]
    db.close()
    return mode


@pytest.mark.parametrize(
    ("path", "network"),
    [
        ("/etc/x", False),
        ("/home/me/photos", True),
        ("/home", True),
        ("/homes", False),
        ("/home/me/disk/x", False),
        ("/mnt/my photos/x", True),
        ("/mnt/far/x", True),
        ("/mnt/far/over/x", False),
        ("/mnt/stick/x", False),
        ("/mnt/pool/x", False),
    ],
)
def test_kind_of_file_system(path, network):
    assert is_network(path, MOUNTS) is network
    assert not is_network(path, b"")


def test_on_a_network_file_system_there_is_no_shared_memory(tmp_path, photos, make, encoder, referee, monkeypatch):
    collection = make()
    assert journal_of(collection.directory) == "wal"
    collection.close()
    mounts = tmp_path / "mounts"
    mounts.write_bytes(
        b"/dev/sda1 / ext4 rw 0 0\nserver:/x " + os.fsencode(os.path.realpath(tmp_path)) + b" nfs4 rw 0 0\n"
    )
    monkeypatch.setattr(filesystem, "MOUNT_TABLE", str(mounts))
    collection = make()  # one that was made elsewhere changes over
    assert journal_of(collection.directory) == "delete"
    seen = []
    with Collection.open(collection.directory) as reader:
        encoder.after_batch = lambda batch: seen.append(len(reader))
        collection.update(encoder, [photos], batch_size=8)
        referee(reader, [str(path) for path in photos.rglob("*.png")])
    assert seen == [0, 0, 0, 0]  # the old state until the new one is whole
    assert not [name for name in os.listdir(collection.directory) if name.endswith(("-wal", "-shm"))]
    monkeypatch.undo()
    with Collection.open(collection.directory) as again:
        referee(again, [str(path) for path in photos.rglob("*.png")])
    assert journal_of(collection.directory) == "wal"


@pytest.fixture
def format_1(tmp_path, color_grid):
    """A workspace as the first version left it."""
    index = tmp_path / ".vitembed" / "index"
    index.mkdir(parents=True)
    shutil.copy(FORMAT_1, index / CATALOG_FILE)
    for seed in range(8):
        color_grid.draw(str(tmp_path / "photos" / "ab"[seed % 2] / f"{seed:02}.png"), seed)
    color_grid.draw(str(tmp_path / "photos" / os.fsdecode(b"not-utf8-\xff.png")), 8)
    (tmp_path / "photos" / "zero.png").touch()
    (tmp_path / "photos" / "notes.txt").write_text("hello")
    for path in (tmp_path / "photos").rglob("*"):
        os.utime(path, ns=(1_700_000_000 * 10**9, 1_700_000_000 * 10**9))
    return index


def test_the_first_format_is_migrated_with_everything_in_it(format_1, encoder, color_grid, tmp_path):
    with sqlite3.connect(format_1 / CATALOG_FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
        (last_id,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'files'").fetchone()
    db.close()
    with Collection.open(format_1) as collection:
        collection.verify()
        assert len(collection) == 11
        assert {"item 1", os.fsdecode(b"\xff")} < set(collection.paths())
        assert collection.bad() == [(str(tmp_path / "photos" / "zero.png"), "zero bytes")]
        assert (collection.meta["name"], collection.vector_type) == ("grid", "float16")
        for seed in range(8):
            path = tmp_path / "photos" / "ab"[seed % 2] / f"{seed:02}.png"
            expected = color_grid.embed_file(path)
            assert collection.vector(path) @ expected / np.linalg.norm(expected) > 0.9999
            assert collection.search(expected, k=1)[0].path == str(path)
        report = collection.update(encoder, [tmp_path / "photos"])
        assert (report.unchanged, report.added, report.num_other, len(report.bad)) == (9, 0, 1, 1)
        assert encoder.seen == []
        color_grid.draw(str(tmp_path / "photos" / "new.png"), 50)
        collection.update(encoder, [tmp_path / "photos"])
        assert collection.get(tmp_path / "photos" / "new.png").id > last_id
    with sqlite3.connect(format_1 / CATALOG_FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 3
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    db.close()


@pytest.mark.parametrize("version", [2, 3])
def test_committed_formats_stay_readable(format_1, tmp_path, version):
    """Files as committed when these formats were made: their checksums must still agree, and they hold the same."""
    index = tmp_path / "other" / ".vitembed" / "index"
    index.mkdir(parents=True)
    shutil.copy(FORMAT_1.with_name(f"format{version}.sqlite"), index / CATALOG_FILE)
    before = (index / CATALOG_FILE).read_bytes()
    with Collection.open(index) as made, Collection.open(format_1) as migrated:
        made.verify()
        np.testing.assert_array_equal(made.embeddings().vectors, migrated.embeddings().vectors)
        assert [reason for _, reason in made.bad()] == ["zero bytes"]
        roots = {root.path: root.is_offline for root in made.roots()}
        assert roots == ({"/media/usb": True, str(tmp_path / "other" / "photos"): True} if version == 3 else {})
    if version == 3:
        assert (index / CATALOG_FILE).read_bytes() == before


def test_format_2_is_searched_where_it_cannot_be_migrated(format_1, tmp_path, monkeypatch):
    shutil.copy(FORMAT_1.with_name("format2.sqlite"), format_1 / CATALOG_FILE)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with Collection.open(format_1) as collection:
        assert (len(collection.search(np.ones(48), k=3)), collection.roots()) == (3, [])
    with sqlite3.connect(format_1 / CATALOG_FILE) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 2
    db.close()


def test_an_old_format_that_cannot_be_written_says_so(format_1, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(CollectionError, match="has format 1 of an older vitembed and cannot be written here: open it"):
        Collection.open(format_1)


def test_vectors_in_full(photos, make, encoder, color_grid):
    """float32 vectors come back to the bit, and search ranks by them."""
    collection = make(vector_type="float32")
    collection.update(encoder, [photos])
    for path in collection.paths():
        vector = color_grid.embed_file(path).astype(np.float64)
        exact = (vector / np.linalg.norm(vector)).astype(np.float32)
        np.testing.assert_array_equal(collection.vector(path), exact)
        hit = collection.search(vector, k=1)[0]
        assert hit.path == path
        assert hit.score == pytest.approx(1, abs=2e-7)
    truth = collection.embeddings().vectors.astype(np.float64)
    query = np.random.default_rng(0).standard_normal(48)
    order = np.argsort(-(truth @ query))[:10]
    ids = collection.embeddings().ids
    assert [hit.path for hit in collection.search(query, k=10)] == [ids[row] for row in order]
    collection.close()
    reopened = make()
    assert (reopened.vector_type, len(reopened.search(query, k=100))) == ("float32", 30)
    with pytest.raises(MismatchError, match="stores vectors as float32, not as float16: run vitembed index --rebuild"):
        make(vector_type="float16")
    with pytest.raises(DataError, match="vector_type is 'int8', expected one of float16, float32"):
        make(vector_type="int8")
    assert make(vector_type="float16", rebuild=True).vector_type == "float16"


def test_rows_can_be_asked_for_and_forgotten(photos, make, encoder, referee):
    collection = make()
    collection.update(encoder, [photos])
    collection.update_from(Embeddings(np.eye(48)[:2], ["one", "two"], encoder.fingerprint))
    (photos / "zero.png").touch()
    collection.update(encoder, [photos])
    first = photos / "a" / "01.png"
    row = collection.get(first)
    assert (row.path, row.status, row.size) == (str(first), "ok", first.stat().st_size)
    assert collection.get("one").external
    assert collection.get(photos / "zero.png").reason == "zero bytes"
    assert collection.get("three") is None
    assert collection.delete([first, "one", "three"]) == 2
    assert collection.get(first) is None
    assert collection.delete(["two"]) == 1
    everything = sorted(str(path) for path in photos.rglob("[0-9]*.png"))
    referee(collection, [path for path in everything if path != str(first)])
    assert collection.update(encoder, [photos]).added == 1  # it is still there
    referee(collection, everything)


def test_vacuum_gives_space_back_and_changes_nothing(photos, make, encoder, referee):
    collection = make()
    rng = np.random.default_rng(0)
    many = Embeddings(rng.standard_normal((800, 48)), [str(number) for number in range(800)], encoder.fingerprint)
    collection.update_from(many)
    collection.update(encoder, [photos])
    collection.delete(many.ids)
    collection._catalog.checkpoint()
    before = (collection.directory / CATALOG_FILE).stat().st_size
    collection.vacuum()
    assert (collection.directory / CATALOG_FILE).stat().st_size < before / 4
    referee(collection, [str(path) for path in photos.rglob("*.png")])
    collection.verify()


def test_nothing_is_written_where_nothing_has_changed(photos, make, encoder):
    collection = make()
    collection.update(encoder, [photos])
    collection.close()

    def stats():
        return {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in collection.directory.iterdir()}

    before = stats()
    again = make()
    assert again.update(encoder, [photos]).unchanged == 30
    again.close()
    assert stats() == before


def test_image_sizes_are_kept_and_go_with_copies_and_moves(photos, make, color_grid):
    class WithSizes(color_grid.ColorGrid):
        def stream(self, refs, **options):
            for batch in super().stream(refs, **options):
                batch.image_sizes = np.array([[100 + index, 0 if index == 1 else 50] for index in batch.indices])
                batch.image_sizes[batch.indices == 2] = 0
                yield batch

    collection, encoder = make(), WithSizes()
    collection.update(encoder, [photos])
    rows = [collection.get(path) for path in sorted(map(str, photos.rglob("*.png")))]
    assert [(row.width, row.height) for row in rows[:4]] == [(100, 50), (101, 0), (None, None), (103, 50)]
    shutil.copy(photos / "a" / "01.png", photos / "copy.png")
    os.rename(photos / "a" / "07.png", photos / "moved.png")
    collection.update(encoder, [photos])
    assert [(collection.get(photos / name).width) for name in ("copy.png", "moved.png")] == [100, 103]


def test_a_catalogue_with_something_slipped_in_is_not_opened(photos, make, encoder):
    collection = make()
    collection.update(encoder, [photos])
    collection.close()
    with sqlite3.connect(collection.directory / CATALOG_FILE) as db:
        db.execute("CREATE TRIGGER evil AFTER INSERT ON files BEGIN DELETE FROM vectors; END")
    db.close()
    with pytest.raises(CollectionError, match="its tables are not the ones that vitembed makes"):
        Collection.open(collection.directory)


@pytest.mark.parametrize(
    ("statement", "complaint"),
    [
        ("UPDATE vectors SET vector = zeroblob(96) WHERE id = 3", "checksum of vector 3 differs"),
        ("UPDATE vectors SET id = id + 100 WHERE id = 3", "row 3 is missing|checksum of vector 103 differs"),
        ("UPDATE files SET path = x'2f62' WHERE id = 3", "checksum of row 3 differs"),
        ("UPDATE files SET status = 'other' WHERE id = 3", "checksum of row 3 differs|not the 30"),
        ("DELETE FROM files WHERE id = 3", "not the 30"),
        ("DELETE FROM vectors WHERE id = 3", "row 3 is missing"),
        ("UPDATE meta SET value = x'2e2e' WHERE key = 'root'", "checksum of its facts differs"),
    ],
)
def test_every_change_behind_the_back_is_found(statement, complaint, photos, make, encoder):
    collection = make()
    collection.update(encoder, [photos])
    collection.close()
    with sqlite3.connect(collection.directory / CATALOG_FILE) as db:
        db.execute(statement)
    db.close()

    def read_all():
        with Collection.open(collection.directory) as changed:
            changed.embeddings()
            changed.verify()

    with pytest.raises(connect.DamagedError, match=complaint):
        read_all()
