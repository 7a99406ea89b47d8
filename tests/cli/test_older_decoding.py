"""Indexes and probes of other projects' models, made before ``depth`` and ``decode_rules``, keep to that decoding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from vitembed import Collection, load
from vitembed.collection.search import search as find
from vitembed.errors import MismatchError
from vitembed.images.source import find_images
from vitembed.model import opening
from vitembed.probe.classify import classify
from vitembed.probe.saving import SavedProbe


@pytest.fixture
def older(monkeypatch):
    """Give a context in which models are read as an older version read them."""
    from contextlib import contextmanager

    @contextmanager
    def _older():
        with monkeypatch.context() as patch:
            read = opening.open_model

            def before(*args, **kwargs):
                opened = read(*args, **kwargs)
                return replace(opened, preprocess=opened.preprocess.as_before())

            patch.setattr(opening, "open_model", before)
            yield

    return _older


@pytest.fixture
def theirs(vitembed, workspace):
    """A model in transformers' layout that says nothing of vitembed."""
    vitembed("export", "--to", "hf", "-o", "theirs")
    weights = workspace / "theirs" / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})
    return "theirs"


def deep(path, seed):
    """Draw an image that the two decodings take for different ones: 12 of 16 bits."""
    values = np.random.default_rng(seed).integers(0, 4096, (8, 8)).astype(np.uint16)
    Image.fromarray(np.kron(values, np.ones((8, 8), np.uint16))).save(path)
    return str(path)


def test_an_older_index_goes_on_with_its_decoding(vitembed, workspace, photo_folder, theirs, older):
    first = deep(photo_folder / "deep.png", 1)
    with older():
        vitembed("index", "photos", "--model", theirs)
        expected = load(theirs).embed([first, query := deep(workspace / "query.png", 2)]).normalized().vectors
    assert not np.allclose(load(theirs).embed(query).normalized().vectors[0], expected[1], atol=0.01)

    # The command line, with the model named and without, with a graph for queries and without.
    assert "unchanged" in vitembed("index", "photos").stdout
    added = deep(photo_folder / "added.png", 2)
    assert "1 added" in vitembed("index", "photos", "--model", theirs).stdout
    with Collection.open(workspace / ".vitembed" / "index") as collection:
        np.testing.assert_allclose(collection.vector(added), expected[1], atol=2e-3)
        for named in ([], ["--model", theirs]):
            found = vitembed("search", query, "-k", 1, "--json", *named).stdout
            assert '"added.png' in found.replace(str(photo_folder) + "/", "")
        vitembed("search", query, "--explain", "why.html", "-k", 1)

        # Python.
        encoder = load(theirs)
        assert encoder.fingerprint != collection.fingerprint
        one_more = deep(photo_folder / "more.png", 3)
        assert collection.update(encoder, [photo_folder]).added == 1
        with older():
            np.testing.assert_allclose(
                collection.vector(one_more), load(theirs).embed(one_more).normalized().vectors[0], atol=2e-3
            )
        result = find(collection, [query], lambda: encoder, k=1)
        assert (result.hits[0].path, round(result.hits[0].score, 3)) == (added, 1.0)
        with pytest.raises(MismatchError, match="this is encoder"):
            collection.update(load(".vitembed/model", pool="mean"), [photo_folder])


def test_an_older_probe_goes_on_with_its_decoding(vitembed, workspace, photo_folder, theirs, older):
    with older():
        vitembed("probe", "photos", "--model", theirs, "--save", "kinds.safetensors")
    new = deep(workspace / "new.png", 4)
    probe = SavedProbe.load("kinds.safetensors")
    with older():
        (expected,) = classify(load(theirs), find_images([new]).refs, probe)
    (found,) = classify(load(theirs), find_images([new]).refs, probe)
    assert found == expected
    assert str(expected.results[0].guess) in vitembed("classify", new, "--probe", "kinds.safetensors").stdout
