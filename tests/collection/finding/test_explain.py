"""Heat maps, on a model of which it is known what it looks at."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitembed.collection.finding.explain import Explainer
from vitembed.collection.finding.explain_sheet import heat, numbered, write_explanation
from vitembed.collection.nearest import Hit
from vitembed.collection.search import SearchResult
from vitembed.config import ViTConfig
from vitembed.errors import DataError, MismatchError
from vitembed.images.preprocess import Preprocess
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer

GREY, RED, BLUE = (128, 128, 128), (230, 20, 20), (20, 20, 230)


@pytest.fixture(scope="module")
def encoder():
    """Its vector is the mean of the patches' colours: two images agree in what both have of a colour."""
    config = ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    vit = VisionTransformer(config)
    with torch.no_grad():
        for weight in vit.parameters():
            weight.zero_()  # blocks add nothing
        vit.norm.weight.fill_(1)
        for channel in range(3):  # one direction per colour, and its opposite, so that the norm keeps them
            vit.patch_embed.proj.weight[2 * channel, channel] = 1 / 64
            vit.patch_embed.proj.weight[2 * channel + 1, channel] = -1 / 64
        # The same in each patch: the last norm then leaves grey small beside colours.
        vit.pos_embed[..., 6], vit.pos_embed[..., 7] = 4.0, -4.0
        vit.norm.weight[6:8] = 0.05
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return Encoder(vit, Preprocess(img_size=32, mean=mean, std=std), pool="mean")


def squares(**places):
    """A grey image with some of its 16 patches coloured, by (row, column)."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:] = GREY
    for colour, where in places.items():
        for place in where:
            pixels[place] = {"red": RED, "blue": BLUE}[colour]
    return pixels.repeat(8, axis=0).repeat(8, axis=1)


def test_what_both_have_is_warm_and_what_one_has_alone_is_cool(encoder):
    query = squares(red=[(0, 0), (1, 1)], blue=[(3, 3)])
    hit = squares(red=[(2, 0), (2, 1)])
    found = Explainer(encoder, query).explain(hit)
    vectors = encoder.embed_arrays(np.stack([query, hit]))
    cosine = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert found.score == pytest.approx(float(cosine), abs=1e-5)
    order = np.argsort(found.query.reshape(-1))
    assert {divmod(int(place), 4) for place in order[-2:]} == {(0, 0), (1, 1)}
    assert divmod(int(order[0]), 4) == (3, 3)
    assert found.query[0, 0] > 0 > found.query[3, 3]
    best_of_hit = np.argsort(found.hit.reshape(-1))[-2:]
    assert {divmod(int(place), 4) for place in best_of_hit} == {(2, 0), (2, 1)}


def test_answering_patches_are_of_one_kind(encoder):
    query, hit = squares(red=[(0, 1)], blue=[(3, 2)]), squares(red=[(2, 0)], blue=[(1, 3)])
    matches = Explainer(encoder, query).explain(hit).matches
    pairs = {match.query: match.hit for match in matches}
    assert pairs.get((0, 1)) == (2, 0)
    assert pairs.get((3, 2)) == (1, 3)
    assert all(match.cosine > 0.9 for match in matches[:2])


def test_the_same_twice_and_for_any_pooling(encoder):
    torch.manual_seed(0)
    vit = VisionTransformer(ViTConfig(img_size=48, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_registers=2))
    for pool in ("cls", "mean", "cls+mean"):
        trained = Encoder(vit, Preprocess(img_size=48), pool=pool)
        images = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
        first, second = (Explainer(trained, images[0], num_masks=16).explain(images[1]) for _ in range(2))
        assert first.query.shape == (12, 12)
        assert np.array_equal(first.query, second.query)
        assert first.matches == second.matches
        assert len({match.query for match in first.matches}) == len(first.matches)


def test_masks_hide_every_part_equally_often(encoder):
    keep = Explainer(encoder, squares())._keep
    assert keep.shape == (128, 8)
    assert (np.bincount(keep.reshape(-1), minlength=16) == 64).all()


def test_pictures():
    pixels = squares(red=[(1, 1)])
    warm = np.array([[0, 0], [0, 1]], np.float32)
    picture = np.asarray(heat(pixels, warm, 1.0), dtype=int)
    assert picture[-1, -1, 0] > picture[-1, -1, 2] + 60
    cool = np.asarray(heat(pixels, -warm, 1.0), dtype=int)
    assert cool[-1, -1, 2] > cool[-1, -1, 0] + 60
    framed = numbered(pixels, [(1, 1), (3, 0)], 4)
    assert framed.getpixel((280 // 4 + 30, 280 // 4)) == (0xE6, 0x19, 0x4B)


@pytest.fixture
def result(tmp_path):
    for name in ("query", "hit"):
        Image.fromarray(squares(red=[(1, 1)])).save(tmp_path / f"{name}.png")
    hits = [Hit(1, str(tmp_path / "hit.png"), 1.0), Hit(2, str(tmp_path / "gone.png"), 0.5)]
    return SearchResult([str(tmp_path / "query.png")], [], hits, True, 0.1)


def test_the_sheet(encoder, result, tmp_path):
    write_explanation(tmp_path / "why.html", encoder, encoder.fingerprint, result)
    page = (tmp_path / "why.html").read_text()
    assert page.count("<img") == 4 + 1
    assert "file is missing" in page
    write_explanation(tmp_path / "why.png", encoder, encoder.fingerprint, result)
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 400


def test_mistakes(encoder, result, tmp_path):
    with pytest.raises(DataError, match="expected a name that ends in .html or .png"):
        write_explanation(tmp_path / "why.pdf", encoder, encoder.fingerprint, result)
    with pytest.raises(MismatchError):
        write_explanation(tmp_path / "why.png", encoder, "0" * 64, result)
    several = SearchResult([*result.queries, *result.queries], [], result.hits, True, 0.1)
    with pytest.raises(DataError, match="for one query image, got 2"):
        write_explanation(tmp_path / "why.png", encoder, encoder.fingerprint, several)
    vector = SearchResult(["<vector>"], [], result.hits, True, 0.1)
    with pytest.raises(DataError, match="is no file"):
        write_explanation(tmp_path / "why.png", encoder, encoder.fingerprint, vector)
