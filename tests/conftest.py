"""What every test shares: a torch that does not crowd the machine, no stray workspace, tiny drawn images."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

# On tiny tensors a second thread gains nothing, and on a busy machine the two wait for each other: minutes instead of
# seconds. Read by torch, FAISS and NumPy when they load, and passed on to subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vitembed._torchvision import import_torchvision

import_torchvision()  # before timm or Lightning import it themselves

KINDS = ("discs", "stripes", "squares")


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path_factory):
    """No workspace or model cache of the person who runs the tests is ever found or written, no network asked."""
    monkeypatch.delenv("VITEMBED_WORKSPACE", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


def draw_image(kind: str, number: int, size: int = 48) -> Image.Image:
    """A small picture of one of ``KINDS``; ``number`` varies place, size and shade."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    ground = {"discs": (230, 225, 210), "stripes": (40, 60, 120), "squares": (60, 130, 70)}[kind]
    ink = {"discs": (200, 40, 40), "stripes": (240, 210, 60), "squares": (20, 20, 30)}[kind]
    shade = rng.integers(-15, 16, size=3)
    image = Image.new("RGB", (size, size), tuple(int(c) for c in np.clip(np.array(ground) + shade, 0, 255)))
    pen = ImageDraw.Draw(image)
    x, y, r = (int(v) for v in rng.integers((8, 8, 5), (size - 8, size - 8, 12)))
    if kind == "discs":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif kind == "stripes":
        for top in range(y % 8, size, 8):
            pen.line((0, top, size, top), fill=ink, width=3)
    else:
        pen.rectangle((x - r, y - r, x + r, y + r), fill=ink)
        pen.rectangle((2, 2, 2 + r, 2 + r), outline=ink, width=2)
    return image


@pytest.fixture(scope="session")
def fake_hub():
    """The module ``fake_hub.py``: a Hugging Face cache with tiny models."""
    spec = importlib.util.spec_from_file_location("fake_hub", Path(__file__).with_name("fake_hub.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_model():
    """Saves an untrained model of 16 px in a folder: what a page's examples take for ``model``."""

    def save(folder: Path) -> Path:
        from vitembed.config import ViTConfig
        from vitembed.images.preprocess import Preprocess
        from vitembed.model.checkpoint import save_model
        from vitembed.model.vit import VisionTransformer

        config = ViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)
        return save_model(folder, VisionTransformer(config), Preprocess(img_size=16))

    return save


@pytest.fixture
def examples():
    """The Python blocks of a page of ``docs/``, ready to be executed."""

    def read(page: str) -> list:
        text = (Path(__file__).parents[1] / "docs" / page).read_text(encoding="utf-8")
        return [compile(block, page, "exec") for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]

    return read


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """24 images of 3 kinds that colour and shape tell apart, one sub-folder per kind."""
    root = tmp_path / "photos"
    for kind in KINDS:
        (root / kind).mkdir(parents=True)
        for number in range(8):
            draw_image(kind, number).save(root / kind / f"{kind}_{number}.png")
    return root
