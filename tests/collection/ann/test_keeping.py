"""What `build_ann` does: keeps, extends, builds anew, refuses, removes; and what is remembered of what was asked."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from vitembed.collection.ann import AnnSettings, Approx, keep, recall, train
from vitembed.collection.collection import Collection
from vitembed.embeddings import Embeddings
from vitembed.errors import CollectionError


def files(directory):
    return {path.name for path in directory.iterdir() if path.name.startswith(("ann", "approx", ".tmp"))}


def no_training(monkeypatch):
    monkeypatch.setattr(keep, "train_centroids", lambda *_: pytest.fail("trained"))


def test_nothing_is_made_where_nothing_is_needed(plain):
    with Collection.open(plain) as collection:
        report = collection.build_ann()
        assert report.exact
        assert not report.matters
    assert not files(plain)


def test_a_build_says_what_it_takes_and_reports_what_it_took(plain, tools):
    said = []
    with Collection.open(plain) as collection:
        report = collection.build_ann(tools.FAMILY, say=said.append)
        assert (report.action, report.family, report.exact) == ("built", "IVF64,SQ8", False)
        assert "building it takes about" in said[0]
        assert "of memory and" in said[0]
        assert report.recall >= 0.95
        assert report.estimated_seconds > 0
        assert report.build_seconds > 0
        assert report.num_bytes == (plain / "approx.faiss").stat().st_size
        # As estimated: ids, codes, centroids.
        assert report.num_bytes == pytest.approx(tools.NUM * (tools.DIM + 8) + 64 * tools.DIM * 4, rel=0.05)
        facts = json.loads((plain / "approx.json").read_text())
        assert facts["recall"] == report.recall
        assert facts["build_seconds"] == report.build_seconds
        assert any("recall@10" in line for line in report.lines())
    assert files(plain) == {"ann.json", "approx.faiss", "approx.json"}


def test_settings_are_kept_and_an_unchanged_collection_costs_nothing(indexed, tools, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in indexed.iterdir() if path.suffix == ".json"}
    with Collection.open(indexed) as collection:
        assert collection.ann_settings() == tools.FAMILY
        monkeypatch.setattr(keep, "bring_up_to_date", lambda *_, **__: pytest.fail("looked"))
        report = collection.build_ann()
        assert report.action == "kept"
        assert collection.build_ann(tools.FAMILY) == report
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_few_new_rows_stay_in_the_tail_and_many_go_in_without_training(indexed, tools, monkeypatch):
    no_training(monkeypatch)
    with Collection.open(indexed) as collection:
        before = (indexed / "approx.faiss").read_bytes()
        collection.update_from(Embeddings(tools.make_vectors(50, seed=3), [f"c/{row}" for row in range(50)], "f"))
        assert collection.build_ann().action == "kept"
        assert (indexed / "approx.faiss").read_bytes() == before
        names = [f"d/{row}" for row in range(1_500)]
        collection.update_from(Embeddings(tools.make_vectors(1_500, seed=5), names, "f"))
        collection.delete([f"a/{row:05}" for row in range(0, 400, 2)])
        report = collection.build_ann()
        assert report.action == "extended"
        assert report.num_vectors == tools.NUM + 50 + 1_500 - 200
        assert json.loads((indexed / "approx.json").read_text())["num_trained"] == tools.NUM
        assert json.loads((indexed / "approx.json").read_text())["count"] == report.num_vectors
        assert not collection.search(tools.make_vectors(1, seed=9)[0]).exact
        assert tools.recall_of(collection, tools.make_vectors(40, seed=9)) >= 0.95


def test_twice_as_many_are_trained_anew(indexed, tools):
    with Collection.open(indexed) as collection:
        rows = tools.NUM
        collection.update_from(Embeddings(tools.make_vectors(rows, seed=5), [f"d/{row}" for row in range(rows)], "f"))
        assert collection.build_ann().action == "built"
        assert json.loads((indexed / "approx.json").read_text())["num_trained"] == 2 * tools.NUM


def test_recall_that_has_fallen_means_training_anew(indexed, tools, monkeypatch):
    with Collection.open(indexed) as collection:
        names = [f"d/{row}" for row in range(1_500)]
        collection.update_from(Embeddings(tools.make_vectors(1_500, seed=5), names, "f"))
        monkeypatch.setattr(keep, "measure", lambda approx, truth, probes: recall.Quality(
            num_probes=probes, recall=0.5, recall_at_100=0.5, score_error=0.0, query_ms=0.1))  # fmt: skip
        trained = []
        monkeypatch.setattr(keep, "train_centroids", lambda *given: trained.append(1) or train.train_centroids(*given))
        choices = iter([(None, [])])
        original = keep.choose_probes
        monkeypatch.setattr(
            keep, "choose_probes", lambda *given, **options: next(choices, None) or original(*given, **options)
        )
        assert collection.build_ann().action == "built"
        assert trained == [1]


def test_what_is_not_good_enough_is_refused_with_numbers(plain, tools, monkeypatch):
    """Noise has no lists that would help: looking at one of 64 finds few of the nearest."""
    noise = np.random.default_rng(0).standard_normal((tools.NUM, tools.DIM)).astype(np.float32)
    names = [f"noise/{row}" for row in range(tools.NUM)]
    monkeypatch.setattr(Approx, "num_lists", 1)  # never look at more
    with Collection.open(plain) as collection:
        collection.update_from(Embeddings(noise, names, "f"))
        report = collection.build_ann(AnnSettings(family="IVF64,RaBitQ"))
        assert report.action == "refused"
        assert report.exact
        # RaBitQ, then the same lists with the more faithful codes.
        assert [report.reason.count(f"IVF64,{codec} finds 0.") for codec in ("RaBitQ", "SQ8", "SQfp16")] == [1, 1, 1]
        assert files(plain) == {"ann.json"}
        query = noise[0]
        assert collection.search(query).exact
        # Not tried again for a few more ...
        no_training(monkeypatch)
        collection.update_from(Embeddings(tools.make_vectors(20, seed=3), [f"c/{row}" for row in range(20)], "f"))
        again = collection.build_ann()
        assert again.action == "refused"
        assert "tried again at twice as many" in again.reason
        # ... but with other settings.
        monkeypatch.undo()
        assert collection.build_ann(AnnSettings(family="IVF64,SQ8", min_recall=0.9)).action == "built"


def test_an_index_slower_than_exact_is_refused(plain, tools, monkeypatch, slow_machine):
    monkeypatch.setattr("vitembed.collection.ann.families._BY_COUNT", ((3_500, 64, False, ("SQ8",)),))
    original = recall.measure

    def slow(approx, truth, num_probes):
        found = original(approx, truth, num_probes)
        return recall.Quality(**{**found.__dict__, "query_ms": 1e6})

    monkeypatch.setattr(recall, "measure", slow)
    with Collection.open(plain) as collection:
        assert collection.build_ann(AnnSettings(target_ms=0.9)).action == "refused"


def test_another_minimum_or_none_at_all(indexed, tools, monkeypatch):
    with Collection.open(indexed) as collection:
        before = collection.build_ann()
        with monkeypatch.context() as untrained:
            no_training(untrained)
            report = collection.build_ann(collection.ann_settings().changed(min_recall=0.999))
            assert report.action == "measured"
            assert report.num_probes > before.num_probes
            assert report.recall >= 0.999
            assert "measured again in" in report.lines()[1]
            assert collection.build_ann().action == "kept"
            names = [f"more/{row}" for row in range(20)]
            collection.update_from(Embeddings(tools.make_vectors(20, seed=3), names, "f"))
            assert collection.build_ann(collection.ann_settings().changed(min_recall=0.9)).action == "extended"
        # What it cannot reach by looking at more lists takes another one.
        with monkeypatch.context() as worse:
            choices = iter([(None, [])])
            original = keep.choose_probes
            worse.setattr(
                keep, "choose_probes", lambda *given, **options: next(choices, None) or original(*given, **options)
            )
            assert collection.build_ann(collection.ann_settings().changed(min_recall=0.99)).action == "built"
        report = collection.build_ann(collection.ann_settings().changed(family="exact"))
        assert (report.action, report.exact) == ("exact", True)
        assert files(indexed) == {"ann.json"}
        assert collection.ann_settings() == AnnSettings(family="exact", min_recall=0.99)
        assert collection.search(tools.make_vectors(1)[0]).exact


def test_what_cannot_be_built_as_asked_is_one_line(plain):
    with Collection.open(plain) as collection:
        with pytest.raises(CollectionError, match=r"IVF4096,SQ8 needs 160,244 vectors at least, the index has 4,000"):
            collection.build_ann(AnnSettings(family="IVF4096,SQ8"))
        assert collection.ann_settings().family == "IVF4096,SQ8"


def test_a_damaged_record_is_said_and_the_defaults_hold(indexed, caplog):
    (indexed / "ann.json").write_text((indexed / "ann.json").read_text().replace("0.95", "0.05"))
    with Collection.open(indexed) as collection:
        assert collection.ann_settings() == AnnSettings()
        assert [record.message for record in caplog.records] == [
            "ann.json cannot be read: the defaults are taken, say --ann again to change them"
        ]


def test_truth_and_recall_against_numpy():
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((500, 8)).astype(np.float32)
    ids = np.arange(500) * 3
    truth = recall.Truth(ids[:20], vectors[:20])
    for start in range(0, 500, 130):
        truth.add(ids[start : start + 130], vectors[start : start + 130])
    scores = vectors[:20] @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(truth.rows[:, :50], ids[order[:, :50]])
    found = np.where(rng.random((20, 10)) < 0.6, ids[order[:, :10]], -1)
    assert truth.recall(found, 10) == pytest.approx((found >= 0).mean())
    given = np.take_along_axis(scores, order[:, :10], 1)
    given[3, 4] += 0.25
    assert truth.score_error(ids[order[:, :10]], given) == pytest.approx(0.25, abs=1e-5)


def test_two_levels_of_centroids_are_unit_and_as_many_as_asked(monkeypatch):
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((30, 8))
    sample = (centres[rng.integers(0, 30, 2_000)] + 0.1 * rng.standard_normal((2_000, 8))).astype(np.float32)
    sample /= np.linalg.norm(sample, axis=1, keepdims=True)
    monkeypatch.setattr(train, "is_two_level", lambda num_lists: True)
    centroids = train.train_centroids(sample, 64)
    assert centroids.shape == (64, 8)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    # Every point is near some centroid, as near as in one level, nearly.
    one = train._kmeans(sample, 64)
    assert (sample @ centroids.T).max(axis=1).mean() > (sample @ one.T).max(axis=1).mean() - 0.02


def test_shares_of_lists():
    shares = train._shares(np.array([1000, 10, 1, 0, 989]), 64)
    assert shares.sum() == 64
    assert shares[3] == 0
    assert shares[2] <= 1
    assert abs(shares[0] - shares[4]) <= 1


def test_settling_loads_no_faiss(plain):
    code = (
        "import sys; from vitembed.collection.collection import Collection\n"
        f"with Collection.open({str(plain)!r}) as c: print(c.build_ann().exact, c.ann_settings().family)\n"
        "print(sorted({'torch', 'faiss', 'lightning'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True auto", "[]"]
