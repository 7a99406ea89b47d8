"""Duplicates, against a plain loop over all pairs."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

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
    assert found.notes[0].startswith("1 image left out, changed or gone")


@pytest.fixture
def files(tmp_path, make, encoder):
    """Indexes the folder ``files`` and gives its duplicates."""
    folder = tmp_path / "files"
    folder.mkdir()

    def find(*more, **options):
        collection = make()
        collection.update(encoder, [folder, *more])
        return find_duplicates(collection, **options)

    return folder, find


def listed(found):
    return [
        (os.path.basename(group.keep.path), [os.path.basename(other.image.path) for other in group.others])
        for group in found.groups
    ]


@pytest.mark.parametrize("options", [{}, {"exact_only": True}, {"threshold": 1.0}])
def test_names_of_one_file_are_no_copies(files, draw, options, tmp_path):
    folder, find = files
    draw(str(folder / "m.png"), 1)
    os.link(folder / "m.png", folder / "hard.png")
    (folder / "a.png").symlink_to(folder / "m.png")
    draw(str(folder / "other.png"), 2)
    (tmp_path / "again").symlink_to(folder)
    found = find(str(tmp_path / "again"), **options)
    assert (found.groups, found.num_extra, found.extra_bytes, found.num_images) == ([], 0, 0, 2)
    assert found.notes[0].startswith("6 other names of the same files")

    shutil.copy(folder / "m.png", folder / "n.png")
    os.utime(folder / "n.png", (1e9, 1e9))
    found = find(str(tmp_path / "again"), **options)
    (group,) = found.groups
    assert group.keep.path == str(folder / "n.png")
    assert group.reason == "oldest"
    assert [(other.image.path, other.exact, other.score) for other in group.others] == [
        (str(folder / "hard.png"), True, 1.0)
    ]
    assert {(os.path.relpath(each.image.path, tmp_path), each.kind) for each in group.links} == {
        ("again/n.png", "linked folder"), ("again/m.png", "linked folder"), ("again/hard.png", "linked folder"),
        ("again/a.png", "symbolic link"), ("files/a.png", "symbolic link"), ("files/m.png", "hard link"),
    }  # fmt: skip
    assert found.extra_bytes == 0  # its content stays under the other name
    document = json.loads(json.dumps(found.to_dict()))
    assert document["groups"][0]["others"][0]["freed_bytes"] == 0
    assert {each["kind"] for each in document["groups"][0]["links"]} == {
        "linked folder", "symbolic link", "hard link",
    }  # fmt: skip
    (folder / "hard.png").unlink()
    assert find(str(tmp_path / "again"), **options).extra_bytes == os.path.getsize(folder / "m.png")


def test_an_original_is_kept_rather_than_a_link(files, draw, tmp_path):
    folder, find = files
    draw(str(tmp_path / "elsewhere.png"), 1)
    os.utime(tmp_path / "elsewhere.png", (1e9, 1e9))
    shutil.copy(tmp_path / "elsewhere.png", folder / "b.png")
    shutil.copy(tmp_path / "elsewhere.png", folder / "c.png")
    (folder / "a.png").symlink_to(tmp_path / "elsewhere.png")
    found = find()
    assert listed(found) == [("b.png", ["c.png"])]
    assert [(each.kind, each.to) for each in found.groups[0].links] == [
        ("symbolic link", str(tmp_path / "elsewhere.png"))
    ]
    assert found.extra_bytes == os.path.getsize(folder / "c.png")


@pytest.mark.parametrize("exact_only", [True, False])
def test_times_before_1970_are_times_and_zero_is_none(files, draw, exact_only):
    folder, find = files
    times = {"a.png": 0, "b.png": 1_600_000_000, "c.png": -157_766_400, "d.png": 1_700_000_000}
    for name, seconds in times.items():
        draw(str(folder / name), 1)
        os.utime(folder / name, (seconds, seconds))
    found = find(exact_only=exact_only)
    assert (found.groups[0].keep.path, found.groups[0].reason) == (str(folder / "c.png"), "oldest")
    (folder / "c.png").unlink()
    assert find(exact_only=exact_only).groups[0].keep.path == str(folder / "b.png")


class Middle:
    """An encoder that sees the middle square alone, as most do."""

    fingerprint, embed_dim = "d" * 64, 48

    def stream(self, refs, **options):
        vectors, sizes = [], []
        for ref in refs:
            with Image.open(ref.path) as image:
                side = min(image.size)
                left, top = (image.width - side) // 2, (image.height - side) // 2
                middle = image.convert("RGB").crop((left, top, left + side, top + side)).resize((4, 4))
                vectors.append(np.asarray(middle, np.float32).reshape(-1) - 127.25)
                sizes.append(image.size)
        yield SimpleNamespace(
            indices=np.arange(len(refs)), vectors=np.array(vectors), bad=[], decode_seconds=0.1, model_seconds=0.1,
            image_sizes=np.array(sizes),
        )  # fmt: skip


def screenshot(seed, size, middle):
    """Lines of text and boxes, with ``middle`` in the middle."""
    rng, image = np.random.default_rng(seed), Image.new("RGB", size, (250, 250, 250))
    pen = ImageDraw.Draw(image)
    for y in range(4, size[1] - 10, 14):
        for x in range(4, size[0] - 30, 150):
            if rng.random() < 0.2:
                pen.rectangle((x, y, x + rng.integers(20, 140), y + 10), fill=tuple(map(int, rng.integers(0, 255, 3))))
            else:
                pen.text((x, y), "".join(rng.choice(list("abcdefgh ijkl"), rng.integers(5, 22))), fill=(30, 30, 30))
    image.paste(middle, ((size[0] - middle.width) // 2, (size[1] - middle.height) // 2))
    return image


@pytest.mark.parametrize("size", [(200, 2000), (900, 300), (300, 450)])
def test_images_alike_in_the_middle_alone_are_no_copies(tmp_path, make, size):
    folder, side = tmp_path / "shots", min(size)
    folder.mkdir()
    middle = screenshot(99, (side, side), Image.new("RGB", (1, 1)))
    first, second = (screenshot(seed, size, middle) for seed in (1, 2))
    first.save(folder / "first.png")
    second.save(folder / "second.png")
    first.resize((size[0] * 2 // 3, size[1] * 2 // 3), Image.Resampling.LANCZOS).save(folder / "first-small.png")
    first.save(folder / "first-low.jpg", quality=40)
    ImageEnhance.Brightness(second).enhance(0.8).save(folder / "second-dark.jpg", quality=80)
    middle.save(folder / "middle.png")
    collection = make(fingerprint=Middle.fingerprint)
    collection.update(Middle(), [folder])
    found = find_duplicates(collection, threshold=0.9)
    assert {frozenset([keep, *others]) for keep, others in listed(found)} == {
        frozenset(["first.png", "first-low.jpg", "first-small.png"]), frozenset(["second.png", "second-dark.jpg"]),
    }  # fmt: skip
    assert len(found.look_alikes) == 2
    assert "middle.png" in [os.path.basename(path) for pair in found.look_alikes for path in pair.paths]
    assert any("alike only in the middle" in line for line in found.notes)
    assert len(found.to_dict()["look_alikes"]) == 2


def test_what_cannot_be_looked_at_is_said(make_vectors):
    with make_vectors(circle(0, 1)) as collection:
        found = find_duplicates(collection)
    assert found.num_extra == 1
    assert "1 pair compared by vectors alone" in found.notes[0]
