from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

from vitembed.collection.collection import Collection
from vitembed.collection.nearest import Hit
from vitembed.embeddings import Embeddings
from vitembed.errors import CollectionError, DataError, MismatchError, ModelError

HOSTILE = [
    os.fsdecode(b"not-utf8-\xff.png"),
    "new\nline.png",
    "quo'te\".png",
    "日本.png",
    " .png",
    "%41?#.png",
    "-rf.png",
]


def files_below(folder):
    return [os.path.join(top, name) for top, _, names in os.walk(folder) for name in names if name.endswith(".png")]


def counts(report):
    return (report.added, report.changed, report.deleted, report.moved, report.unchanged, len(report.bad))


def test_life_of_a_folder(photos, make, encoder, referee, draw):
    collection = make()
    assert counts(collection.update(encoder, [photos])) == (30, 0, 0, 0, 0, 0)
    referee(collection, files_below(photos))

    encoder.seen.clear()
    report = collection.update(encoder, [photos])
    assert counts(report) == (0, 0, 0, 0, 30, 0)
    assert encoder.seen == []

    draw(str(photos / "new.png"), 100)
    draw(str(photos / "a" / "01.png"), 101)  # other content under a known name
    os.remove(photos / "b" / "02.png")
    os.rename(photos / "b" / "04.png", photos / "elsewhere.png")
    os.utime(photos / "a" / "03.png", ns=(1, 1))  # same content, other time
    shutil.copy(photos / "a" / "05.png", photos / "copy.png")
    report = collection.update(encoder, [photos])
    assert counts(report) == (2, 1, 1, 1, 27, 0)
    assert sorted(map(os.path.basename, encoder.seen)) == ["01.png", "new.png"]
    assert report.num_embedded == 2
    referee(collection, files_below(photos))

    with Collection.open(collection.directory) as again:
        referee(again, files_below(photos))


def test_a_moved_folder_embeds_nothing(photos, make, encoder, referee):
    collection = make()
    collection.update(encoder, [photos])
    encoder.seen.clear()
    os.rename(photos / "a", photos / "c")
    assert counts(collection.update(encoder, [photos])) == (0, 0, 0, 15, 15, 0)
    assert encoder.seen == []
    referee(collection, files_below(photos))


def test_files_that_swap_names_keep_the_right_vectors(photos, make, encoder, referee):
    collection = make()
    collection.update(encoder, [photos])
    encoder.seen.clear()
    one, two, three = (photos / "a" / name for name in ("01.png", "03.png", "05.png"))
    one.rename(photos / "t")
    two.rename(one)
    three.rename(two)
    (photos / "t").rename(three)
    collection.update(encoder, [photos])
    assert encoder.seen == []
    referee(collection, files_below(photos))


def test_moves_across_inputs_and_copies_of_a_moved_file(photos, make, encoder, referee):
    collection = make()
    collection.update(encoder, [photos])
    encoder.seen.clear()
    shutil.copy(photos / "a" / "01.png", photos / "b" / "x.png")
    shutil.move(photos / "a" / "01.png", photos / "b" / "y.png")
    report = collection.update(encoder, [photos / "b"])  # a is not looked at, yet its file is known to be gone
    assert counts(report) == (1, 0, 0, 1, 15, 0)
    assert encoder.seen == []
    referee(collection, files_below(photos))


def test_only_what_is_below_the_inputs_is_deleted(photos, make, encoder, referee):
    collection = make()
    collection.update(encoder, [photos])
    os.remove(photos / "a" / "01.png")
    os.remove(photos / "b" / "02.png")
    (photos / "b2").mkdir()
    assert collection.update(encoder, [photos / "b"]).deleted == 1
    assert str(photos / "a" / "01.png") in collection.paths()
    assert collection.update(encoder, [photos]).deleted == 1
    referee(collection, files_below(photos))


def test_bad_images_are_listed_each_time_and_tried_once(photos, make, encoder, referee, draw):
    (photos / "zero.png").write_bytes(b"")
    (photos / "fake.jpg").write_bytes(b"hello")
    (photos / "cut.png").write_bytes((photos / "a" / "01.png").read_bytes()[:60])
    (photos / "notes.txt").write_bytes(b"hello")
    collection = make()
    reports = [collection.update(encoder, [photos]) for _ in range(2)]
    for report in reports:
        assert [os.path.basename(error.path) for error in report.bad] == ["cut.png", "fake.jpg", "zero.png"]
        assert [error.reason for error in report.bad] == ["truncated", "not an image", "zero bytes"]
        assert report.num_other == 1
    assert encoder.seen.count(str(photos / "cut.png")) == 1
    assert collection.bad() == [(error.path, error.reason) for error in reports[0].bad]
    referee(collection, [path for path in files_below(photos) if os.path.basename(path)[0].isdigit()])

    collection.update(encoder, [photos], retry_bad=True)
    assert encoder.seen.count(str(photos / "cut.png")) == 2
    draw(str(photos / "cut.png"), 200)  # mended
    (photos / "a" / "01.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # broken since
    report = collection.update(encoder, [photos])
    assert counts(report) == (1, 0, 0, 0, 29, 3)
    assert collection.vector(photos / "a" / "01.png") is None
    os.remove(photos / "zero.png")
    assert len(collection.update(encoder, [photos]).bad) == 2


def test_what_cannot_be_opened_is_tried_again(permissions_bind, photos, make, encoder):
    target = photos / "a" / "01.png"
    target.chmod(0)
    collection = make()
    assert [error.reason for error in collection.update(encoder, [photos]).bad] == ["permission denied"]
    target.chmod(0o644)
    assert counts(collection.update(encoder, [photos])) == (1, 0, 0, 0, 29, 0)


def test_rows_below_an_unreadable_folder_are_kept(photos, make, encoder, monkeypatch):
    collection = make()
    collection.update(encoder, [photos])
    real = os.scandir

    def refuse(path):
        if path == str(photos / "a"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert counts(collection.update(encoder, [photos])) == (0, 0, 0, 0, 15, 1)
    assert len(collection) == 30


@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist there")
def test_hostile_names_survive(tmp_path, make, encoder, referee, draw):
    folder = tmp_path / os.fsdecode(b"f\xffolder")
    for seed, name in enumerate(HOSTILE):
        draw(os.path.join(folder, name), seed)
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    draw(str(outside / HOSTILE[0]), 50)
    paths = [os.path.join(folder, name) for name in HOSTILE] + [str(outside / HOSTILE[0])]
    collection = make(root=folder)
    collection.update(encoder, [folder, outside])
    referee(collection, paths, k=20)
    for path in paths:
        assert collection.search(collection.vector(path), k=1)[0].path == path
    assert collection.update(encoder, [folder, outside]).unchanged == len(paths)


@pytest.mark.skipif(os.name == "nt", reason="such names cannot exist there")
def test_the_collection_itself_may_lie_in_a_hostile_folder(tmp_path, photos, encoder, referee):
    directory = tmp_path / os.fsdecode(b"w\xffo %41?x") / ".vitembed" / "index"
    for _ in range(2):
        with Collection.create(directory, fingerprint=encoder.fingerprint, dim=48) as collection:
            collection.update(encoder, [photos])
            referee(collection, files_below(photos))


def test_a_collection_moves_with_its_root(tmp_path, encoder, referee, draw):
    for seed in range(5):
        draw(str(tmp_path / "here" / "photos" / f"{seed}.png"), seed)
    with Collection.create(tmp_path / "here" / ".vitembed" / "index", fingerprint=encoder.fingerprint, dim=48) as made:
        made.update(encoder, [tmp_path / "here" / "photos"])
    os.rename(tmp_path / "here", tmp_path / "there")
    encoder.seen.clear()
    with Collection.open(tmp_path / "there" / ".vitembed" / "index") as moved:
        referee(moved, files_below(tmp_path / "there" / "photos"))
        assert moved.update(encoder, [tmp_path / "there" / "photos"]).unchanged == 5
        assert encoder.seen == []


def test_another_encoder_is_refused_with_the_fix(photos, make, color_grid, encoder):
    collection = make()
    collection.update(encoder, [photos])
    other = color_grid.ColorGrid(fingerprint="f00d" * 16)
    fix = rf"encoder {encoder.fingerprint[:12]}.*f00df00df00d.*vitembed index --rebuild, or name another --workspace"
    with pytest.raises(MismatchError, match=fix):
        collection.update(other, [photos])
    with pytest.raises(MismatchError, match=fix):
        make(fingerprint=other.fingerprint)
    with pytest.raises(MismatchError, match=r"\(48-d\).*\(49-d\)"):
        make(dim=49)
    with pytest.raises(MismatchError, match="unknown"):
        collection.update_from(Embeddings(np.ones((1, 48)), ["x"], ""))
    assert len(collection) == 30

    rebuilt = make(fingerprint=other.fingerprint, rebuild=True)
    assert (len(rebuilt), rebuilt.fingerprint) == (0, other.fingerprint)
    assert len(collection.search(np.ones(48), k=5)) == 5  # until the new one is whole
    rebuilt.update(other, [photos])
    for use in (lambda: collection.search(np.ones(48)), lambda: collection.update(encoder, [photos])):
        with pytest.raises(CollectionError, match="rebuilt meanwhile: open it again"):
            use()
    assert len(rebuilt.search(np.ones(48), k=5)) == 5


def test_vectors_from_anywhere(tmp_path, photos, make, encoder):
    rng = np.random.default_rng(0)
    ids = ["item 1", "2", os.fsdecode(b"\xff"), str(photos / "a" / "01.png")]
    vectors = rng.standard_normal((4, 48)).astype(np.float32) * 100
    collection = make()
    given = Embeddings(vectors, ids, encoder.fingerprint)
    assert counts(collection.update_from(given)) == (4, 0, 0, 0, 0, 0)
    assert counts(collection.update_from(given)) == (0, 0, 0, 0, 4, 0)
    assert collection.search(vectors[1], k=1)[0].path == "2"
    vectors[1] *= -1
    assert counts(collection.update_from(Embeddings(vectors, ids, encoder.fingerprint))) == (0, 1, 0, 0, 3, 0)
    assert collection.search(vectors[1], k=1)[0].path == "2"
    report = collection.update(encoder, [photos])  # the file counts as embedded, names that are no files stay
    assert counts(report) == (29, 0, 0, 0, 1, 0)
    assert {"item 1", "2", os.fsdecode(b"\xff")} <= set(collection.paths())
    with pytest.raises(DataError, match="1 id occurs more than once"):
        collection.update_from(Embeddings(vectors, ["a", "a", "b", "c"], encoder.fingerprint))
    with pytest.raises(DataError, match="vector 0 of 1 is zero"):
        collection.update_from(Embeddings(np.zeros((1, 48)), ["z"], encoder.fingerprint))


def test_embeddings_come_out_as_they_are_stored(photos, make, encoder):
    collection = make()
    collection.update(encoder, [photos])
    everything = collection.embeddings()
    assert everything.ids == collection.paths()
    assert (everything.fingerprint, everything.meta) == (encoder.fingerprint, {"name": "grid", "normalized": True})
    for row in (0, 17):
        np.testing.assert_array_equal(everything.vectors[row], collection.vector(everything.ids[row]))


def test_search_takes_only_sensible_queries(photos, make, encoder):
    collection = make()
    assert collection.search(np.ones(48)) == []
    collection.update(encoder, [photos])
    assert len(collection.search(np.ones(48), k=1000)) == 30
    for query, complaint in (
        (np.zeros(48), "is zero"),
        (np.full(48, np.nan), "NaN or infinity"),
        (np.ones(47), r"holds 48-d vectors, the query has shape \[1, 47\]"),
        (np.ones((0, 48)), "shape"),
    ):
        with pytest.raises(DataError, match=complaint):
            collection.search(query)
    with pytest.raises(DataError, match="k is 0, expected at least 1"):
        collection.search(np.ones(48), k=0)
    first = collection.paths()[0]
    without = collection.search(collection.vector(first), k=1000, exclude_paths=[first, "/no/such"])
    assert len(without) == 29
    assert first not in [hit.path for hit in without]


def test_equal_scores_go_by_path_however_many(tmp_path, make, encoder, draw, referee):
    folder = tmp_path / "photos"
    for number in np.random.default_rng(0).permutation(120).tolist():
        draw(str(folder / f"{number:03}.png"), number % 2)
    collection = make()
    collection.update(encoder, [folder])
    query = collection.vector(folder / "000.png")
    hits = collection.search(query, k=5)
    assert [os.path.basename(hit.path) for hit in hits] == ["000.png", "002.png", "004.png", "006.png", "008.png"]
    assert isinstance(hits[0], Hit)
    referee(collection, files_below(folder), k=70)
    each = collection.search_many(np.stack([query, -query]), k=3)
    assert each[0] == hits[:3]
    assert each[1] == collection.search(-query, k=3)


def test_vectors_without_direction_are_bad_images(photos, make, encoder, color_grid):
    class Broken(color_grid.ColorGrid):
        def stream(self, refs, **options):
            for batch in super().stream(refs, **options):
                batch.vectors[0], batch.vectors[1] = 0, np.inf
                yield batch

    collection = make()
    report = collection.update(Broken(), [photos])
    assert [error.reason for error in report.bad] == ["its vector is zero or not finite"] * 2
    assert len(collection) == 28


def test_an_encoder_that_does_not_keep_its_word_is_stopped(photos, make, color_grid):
    class Narrow(color_grid.ColorGrid):
        def stream(self, refs, **options):
            for batch in super().stream(refs, **options):
                batch.vectors = batch.vectors[:, :40]
                yield batch

    class Forgetful(color_grid.ColorGrid):
        def stream(self, refs, **options):
            return super().stream(refs[1:], **options)

    with pytest.raises(ModelError, match=r"shape \[30, 40\] for 30 images, expected width 48"):
        make().update(Narrow(), [photos])
    with pytest.raises(ModelError, match="answered for 29 of 30 images"):
        make().update(Forgetful(), [photos])


def test_progress_tells_where_it_stands(photos, make, encoder):
    seen = []
    make().update(encoder, [photos], batch_size=8, progress=seen.append)
    assert [state.done for state in seen] == [8, 16, 24, 30]
    assert all(state.total == 30 for state in seen)
    assert seen[-1].eta_seconds == 0
    assert all(state.images_per_second > 0 for state in seen)
    assert all(state.decode_share + state.model_share == pytest.approx(1) for state in seen)


def test_a_list_of_files_is_an_input(tmp_path, photos, make, encoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = tmp_path / "list.txt"
    listed.write_text("photos/a/01.png\nphotos/a/03.png\n")
    collection = make()
    assert collection.update(encoder, [f"@{listed}"]).added == 2
    os.remove(photos / "a" / "01.png")
    report = collection.update(encoder, [f"@{listed}"])
    assert (report.deleted, len(report.bad), len(collection)) == (1, 1, 1)


def test_missing_input_is_named(tmp_path, make, encoder):
    with pytest.raises(DataError, match="no such file or folder"):
        make().update(encoder, [tmp_path / "absent"])
