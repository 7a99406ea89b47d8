"""Images that are good though their files are odd are named by every command that embeds them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def odd(workspace):
    """A JPEG without its end, and half of it."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(workspace / "whole.jpg")
    data = (workspace / "whole.jpg").read_bytes()
    (workspace / "open.jpg").write_bytes(data[:-2])
    (workspace / "half.jpg").write_bytes(data[: len(data) // 2])
    return "1 image: no end marker, pixels whole (open.jpg)"


def test_notes_of_queries_and_of_what_is_classified(vitembed, workspace, photo_folder, odd):
    vitembed("index", "photos")
    assert odd in vitembed("search", "open.jpg", "-k", 1).stderr
    vitembed("probe", "photos", "--save", "kinds.safetensors")
    done = vitembed("classify", "open.jpg", "half.jpg", "--probe", "kinds.safetensors")
    assert odd in done.stderr
    assert "half.jpg: truncated" in done.stderr
    assert "1 image: " in done.stderr
    done = vitembed("classify", "half.jpg", "--probe", "kinds.safetensors", "--tolerant", "--strict")
    assert "1 image: truncated, taken as far as it goes (half.jpg)" in done.stderr
