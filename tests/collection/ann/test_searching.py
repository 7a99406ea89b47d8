"""Search through an index against NumPy: what it finds, what it says of itself, and when it is passed over."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest

from vitembed.collection.ann import AnnSettings, Approx, recall
from vitembed.collection.ann.families import _BY_COUNT
from vitembed.collection.collection import Collection
from vitembed.collection.finding.batch import search_batch
from vitembed.collection.search import search
from vitembed.embeddings import Embeddings


@pytest.fixture
def open_index(indexed):
    with Collection.open(indexed) as collection:
        yield collection


def same(hits, expected):
    assert [hit.path for hit in hits] == [path for path, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-6)


def test_recall_against_brute_force_and_what_is_said_of_it(open_index, tools):
    queries = tools.make_vectors(60, seed=9)
    assert tools.recall_of(open_index, queries) >= 0.95
    hits = open_index.search(queries[0])
    assert not hits.exact
    assert 0.95 <= hits.recall <= 1
    exact = open_index.search(queries[0], exact=True)
    assert exact.exact
    assert exact.recall is None
    same(exact, tools.brute_force(open_index, queries[0], 10))
    many = open_index.search_many(queries, k=5)
    assert [[hit.path for hit in hits] for hits in many] == [
        [hit.path for hit in open_index.search(query, k=5)] for query in queries
    ]
    assert not any(hits.exact for hits in many)
    assert all(hits.exact for hits in open_index.search_many(queries, k=5, exact=True))


@pytest.mark.parametrize("family", ["IVF64_HNSW32,SQ8", "IVF64,RaBitQ", "IVF64,SQfp16"])
def test_every_kind_of_family_reaches_what_it_reports(family, plain, tools):
    with Collection.open(plain) as collection:
        report = collection.build_ann(AnnSettings(family=family))
        assert report.family == family
        assert tools.recall_of(collection, tools.make_vectors(40, seed=9)) >= 0.9
        assert not collection.search(tools.make_vectors(1)[0]).exact


def test_results_say_whether_they_are_exact(open_index, tools, tmp_path):
    query = tools.make_vectors(1, seed=9)[0]
    result = search(open_index, [query], pytest.fail, k=3)
    document = result.to_dict()
    assert document["exact"] is False
    assert document["recall"] == pytest.approx(open_index.search(query, k=3).recall, abs=1e-4)
    result.write_sheet(tmp_path / "sheet.html")
    assert "approximate (the index finds" in (tmp_path / "sheet.html").read_text()
    exact = search(open_index, [query], pytest.fail, k=3, exact=True).to_dict()
    assert exact["exact"] is True
    assert "recall" not in exact
    (line,) = search_batch(open_index, ["a/00000"], pytest.fail, k=3)
    assert json.loads(json.dumps(line.to_dict()))["exact"] is False
    (line,) = search_batch(open_index, ["a/00000"], pytest.fail, k=3, exact=True)
    assert line.exact


def test_new_rows_are_found_and_dead_ones_are_not(open_index, tools, indexed):
    before = (indexed / "approx.faiss").read_bytes()
    query = tools.make_vectors(1, seed=9)[0]
    nearest = [hit.path for hit in open_index.search(query, k=5)]
    fresh = np.stack([query, query + 0.01])
    with Collection.open(indexed) as writer:
        writer.delete(nearest[:2])
        # One that is known gets another vector: its old one is dead, its new one in the tail.
        writer.update_from(Embeddings(np.vstack([fresh, -query]), ["new/1", "new/2", nearest[2]], "f"))
    assert (indexed / "approx.faiss").read_bytes() == before
    hits = open_index.search(query, k=5)
    assert not hits.exact
    same(hits, tools.brute_force(open_index, query, 5))
    assert [hit.path for hit in hits[:2]] == ["new/1", "new/2"]
    assert not {hit.path for hit in hits} & set(nearest[:3])
    assert tools.recall_of(open_index, tools.make_vectors(20, seed=9)) >= 0.95
    same(open_index.search(-query, k=1), [(nearest[2], open_index.search(-query, k=1, exact=True)[0].score)])


def test_stale_beyond_limits_is_exact_with_one_line(open_index, tools, caplog):
    open_index.update_from(Embeddings(tools.make_vectors(1_200, seed=4), [f"c/{row}" for row in range(1_200)], "f"))
    query = tools.make_vectors(1, seed=9)[0]
    for _ in range(2):
        hits = open_index.search(query)
        assert hits.exact
        same(hits, tools.brute_force(open_index, query, 10))
    lines = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert lines == [
        "the approximate index is not used (too many images have come or gone since it was made): every vector is "
        "compared instead until vitembed index has seen to it"
    ]


def test_excluded_paths_and_unique(open_index, tools):
    query = tools.make_vectors()[0]  # stored itself, as the first
    found = open_index.search(query, k=4)
    assert found[0].path == "a/00000"
    without = open_index.search(query, k=3, exclude_paths=["a/00000"])
    assert [hit.path for hit in without] == [hit.path for hit in found[1:]]
    assert not without.exact
    copies = np.repeat(query[None], 5, axis=0)
    open_index.update_from(Embeddings(copies, [f"copy/{row}" for row in range(5)], "f"))
    unique = open_index.search(query, k=3, unique=0.999)
    assert not unique.exact
    assert unique[0].num_alike == 5
    exact = open_index.search(query, k=3, unique=0.999, exact=True)
    assert list(unique) == list(exact)


def test_ties_are_ordered_by_path_also_beyond_the_candidates(plain, tools):
    with Collection.open(plain) as collection:
        vector = tools.make_vectors(1, seed=77)
        names = [f"tie/{row:03}" for row in range(200)]
        collection.update_from(Embeddings(np.repeat(vector, 200, axis=0), names[::-1], "f"))
        collection.build_ann(tools.FAMILY)
        hits = collection.search(vector[0], k=5)
        assert [hit.path for hit in hits] == names[:5]
        assert hits.exact  # as more rows tie than were fetched
        assert not collection.search(tools.make_vectors(1, seed=9)[0], k=5).exact


def test_more_results_than_recall_was_measured_for_are_exact(open_index, tools):
    query = tools.make_vectors(1, seed=9)[0]
    assert not open_index.search(query, k=100).exact
    for k in (101, tools.NUM, 10 * tools.NUM):
        hits = open_index.search(query, k=k)
        assert hits.exact
        same(hits, tools.brute_force(open_index, query, k))


def test_lists_that_hold_too_few_give_way_to_the_scan(open_index, tools, monkeypatch):
    """FAISS answers -1 where the lists that it looks at hold fewer rows than were asked for."""
    found = []
    original = Approx.search

    def one_list(self, queries, k, without, only=None, *, num_probes=None):
        scores, ids = original(self, queries, k, without, only, num_probes=1)
        found.append((ids < 0).any())
        return scores, ids

    monkeypatch.setattr(Approx, "search", one_list)
    for query in tools.make_vectors(20, seed=9):
        hits = open_index.search(query, k=95)
        assert len(hits) == 95
        if hits.exact:
            same(hits, tools.brute_force(open_index, query, 95))
    assert any(found)


class TestFilters:
    @pytest.fixture
    def filtered(self, plain, tools, slow_machine, monkeypatch):
        """An index on a machine so slow that half of the rows are too many, too."""
        monkeypatch.setattr("vitembed.collection.ann.families._BY_COUNT", ((3_500, 64, False, ("SQ8",)),))
        with Collection.open(plain) as collection:
            # As where nothing else keeps the machine busy: lists are cheap, so that as many are looked at as help.
            quick = recall.measure
            monkeypatch.setattr(recall, "measure", lambda *given: replace(quick(*given), query_ms=0.01))
            report = collection.build_ann(AnnSettings(target_ms=0.9))
            assert report.family == "IVF64,SQ8"
            yield collection

    def test_one_that_leaves_much_goes_through_the_index(self, filtered, tools):
        where = "folder = b or folder = a"
        assert tools.recall_of(filtered, tools.make_vectors(20, seed=9), where=where) >= 0.95
        assert not filtered.search(tools.make_vectors(1, seed=9)[0], where=where).exact

    def test_one_that_leaves_little_is_compared_whole(self, filtered, tools):
        few = "name ~ '000?0'"
        for query in tools.make_vectors(5, seed=9):
            hits = filtered.search(query, k=20, where=few)
            assert hits.exact
            expected = tools.brute_force(filtered, query, 20, lambda path: path[2:5] == "000" and path[6] == "0")
            assert len(expected) == 10
            same(hits, expected)

    def test_results_meet_the_filter_and_say_that_recall_was_measured_without(self, filtered, tools):
        query = tools.make_vectors(1, seed=9)[0]
        result = search(filtered, [query], pytest.fail, where="not name ~ '0000?'")
        assert not result.exact
        assert not [hit for hit in result.hits if hit.path[2:6] == "0000"]
        assert any("measured without a filter" in note for note in result.notes)
        assert len(filtered.search(query, where="name ~ 'nothing*'")) == 0


def test_a_reader_takes_up_a_new_index_and_its_removal(plain, tools):
    query = tools.make_vectors(1, seed=9)[0]
    with Collection.open(plain) as reader, Collection.open(plain) as writer:
        assert reader.search(query).exact
        writer.build_ann(tools.FAMILY)
        assert not reader.search(query).exact
        writer.build_ann(AnnSettings(family="exact"))
        assert reader.search(query).exact


def test_a_moved_folder_keeps_its_index(indexed, tools):
    query = tools.make_vectors(1, seed=9)[0]
    moved = shutil.move(indexed, indexed.with_name("moved"))
    with Collection.open(moved) as collection:
        assert not collection.search(query).exact


def test_the_families_by_count_are_rising():
    assert [row[0] for row in _BY_COUNT] == sorted(row[0] for row in _BY_COUNT)
