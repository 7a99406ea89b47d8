"""Duplicates, against a plain loop over all pairs."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from vitembed.collection.collection import Collection
from vitembed.collection.finding import duplicates, duplicates_bound
from vitembed.collection.finding.duplicates import find_duplicates
from vitembed.embeddings import Embeddings
from vitembed.errors import DataError


@pytest.fixture
def make_vectors(tmp_path):
    def make(rows, names=None):
        names = names or [f"n{place:04}" for place in range(len(rows))]
        collection = Collection.create(tmp_path / "index", fingerprint="f" * 64, dim=rows.shape[1], rebuild=True)
        collection.update_from(Embeddings(np.asarray(rows, np.float32), names, "f" * 64))
        return collection

    return make


def circle(*degrees):
    return np.stack([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees])


def by_hand(vectors, names, threshold):
    """The rule, one image after the other, in the order of names (nothing else is known of these)."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    keeper, kept = {}, []
    for row in np.argsort(names):
        scores = {other: float(vectors[other] @ vectors[row]) for other in kept}
        best = max(scores, key=scores.get, default=None)
        if best is not None and scores[best] >= threshold:
            keeper[names[row]] = names[best]
        else:
            kept.append(row)
    return keeper


@pytest.mark.parametrize("rows_at_once", [7, 64, 2048])
@pytest.mark.parametrize("threshold", [0.8, 0.95])
def test_groups_are_those_of_a_loop(make_vectors, monkeypatch, rows_at_once, threshold):
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((40, 12))
    rows = centres[rng.integers(0, 40, 300)] + 0.35 * rng.standard_normal((300, 12))
    names = [f"n{place:04}" for place in rng.permutation(300)]
    seen = []
    with make_vectors(rows, names) as collection:
        stored = collection.embeddings()
        right = by_hand(stored.vectors, stored.ids, threshold)
        found = find_duplicates(collection, threshold=threshold, progress=lambda *state: seen.append(state))
    assert {other.image.path: group.keep.path for group in found.groups for other in group.others} == right
    assert len(right) > 30
    assert seen[-1] == (300, 300)
    assert sorted(seen) == seen
    assert [len(group.others) for group in found.groups] == sorted((len(g.others) for g in found.groups), reverse=True)
    assert all(other.score >= threshold for group in found.groups for other in group.others)


def wide(kind: str) -> np.ndarray:
    """Vectors wide enough for a bound to pay: clustered; of few directions; and with one direction in common."""
    rng = np.random.default_rng(2)
    centres = rng.standard_normal((60, 128))
    if kind == "few directions":
        centres *= np.arange(1, 129) ** -1.5
    rows = centres[rng.integers(0, 60, 400)] + 0.2 * rng.standard_normal((400, 128)) * np.abs(centres).mean()
    return rows + (10.0 if kind == "alike" else 0.0)


@pytest.mark.parametrize("kind", ["clustered", "few directions", "alike"])
@pytest.mark.parametrize("threshold", [0.5, 0.95, 0.99])
def test_groups_of_wide_vectors_are_those_of_a_loop(make_vectors, monkeypatch, kind, threshold):
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", 64)
    with make_vectors(wide(kind)) as collection:
        stored = collection.embeddings()
        right = by_hand(stored.vectors, stored.ids, threshold)
        found = find_duplicates(collection, threshold=threshold)
    assert {other.image.path: group.keep.path for group in found.groups for other in group.others} == right
    vectors = dict(zip(stored.ids, stored.vectors / np.linalg.norm(stored.vectors, axis=1, keepdims=True), strict=True))
    for group in found.groups:
        for other in group.others:
            assert abs(other.score - vectors[group.keep.path] @ vectors[other.image.path]) < 1e-5


@pytest.mark.parametrize("kind", ["clustered", "few directions", "alike", "within the axes"])
def test_the_bound_holds(kind):
    rows = wide(kind).astype(np.float32)
    if kind == "within the axes":  # no rest at all, where rounding matters most
        rows[:, duplicates_bound.NUM_AXES // 2 :] = 0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    axes = duplicates_bound.principal_axes(rows)
    short = duplicates_bound.shorten(rows, axes)
    assert short.shape == (400, duplicates_bound.NUM_AXES + 1)
    exact = rows.astype(np.float64) @ rows.T.astype(np.float64)
    assert (short @ short.T - exact).min() > -1e-6


def test_the_bound_leaves_few_pairs_and_the_same_nearest(monkeypatch):
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((50, 256)).astype(np.float32)
    rows = centres[rng.integers(0, 50, 600)] + 0.05 * rng.standard_normal((600, 256)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    block, others = rows[:300], np.concatenate([centres[:20], rng.standard_normal((300, 256))]).astype(np.float32)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    axes = duplicates_bound.principal_axes(rows)
    computed = []
    best = duplicates_bound._best
    monkeypatch.setattr(duplicates_bound, "_best", lambda *a: computed.append(len(a[3])) or best(*a))
    shorts = duplicates_bound.shorten(block, axes), duplicates_bound.shorten(others, axes)
    quick = duplicates_bound.nearest_pairs(block, others, 0.9, *shorts)
    plain = duplicates_bound.nearest_pairs(block, others, 0.9)
    assert len(computed) == 1
    assert 50 < computed[0] < 0.002 * 300 * 320
    np.testing.assert_array_equal(quick.rows, plain.rows)
    np.testing.assert_array_equal(quick.nearest, plain.nearest)
    np.testing.assert_allclose(quick.cosines, plain.cosines, atol=1e-6)


def test_likeness_is_not_passed_on(make_vectors):
    """Each is within 10 degrees of the next; the ends of the chain have nothing in common."""
    with make_vectors(circle(0, 10, 20, 30, 40, 50)) as collection:
        found = find_duplicates(collection, threshold=float(np.cos(np.radians(12))))
    assert [(group.keep.path, [other.image.path for other in group.others]) for group in found.groups] == [
        ("n0000", ["n0001"]), ("n0002", ["n0003"]), ("n0004", ["n0005"]),
    ]  # fmt: skip


def test_a_thousand_copies_are_one_group(make_vectors, monkeypatch):
    monkeypatch.setattr(duplicates, "ROWS_AT_ONCE", 128)
    with make_vectors(np.ones((1000, 4))) as collection:
        found = find_duplicates(collection, threshold=1 - 1e-6)
    assert [(group.keep.path, len(group.others)) for group in found.groups] == [("n0000", 999)]
    assert found.num_extra == 999


def test_thresholds(make_vectors):
    with make_vectors(circle(0, 90)) as collection:
        for threshold in (0.0, -0.5, 1.1, float("nan")):
            with pytest.raises(DataError, match="expected a cosine above 0"):
                find_duplicates(collection, threshold=threshold)
        assert find_duplicates(collection).groups == []
    with make_vectors(np.zeros((0, 2))) as empty:
        assert find_duplicates(empty).groups == []


@pytest.fixture
def library(tmp_path, encoder, draw):
    """Files whose best copy is known, indexed."""
    root = tmp_path / "photos"
    draw(str(root / "a.png"), 1)
    with Image.open(root / "a.png") as image:
        image.resize((64, 64), Image.Resampling.NEAREST).save(root / "large.png")
        image.save(root / "plain.bmp")
    shutil.copyfile(root / "a.png", root / "z copy.png")
    draw(str(root / "alone.png"), 2)
    draw(str(root / "twin 1.png"), 3)
    shutil.copyfile(root / "twin 1.png", root / "twin 2.png")
    os.utime(root / "twin 1.png", (2_000_000_000, 2_000_000_000))
    os.utime(root / "twin 2.png", (1_000_000_000, 1_000_000_000))
    with Collection.create(
        tmp_path / ".vitembed" / "index", fingerprint=encoder.fingerprint, dim=encoder.embed_dim
    ) as collection:
        collection.update(encoder, [root])
        yield collection, root


def test_what_to_keep_and_why(library):
    collection, root = library
    found = find_duplicates(collection, threshold=0.999)
    names = {
        os.path.basename(group.keep.path): [(os.path.basename(other.image.path), other.exact) for other in group.others]
        for group in found.groups
    }
    sizes_known = collection.facts()[0].width is not None
    best = "large.png" if sizes_known else "plain.bmp"
    assert set(names) == {best, "twin 2.png"}
    assert names["twin 2.png"] == [("twin 1.png", True)]
    assert sorted(name for name, _ in names[best]) == sorted({"a.png", "large.png", "plain.bmp", "z copy.png"} - {best})
    reasons = {os.path.basename(group.keep.path): group.reason for group in found.groups}
    assert reasons == {best: "most pixels" if sizes_known else "most bytes", "twin 2.png": "oldest"}
    assert all(os.path.exists(image.path) for image in collection.facts())  # nothing is ever deleted

    document = json.loads(json.dumps(found.to_dict()))
    assert document["num_extra"] == 4
    assert document["extra_bytes"] == sum(
        os.path.getsize(other["path"]) for group in document["groups"] for other in group["others"]
    )
    found.write_sheet(root / "page.html")
    page = (root / "page.html").read_text()
    assert page.count("<img") == 6
    assert "keep: oldest" in page


def test_exact_ones_alone(library):
    collection, _ = library
    found = find_duplicates(collection, exact_only=True)
    assert found.threshold is None
    groups = {os.path.basename(g.keep.path): [os.path.basename(o.image.path) for o in g.others] for g in found.groups}
    assert set(groups) == {"twin 2.png", min(("a.png", "z copy.png"), key=lambda name: _age(collection, name))}
    assert all(other.exact for group in found.groups for other in group.others)


def _age(collection, name):
    return next((image.mtime_ns, image.path) for image in collection.facts() if image.path.endswith(name))


def test_files_that_have_changed_since_are_left_out(library, draw):
    collection, root = library
    draw(str(root / "twin 1.png"), 50)
    found = find_duplicates(collection, threshold=0.999)
    assert not any("twin" in other.image.path for group in found.groups for other in group.others)
    assert found.notes[0].startswith("1 images have changed or gone")
