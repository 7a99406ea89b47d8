from __future__ import annotations

import json
import os

import numpy as np
import pytest

from vitembed.collection.search import search
from vitembed.errors import BadImage, DataError, MismatchError


@pytest.fixture
def indexed(photos, make, encoder):
    collection = make()
    collection.update(encoder, [photos])
    encoder.seen.clear()
    return collection


def never():
    raise AssertionError("the encoder was loaded without need")


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_an_indexed_image_needs_no_encoder_and_does_not_find_itself(indexed, photos):
    query = photos / "a" / "01.png"
    result = search(indexed, [query], never, k=100)
    assert (len(result.hits), result.exact) == (29, True)
    assert str(query) not in [hit.path for hit in result.hits]
    expected = [hit for hit in indexed.search(indexed.vector(query), k=100) if hit.path != str(query)]
    assert [(hit.path, hit.score) for hit in result.hits] == [(hit.path, hit.score) for hit in expected]


def test_the_name_may_be_relative_or_a_link(indexed, photos, monkeypatch, tmp_path):
    monkeypatch.chdir(photos)
    os.symlink(photos / "a" / "01.png", tmp_path / "link.png")
    first = search(indexed, [photos / "a" / "01.png"], never).hits
    assert search(indexed, ["a/01.png"], never).hits == first
    assert search(indexed, [tmp_path / "link.png"], never).hits == first


def test_a_new_or_changed_image_is_embedded(indexed, photos, encoder, draw, color_grid, tmp_path):
    draw(str(tmp_path / "new.png"), 77)
    result = search(indexed, [tmp_path / "new.png"], lambda: encoder, k=3)
    assert encoder.seen == [str(tmp_path / "new.png")]
    assert result.hits == indexed.search(color_grid.embed_file(tmp_path / "new.png"), k=3)
    draw(str(photos / "a" / "01.png"), 78)
    result = search(indexed, [photos / "a" / "01.png"], lambda: encoder, k=3)
    expected = indexed.search(
        color_grid.embed_file(photos / "a" / "01.png"), exclude_paths=[str(photos / "a" / "01.png")], k=3
    )
    assert result.hits == expected


def test_several_queries_and_excluded_ones(indexed, photos, encoder, draw, color_grid, tmp_path):
    draw(str(tmp_path / "new.png"), 77)
    paths = [str(photos / "a" / "01.png"), str(tmp_path / "new.png"), str(photos / "b" / "02.png")]
    vectors = [unit(color_grid.embed_file(path).astype(np.float64)) for path in paths]
    direction = (vectors[0] + vectors[1]) / 2 - vectors[2]
    result = search(indexed, paths[:2], lambda: encoder, exclude=paths[2:], k=27)
    expected = indexed.search(direction, k=27, exclude_paths=[paths[0], paths[2]])
    assert [hit.path for hit in result.hits] == [hit.path for hit in expected]
    np.testing.assert_allclose([hit.score for hit in result.hits], [hit.score for hit in expected], atol=1e-3)


def test_vectors_and_files_mix(indexed, photos):
    vector = indexed.vector(photos / "a" / "01.png")
    mixed = search(indexed, [vector * 5, photos / "a" / "03.png"], never)
    assert len(mixed.hits) == 10
    assert mixed.queries == ["<vector>", str(photos / "a" / "03.png")]
    with pytest.raises(DataError, match=r"shape \[3\], the collection's are \[48\]"):
        search(indexed, [np.ones(3)], never)


def test_json_has_the_agreed_shape(indexed, photos):
    result = search(indexed, [photos / "a" / "01.png"], never, k=2).to_dict()
    document = json.loads(json.dumps(result))
    assert list(document) == ["query", "exact", "results"]
    assert (document["query"], document["exact"]) == ([str(photos / "a" / "01.png")], True)
    assert [list(hit) for hit in document["results"]] == [["rank", "path", "score", "percentile"]] * 2
    assert [hit["rank"] for hit in document["results"]] == [1, 2]
    negated = search(indexed, [photos / "a" / "01.png"], never, exclude=[photos / "a" / "03.png"]).to_dict()
    assert negated["not"] == [str(photos / "a" / "03.png")]


def test_wrong_queries_are_named_before_an_encoder_is_loaded(indexed, photos, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match="no query image"):
        search(indexed, [], never)
    with pytest.raises(DataError, match=r"no such image, neither on disk nor in the collection: absent\\n.png"):
        search(indexed, ["absent\n.png"], never)
    with pytest.raises(BadImage, match="not an image"):
        search(indexed, [tmp_path / "text.png"], never)
    with pytest.raises(BadImage):
        search(indexed, [photos], never)
    with pytest.raises(DataError, match="cancel out"):
        search(indexed, [photos / "a" / "01.png"], never, exclude=[photos / "a" / "01.png"])


def test_another_models_query_is_refused(indexed, draw, tmp_path, color_grid):
    draw(str(tmp_path / "new.png"), 77)
    other = color_grid.ColorGrid(fingerprint="f00d" * 16)
    with pytest.raises(MismatchError, match=rf"{indexed.fingerprint[:12]}.*f00df00df00d.*vitembed index --rebuild"):
        search(indexed, [tmp_path / "new.png"], lambda: other)


def test_a_query_that_breaks_while_decoding_is_a_bad_image(indexed, encoder, photos, tmp_path):
    (tmp_path / "cut.png").write_bytes((photos / "a" / "01.png").read_bytes()[:60])
    with pytest.raises(BadImage, match="truncated"):
        search(indexed, [tmp_path / "cut.png"], lambda: encoder)


def test_the_result_as_a_page(indexed, photos, tmp_path):
    search(indexed, [photos / "a" / "01.png"], never, k=4, exclude=[photos / "a" / "03.png"]).write_sheet(
        tmp_path / "s.html"
    )
    page = (tmp_path / "s.html").read_text()
    assert page.count("<img") == 6
    assert "every vector compared" in page
