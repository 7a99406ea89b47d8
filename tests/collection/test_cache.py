from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys

import faiss
import numpy as np
import pytest

from vitembed.collection import standing
from vitembed.collection.ann import CACHE_FILE, MANIFEST_FILE, CacheKey, Scan, VectorCache
from vitembed.collection.catalog import CATALOG_FILE
from vitembed.collection.collection import Collection
from vitembed.errors import CollectionError, DataError


@pytest.fixture
def indexed(photos, make, encoder):
    collection = make()
    collection.update(encoder, [photos])
    collection.close()
    return collection.directory


def paths_of(photos):
    return [str(path) for path in photos.rglob("*.png")]


def rewrite(directory, change):
    """Replace the FAISS file by another one and make the manifest agree with its bytes."""
    index = faiss.read_index(str(directory / CACHE_FILE))
    faiss.write_index(change(index), str(directory / CACHE_FILE))
    data = (directory / CACHE_FILE).read_bytes()
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    import zlib

    manifest |= {"bytes": len(data), "crc32": zlib.crc32(data)}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


def flat(index):
    other = faiss.IndexFlatIP(index.d)
    other.add(np.ones((index.ntotal, index.d), np.float32))
    return other


def shuffled(index):
    other = faiss.IndexIDMap(faiss.IndexScalarQuantizer(48, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2))
    other.add_with_ids(np.ones((30, 48), np.float32), np.arange(30))
    return other


DAMAGES = {
    "lost": lambda d: (d / CACHE_FILE).unlink(),
    "lost manifest": lambda d: (d / MANIFEST_FILE).unlink(),
    "empty": lambda d: (d / CACHE_FILE).write_bytes(b""),
    "truncated": lambda d: os.truncate(d / CACHE_FILE, 1000),
    "longer": lambda d: (d / CACHE_FILE).open("ab").write(b"x"),
    "bit flipped in a vector": lambda d: flip(d / CACHE_FILE, 500),
    "bit flipped in the header": lambda d: flip(d / CACHE_FILE, 9),
    "bit flipped in the ids": lambda d: flip(d / CACHE_FILE, (d / CACHE_FILE).stat().st_size - 20),
    "noise": lambda d: (d / CACHE_FILE).write_bytes(np.random.default_rng(0).bytes(5000)),
    "noise in the manifest": lambda d: (d / MANIFEST_FILE).write_bytes(b"\xff{"),
    "no object in the manifest": lambda d: (d / MANIFEST_FILE).write_text("[]"),
    "another class": lambda d: rewrite(d, flat),
    "another metric": lambda d: rewrite(d, shuffled),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_mended_with_one_line(damage, indexed, photos, referee, caplog):
    good = json.loads((indexed / MANIFEST_FILE).read_text())
    DAMAGES[damage](indexed)
    with caplog.at_level(logging.INFO, "vitembed"), Collection.open(indexed) as collection:
        referee(collection, paths_of(photos))
    made = [record.message for record in caplog.records if "made from the catalogue: 30 vectors" in record.message]
    assert len(made) == 1
    assert json.loads((indexed / MANIFEST_FILE).read_text())["sha256"] == good["sha256"]
    caplog.clear()
    with caplog.at_level(logging.INFO, "vitembed"), Collection.open(indexed) as collection:
        referee(collection, paths_of(photos))
    assert not caplog.records


def test_cache_of_another_collection_is_not_used(indexed, tmp_path, photos, encoder, referee):
    other_folder = tmp_path / "other"
    with Collection.create(other_folder, fingerprint=encoder.fingerprint, dim=48) as other:
        other.update(encoder, [photos / "a"])
    for name in (CACHE_FILE, MANIFEST_FILE):
        os.replace(other_folder / name, indexed / name)
    with Collection.open(indexed) as collection:
        referee(collection, paths_of(photos))


def test_a_cache_that_lies_with_a_right_checksum_is_caught_by_the_scores(indexed, photos, referee, caplog):
    def zeroed(index):
        other = faiss.IndexIDMap(
            faiss.IndexScalarQuantizer(48, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        )
        other.add_with_ids(np.full((30, 48), 0.5, np.float32), faiss.vector_to_array(index.id_map))
        return other

    rewrite(indexed, zeroed)
    with Collection.open(indexed) as collection:
        referee(collection, paths_of(photos))
    assert "contradicts the catalogue" in caplog.text


def test_verify_reads_every_byte(indexed, photos, referee, caplog):
    manifest = json.loads((indexed / MANIFEST_FILE).read_text())
    (indexed / MANIFEST_FILE).write_text(json.dumps(manifest | {"sha256": "0" * 64}))
    with Collection.open(indexed) as collection:
        collection.verify()
        assert "SHA-256 differs" in caplog.text
        caplog.clear()
        collection.verify()
        assert not caplog.records
        referee(collection, paths_of(photos))


def test_stale_cache_is_completed_from_the_catalogue(indexed, photos, encoder, referee, draw, monkeypatch):
    """Rows come and go without a new cache: dead ones are passed over, new ones scanned beside it."""
    monkeypatch.setattr(standing, "MAX_STALE_ROWS", 10_000)
    before = (indexed / CACHE_FILE).read_bytes()
    with Collection.open(indexed) as collection, Collection.open(indexed) as reader:
        referee(reader, paths_of(photos))
        for number in range(10):
            draw(str(photos / f"new{number}.png"), 100 + number)
        for name in ("01", "03", "05"):
            os.remove(photos / "a" / f"{name}.png")
        draw(str(photos / "a" / "07.png"), 300)
        collection.update(encoder, [photos])
        assert (indexed / CACHE_FILE).read_bytes() == before
        for each in (collection, reader):
            referee(each, paths_of(photos))
            referee(each, paths_of(photos), k=37)
        for path in paths_of(photos):
            if "new" not in path:
                os.remove(path)
        collection.update(encoder, [photos], prune=True)
        referee(reader, paths_of(photos))
        with Collection.open(indexed) as fresh:
            referee(fresh, paths_of(photos))


def test_too_stale_a_cache_is_made_anew(indexed, photos, encoder, referee, draw, monkeypatch):
    monkeypatch.setattr(standing, "MAX_STALE_ROWS", 3)
    with Collection.open(indexed) as collection:
        for number in range(5):
            draw(str(photos / f"new{number}.png"), 100 + number)
        collection.update(encoder, [photos])
        assert json.loads((indexed / MANIFEST_FILE).read_text())["count"] == 35
        referee(collection, paths_of(photos))


def test_readers_manage_where_nothing_can_be_written(indexed, photos, referee, monkeypatch, caplog):
    (indexed / CACHE_FILE).unlink()

    def refuse(self, scan, generation):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(VectorCache, "write", refuse)
    with caplog.at_level(logging.INFO, "vitembed"), Collection.open(indexed) as collection:
        referee(collection, paths_of(photos))
    assert "not written" in caplog.text


def test_scan_and_cache_of_nothing(tmp_path):
    cache = VectorCache(tmp_path, CacheKey(collection_id="a", fingerprint="b", dim=8))
    with pytest.raises(FileNotFoundError):
        cache.load()
    (tmp_path / f".tmp.1.{CACHE_FILE}").touch()  # left by a killed process
    cache.write(Scan.build([], 8, "s"), 0)
    assert sorted(os.listdir(tmp_path)) == [CACHE_FILE, MANIFEST_FILE]
    assert len(cache.load()) == 0
    with pytest.raises(DataError, match="another collection"):
        VectorCache(tmp_path, CacheKey(collection_id="a", fingerprint="c", dim=8)).load()


def test_newer_damaged_and_foreign_catalogues_are_refused(indexed, photos, encoder, make):
    file = indexed / CATALOG_FILE
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 4")
    db.close()
    for use in (lambda: Collection.open(indexed), make):
        with pytest.raises(CollectionError, match="has format 4, this vitembed reads up to 3: upgrade vitembed"):
            use()

    good = file.read_bytes()
    file.write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    with pytest.raises(CollectionError, match=r"is damaged .*run vitembed index --rebuild"):
        Collection.open(indexed)
    rebuilt = make(rebuild=True)
    assert rebuilt.update(encoder, [photos]).added == 30
    rebuilt.close()

    file.write_bytes(good)
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA application_id = 5")
    db.close()
    for use in (lambda: Collection.open(indexed), make, lambda: make(rebuild=True)):
        with pytest.raises(CollectionError, match="is no vitembed collection"):
            use()


def test_absent_and_half_made_collections(tmp_path, make):
    with pytest.raises(CollectionError, match=r"no collection in .*: run vitembed index to make one"):
        Collection.open(tmp_path)
    directory = tmp_path / ".vitembed" / "index"
    directory.mkdir(parents=True)
    (directory / CATALOG_FILE).touch()
    with pytest.raises(CollectionError, match="no collection in"):
        Collection.open(directory)
    assert len(make()) == 0


def test_catalogue_damaged_in_the_middle_is_one_line(indexed):
    file = indexed / CATALOG_FILE
    data = bytearray(file.read_bytes())
    data[8192:] = b"\x55" * (len(data) - 8192)
    file.write_bytes(bytes(data))
    with (
        pytest.raises(CollectionError, match=r"^[^\n]*(damaged|malformed)[^\n]*$"),
        Collection.open(indexed) as collection,
    ):
        collection.verify()


def test_search_on_a_medium_that_cannot_be_written(permissions_bind, indexed, photos, referee):
    indexed.chmod(0o555)
    (indexed / CATALOG_FILE).chmod(0o444)
    try:
        with Collection.open(indexed) as collection:
            referee(collection, paths_of(photos))
    finally:
        indexed.chmod(0o755)


@pytest.mark.parametrize("module", ["vitembed.collection.collection", "vitembed.collection.search"])
def test_import_is_light(module):
    heavy = "{'torch', 'faiss', 'lightning', 'pytorch_lightning', 'lightning_fabric', 'pyarrow', 'PIL.Image'}"
    code = f"import sys, {module}; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
