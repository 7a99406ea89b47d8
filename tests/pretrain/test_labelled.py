"""Labels for the monitors: found where they are, left alone where they are none, judged by as a loop would."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from vitembed.config import MonitorConfig
from vitembed.errors import ConfigError, DataError
from vitembed.images.cache import ImageCache
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import find_images
from vitembed.pretrain.watch.labelled import LabelledPool, find_labels
from vitembed.pretrain.watch.pool import Encode, Pool

COLOURS = {"blue": (20, 30, 220), "green": (30, 200, 40), "red": (220, 30, 20)}


def colour_folders(root, names=tuple(COLOURS), each=8):
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(each):
            noise = np.random.default_rng(i).integers(-15, 15, (12, 12, 3))
            Image.fromarray(np.clip(noise + COLOURS[name], 0, 255).astype(np.uint8)).save(root / name / f"{i:02}.png")


def labels_for(inputs, **settings):
    inputs = inputs if isinstance(inputs, list) else [inputs]
    cache = ImageCache.in_memory(find_images(inputs).refs, size=12)
    config = MonitorConfig(**settings)
    return find_labels(config, inputs, cache, Preprocess(img_size=8), lambda refs: ImageCache.in_memory(refs, size=12))


class MeanColour(torch.nn.Module):
    """An encoder that sees the colour."""

    def __init__(self):
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixels):
        return type("Tokens", (), {"cls": pixels.mean(dim=(2, 3)) - 0.4})


COLOUR = Encode.__new__(Encode)
COLOUR.vit, COLOUR.mean, COLOUR.std = MeanColour(), torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)


def names_of(pool):
    return [pool.classes[target] for target in pool.targets]


def test_class_folders_are_found_and_said(tmp_path):
    colour_folders(tmp_path)
    pool, note = labels_for(tmp_path)
    assert pool.classes == ("blue", "green", "red")
    assert len(pool.pool) == 24
    paths = [pool.pool.cache.refs[row].path for row in pool.pool.rows]
    assert [path.split("/")[-2] for path in paths] == names_of(pool)
    assert pool.num_queries == 8 or pool.num_queries == 9
    assert pool.majority == pytest.approx(1 / 3, abs=0.05)
    assert "3 sub-folders are taken as classes (blue, green, red)" in note
    assert "monitor.labels=none" in note


def test_labels_are_not_used_where_none_are_wanted_or_there_are_none(tmp_path):
    colour_folders(tmp_path / "classes")
    assert labels_for(tmp_path / "classes", labels="none")[0] is None
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tmp_path / "classes").rglob("*.png"):
        (flat / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    pool, note = labels_for(flat)
    assert pool is None
    assert note.startswith("no labels: the images do not lie in class sub-folders")
    pool, _ = labels_for([str(path) for path in sorted((tmp_path / "classes" / "red").iterdir())])
    assert pool is None
    colour_folders(tmp_path / "albums", each=2)  # too few in each to be classes
    pool, note = labels_for(tmp_path / "albums")
    assert pool is None
    assert note.startswith("no labels: 6 images in 3 sub-folders are too few of each for classes: expected 4 or more")
    colour_folders(tmp_path / "one" / "set")
    assert "all images lie in one sub-folder (set), and labels need two" in labels_for(tmp_path / "one")[1]


def test_a_split_that_comes_with_the_folders_is_kept(tmp_path):
    colour_folders(tmp_path / "train")
    colour_folders(tmp_path / "test", each=5)
    pool, _ = labels_for(tmp_path)
    assert pool.classes == ("blue", "green", "red")
    for row, is_query in zip(pool.pool.rows, pool.is_query, strict=True):
        assert ("/test/" in pool.pool.cache.refs[row].path) == is_query
    assert pool.num_queries == 15


def test_the_pool_is_capped_and_always_the_same(tmp_path):
    colour_folders(tmp_path)
    first, _ = labels_for(tmp_path, num_bank=7, num_queries=4)
    again, _ = labels_for(tmp_path, num_bank=7, num_queries=4)
    assert (len(first.pool), first.num_queries) == (11, 4)
    assert first.pool.rows.tolist() == again.pool.rows.tolist()


def test_a_csv_may_label_some_of_the_images(tmp_path):
    colour_folders(tmp_path / "images")
    lines = ["path,label"]
    for name in ("blue", "red"):
        lines += [f"images/{name}/{i:02}.png,{'cold' if name == 'blue' else 'warm'}" for i in range(6)]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    pool, note = labels_for(tmp_path / "images", labels=str(tmp_path / "labels.csv"))
    assert pool.classes == ("cold", "warm")
    assert len(pool.pool) == 12
    assert note.startswith("12 labels from ")
    for row, name in zip(pool.pool.rows, names_of(pool), strict=True):
        assert ("/blue/" in pool.pool.cache.refs[row].path) == (name == "cold")


def test_labelled_images_may_lie_elsewhere(tmp_path):
    colour_folders(tmp_path / "mine", names=("blue",))
    colour_folders(tmp_path / "judged", names=("green", "red"))
    (tmp_path / "judged" / "red" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    pool, note = labels_for(tmp_path / "mine", labels=str(tmp_path / "judged"))
    assert pool.classes == ("green", "red")
    assert len(pool.pool) == 16
    assert "(1 that cannot be read are left out)" in note
    for row, name in zip(pool.pool.rows, names_of(pool), strict=True):
        assert pool.pool.cache.refs[row].path.split("/")[-2] == name
    with torch.no_grad():
        assert pool.scores(COLOUR) == {"knn": 1.0, "linear": 1.0}


def test_labels_that_were_asked_for_and_cannot_be_used_are_refused(tmp_path):
    colour_folders(tmp_path / "mine", names=("blue", "red"))
    with pytest.raises(DataError, match="no such file or folder"):
        labels_for(tmp_path / "mine", labels=str(tmp_path / "none.csv"))
    (tmp_path / "one.csv").write_text("path,label\nmine/blue/00.png,a\nmine/blue/01.png,a\n")
    with pytest.raises(DataError, match="too few to judge by: expected at least 2 classes"):
        labels_for(tmp_path / "mine", labels=str(tmp_path / "one.csv"))
    with pytest.raises(ConfigError, match="monitor.export must be last or best, got 'first'"):
        MonitorConfig(export="first")


def test_k_nn_is_what_a_loop_over_the_bank_votes(tmp_path):
    colour_folders(tmp_path)
    rng = np.random.default_rng(3)
    cache = ImageCache.in_memory(find_images([tmp_path]).refs, size=12)
    targets = rng.integers(0, 3, 24)  # labels that the colours do not tell: neither 0 nor 1
    is_query = rng.permutation(24) < 10
    pool = LabelledPool(Pool(cache, np.arange(24), Preprocess(img_size=8)), targets, is_query, ("a", "b", "c"), "")
    with torch.no_grad():
        vectors = pool.pool.vectors(COLOUR).double().numpy()
        found = pool.scores(COLOUR)["knn"]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    right = 0
    for query in np.flatnonzero(is_query):
        bank = sorted(np.flatnonzero(~is_query), key=lambda i: -float(unit[query] @ unit[i]))[:20]
        votes = np.zeros(3)
        for i in bank:
            votes[targets[i]] += np.exp(float(unit[query] @ unit[i]) / 0.07)
        right += int(votes.argmax()) == targets[query]
    assert found == pytest.approx(right / is_query.sum())
    common = np.bincount(targets[~is_query]).argmax()
    assert pool.majority == pytest.approx((targets[is_query] == common).mean())
