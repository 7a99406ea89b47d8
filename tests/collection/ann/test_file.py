"""The file of an index, damaged, foreign or forged: found out, with one line and the right answer."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib

import faiss
import numpy as np
import pytest

from vitembed.collection.ann import AnnSettings, ApproxCache, CacheKey
from vitembed.collection.ann.approx import read_approx
from vitembed.collection.ann.families import parse_family
from vitembed.collection.collection import Collection
from vitembed.errors import DataError
from vitembed.seal import seal_of

FILE, MANIFEST = "approx.faiss", "approx.json"


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


def forge(directory, change=None, **facts):
    """Put another index or other facts in place, with every checksum made right."""
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["seal"]
    if change is not None:
        index = change(faiss.read_index(str(directory / FILE)))
        faiss.write_index(index, str(directory / FILE))
        data = (directory / FILE).read_bytes()
        manifest |= {"bytes": len(data), "crc32": zlib.crc32(data)}
    manifest |= facts
    (directory / MANIFEST).write_text(json.dumps(manifest | {"seal": seal_of(manifest)}))


def other_class(index):
    other = faiss.index_factory(index.d, "IVF64,Flat", faiss.METRIC_INNER_PRODUCT)
    other.train(np.random.default_rng(0).standard_normal((3_000, index.d)).astype(np.float32))
    other.add(np.ones((index.ntotal, index.d), np.float32))
    return other


def other_metric(index):
    other = faiss.index_factory(index.d, "IVF64,SQ8", faiss.METRIC_L2)
    rows = np.random.default_rng(0).standard_normal((index.ntotal, index.d)).astype(np.float32)
    other.train(rows)
    other.add(rows)
    return other


def size_of(directory):
    return (directory / FILE).stat().st_size


DAMAGES = {
    "lost": (lambda d: (d / FILE).unlink(), "is lost"),
    "both lost": (lambda d: ((d / FILE).unlink(), (d / MANIFEST).unlink()), "is lost"),
    "lost manifest": (lambda d: (d / MANIFEST).unlink(), "is lost"),
    "empty": (lambda d: (d / FILE).write_bytes(b""), "0 bytes, expected"),
    "truncated": (lambda d: os.truncate(d / FILE, 1000), "1000 bytes, expected"),
    "longer": (lambda d: os.truncate(d / FILE, size_of(d) + 1), "bytes, expected"),
    "bit in the header": (lambda d: flip(d / FILE, 9), "checksum differs"),
    "bit in the centroids": (lambda d: flip(d / FILE, 300), "checksum differs"),
    "bit in a code": (lambda d: flip(d / FILE, size_of(d) // 2), "checksum differs"),
    "bit in the ids": (lambda d: flip(d / FILE, size_of(d) - 20), "checksum differs"),
    "bit in the manifest": (lambda d: flip(d / MANIFEST, 20), "unusable"),
    "noise in the manifest": (lambda d: (d / MANIFEST).write_bytes(b"\xff{"), "unreadable manifest"),
    "no object in the manifest": (lambda d: (d / MANIFEST).write_text("[]"), "unreadable manifest"),
    "a better recall": (
        lambda d: (d / MANIFEST).write_text((d / MANIFEST).read_text().replace('"recall": ', '"recall": 1')),
        "unusable",
    ),
    "no seal": (lambda d: (d / MANIFEST).write_text((d / MANIFEST).read_text().replace('"seal"', '"sael"')), "unread"),
    "another class": (lambda d: forge(d, other_class), "holds a IndexIVFFlat, expected IVF64,SQ8"),
    "another metric": (lambda d: forge(d, other_metric), "expected IVF64,SQ8"),
    "another collection": (lambda d: forge(d, collection_id="other"), "made for another collection"),
    "another count": (lambda d: forge(d, count=17), "another number of vectors"),
    "a family that is none": (lambda d: forge(d, family="IVF64,Flat"), "index family is"),
    "a family that it is not": (lambda d: forge(d, family="IVF64,SQfp16"), "another number of vectors"),
    "facts missing": (lambda d: forge(d, num_probes=None), "unreadable manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_every_vector_compared(damage, indexed, tools, caplog):
    act, said = DAMAGES[damage]
    act(indexed)
    query = tools.make_vectors(1, seed=9)[0]
    with Collection.open(indexed) as collection:
        for _ in range(2):
            hits = collection.search(query, k=10)
            assert hits.exact
            expected = tools.brute_force(collection, query, 10)
            assert [hit.path for hit in hits] == [path for path, _ in expected]
    (line,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert said in line
    assert "every vector is compared instead" in line


def test_the_next_look_makes_a_damaged_one_anew(indexed, tools):
    flip(indexed / FILE, 300)
    with Collection.open(indexed) as collection:
        assert collection.build_ann().action == "built"
        assert not collection.search(tools.make_vectors(1, seed=9)[0]).exact


def test_verify_tells(indexed, caplog):
    with Collection.open(indexed) as collection:
        collection.verify()
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        forge(indexed, sha256="0" * 64)
        collection.verify()
        assert "SHA-256 differs" in caplog.text


@pytest.mark.parametrize("lie", ["ids", "vectors"])
def test_one_that_lies_with_right_checksums_is_caught_by_the_scores(lie, indexed, tools, caplog):
    def lying(index):
        other = faiss.clone_index(index)
        other.reset()
        rows = tools.make_vectors()
        if lie == "ids":  # each vector under another row's id
            other.add_with_ids(rows, np.roll(np.arange(1, tools.NUM + 1), 7))
        else:
            other.add_with_ids(-rows, np.arange(1, tools.NUM + 1))
        return other

    forge(indexed, lying)
    query = tools.make_vectors(1, seed=9)[0]
    with Collection.open(indexed) as collection:
        for _ in range(2):
            hits = collection.search(query, k=10)
            assert [hit.path for hit in hits] == [path for path, _ in tools.brute_force(collection, query, 10)]
    (line,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "it contradicts the catalogue: another score" in line


def test_ids_that_the_catalogue_never_gave_are_caught(indexed, tools, caplog):
    def foreign(index):
        other = faiss.clone_index(index)
        other.reset()
        other.add_with_ids(tools.make_vectors(), np.arange(tools.NUM) + 10**6)
        return other

    forge(indexed, foreign)
    query = tools.make_vectors(1, seed=9)[0]
    with Collection.open(indexed) as collection:
        hits = collection.search(query, k=10)
        assert [hit.path for hit in hits] == [path for path, _ in tools.brute_force(collection, query, 10)]
    assert "contradicts the catalogue" in caplog.text


def test_reader_behind_the_checksum(indexed, tools, tmp_path):
    """Damage that a forger made the checksums agree with: an index of the very family and size, or a DataError."""
    with Collection.open(indexed) as collection:
        key = CacheKey.of(collection._catalog)
    ApproxCache(indexed, key).load()
    data = (indexed / FILE).read_bytes()
    rng = np.random.default_rng(3)
    family, num_refused = parse_family("IVF64,SQ8"), 0
    for number in range(80):
        path = tmp_path / f"{number}.faiss"
        damaged = bytearray(data[: int(rng.integers(200, len(data)))] if number % 4 == 0 else data)
        for _ in range(3):
            damaged[int(rng.integers(0, 180))] = int(rng.integers(256))
        path.write_bytes(bytes(damaged))
        try:
            read_approx(path, len(damaged), tools.NUM, family, key, mapped=bool(number % 2))
        except DataError:
            num_refused += 1
        path.unlink()
    assert num_refused > 40


def test_names_outside_utf8(stored, tmp_path, tools):
    directory = os.path.join(os.fsencode(tmp_path), b"\xff\xfe")
    shutil.copytree(stored, os.fsdecode(directory))
    with Collection.open(os.fsdecode(directory)) as collection:
        collection.build_ann(AnnSettings(family="IVF64,SQ8"))
        assert not collection.search(tools.make_vectors(1, seed=9)[0]).exact
