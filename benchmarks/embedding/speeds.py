"""The forward pass: each speed of ours, ONNX, timm and transformers on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers import AutoModel

from embedding.rounds import Speed, in_rounds
from vitembed.embeddings import unit_rows
from vitembed.errors import ModelError
from vitembed.model.encoder import Encoder
from vitembed.model.export.formats import export
from vitembed.model.onnx_encoder import OnnxEncoder
from vitembed.model.speed import Speed as Choice

SPEEDS = ("exact", "half", "tome:4", "tome:8", "tome:16", "half+tome:8")


def at_speed(encoder: Encoder, speed: str) -> Encoder:
    """The same weights at another speed."""
    return Encoder(
        encoder.vit, encoder.preprocess, pool=encoder.pool, name=encoder.name, device=encoder.device, speed=speed
    )


def forward_speeds(
    encoder: Encoder, speeds: Sequence[str], scratch: Path, *, batch_size: int, seconds: float
) -> dict[str, Speed]:
    """Every way with its speed; the first is ours, exact. Peers are given normalised pixels, ours raw ones."""
    size = encoder.preprocess.img_size
    arrays = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)
    pixels = torch.randn(batch_size, 3, size, size, device=encoder.device)
    ways: dict[str, Callable[[], object]] = {}
    for speed in dict.fromkeys(["exact", *speeds]):
        ways[speed] = lambda fast=at_speed(encoder, speed): fast.embed_arrays(arrays)
    for name, make in (("timm", _timm), ("transformers", _transformers), ("onnxruntime", _onnx)):
        try:
            ways[name] = make(encoder, scratch, pixels, arrays)
        except ModelError as error:
            print(f"{name}: left out, {error}")
    return in_rounds(ways, seconds=seconds)


def _timm(encoder: Encoder, scratch: Path, pixels: torch.Tensor, _: np.ndarray) -> Callable[[], object]:
    path = export(encoder, "timm", scratch / "timm").path
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval().to(encoder.device)
    return lambda: _without_gradients(lambda: model(pixels))


def _transformers(encoder: Encoder, scratch: Path, pixels: torch.Tensor, _: np.ndarray) -> Callable[[], object]:
    path = export(encoder, "hf", scratch / "hf").path
    model = AutoModel.from_pretrained(path).eval().to(encoder.device)
    return lambda: _without_gradients(lambda: model(pixel_values=pixels).pooler_output)


def _onnx(encoder: Encoder, scratch: Path, _: torch.Tensor, arrays: np.ndarray) -> Callable[[], object]:
    opened = OnnxEncoder.open(export(encoder, "onnx", scratch / "model.onnx").path)
    return lambda: opened.embed_arrays(arrays)


def _without_gradients(forward: Callable[[], torch.Tensor]) -> np.ndarray:
    with torch.inference_mode():
        return forward().float().cpu().numpy()


def agreement(encoder: Encoder, speeds: Sequence[str], images: np.ndarray, *, k: int = 10) -> dict[str, float]:
    """Of the k nearest of each image by exact vectors, the share that is among the k nearest at each speed.

    Args:
        encoder: The exact one.
        speeds: What to compare with it.
        images: Preprocessed, uint8 [n, s, s, 3].
        k: How many neighbours, the image itself not counted.
    """
    expected = _nearest(encoder, images, k)
    shares = {}
    for speed in speeds:
        if Choice.parse(speed) == Choice():
            continue
        found = _nearest(at_speed(encoder, speed), images, k)
        shares[speed] = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(expected, found, strict=True)]))
    return shares


def _nearest(encoder: Encoder, images: np.ndarray, k: int) -> np.ndarray:
    vectors = unit_rows(np.concatenate([encoder.embed_arrays(images[i : i + 32]) for i in range(0, len(images), 32)]))
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def sample_images(encoder: Encoder, num_images: int) -> np.ndarray:
    """Random parts of scikit-learn's two sample photos, preprocessed."""
    rng, photos = np.random.default_rng(0), load_sample_images().images
    out = []
    for number in range(num_images):
        photo = photos[number % len(photos)]
        side = int(rng.integers(100, 400))
        y, x = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        out.append(encoder.preprocess.apply(Image.fromarray(photo[y : y + side, x : x + side])))
    return np.stack(out)
