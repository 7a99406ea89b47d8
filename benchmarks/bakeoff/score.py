"""What a frozen encoder is worth: k-NN and a linear probe on its cls vector, and how many dimensions that uses."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from vitembed.config import ModelConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer
from vitembed.model.whitening import whitened_vectors, without_whitening
from vitembed.pretrain.finish import NUM_IMAGES
from vitembed.pretrain.watch.scores import rankme
from vitembed.probe.knn import KNNProbe
from vitembed.probe.linear import LinearProbe

WHITEN = ModelConfig.whiten


def vectors_of(vit: VisionTransformer, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The cls vector and the mean of the patch tokens of each image, float32 [n, d]."""
    encoder = Encoder(vit, Preprocess(img_size=pixels.shape[1]))
    parts: dict[str, list[np.ndarray]] = {"cls": [], "mean": []}
    with torch.inference_mode():
        for start in range(0, len(pixels), 500):
            tokens = encoder.tokens(torch.from_numpy(pixels[start : start + 500]))
            parts["cls"].append(tokens.cls.numpy())
            parts["mean"].append(tokens.patches.mean(dim=1).numpy())
    return {pool: np.concatenate(part) for pool, part in parts.items()}


def knn_score(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray) -> float:
    """Percent right by 20 nearest neighbours (cosine, temperature 0.07)."""
    return 100 * float(KNNProbe(k=20, temperature=0.07).fit(bank, bank_labels).score(queries, labels))


def linear_score(bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, labels: np.ndarray) -> float:
    """Percent right by logistic regression on the standardised vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # thousands of raw pixels need more iterations than are worth it
        return 100 * float(LinearProbe(C=0.1, max_iter=200).fit(bank, bank_labels).score(queries, labels))


def pixel_scores(pixels: tuple[np.ndarray, np.ndarray], labels: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Scores of the raw pixels as vectors: a floor."""
    bank, queries = (part.reshape(len(part), -1).astype(np.float32) / 255 - 0.5 for part in pixels)
    return {
        "knn": knn_score(bank, labels[0], queries, labels[1]),
        "linear": linear_score(bank, labels[0], queries, labels[1]),
        "rankme": rankme(torch.from_numpy(queries[:2000] - queries[:2000].mean(axis=0))),
    }


def encoder_scores(
    encoders: dict[str, VisionTransformer],
    pixels: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
) -> dict[str, float | str]:
    """Scores of the encoder whose cls vector is best by k-NN.

    ``knn`` and ``linear`` are those of the vector that the encoder gives. Ours is whitened, in part; ``knn_plain`` and
    ``rankme`` are those of the cls vector as it was trained, and ``knn_whitened`` those of every method's after the
    same whitening, so that both can be told apart: what training gives, and what whitening adds.

    Methods with a teacher publish either network; which of the two is ahead depends on the length of the run, so both
    are tried, in the method's favour.
    """
    best: dict[str, float | str] = {}
    every: dict[str, float | str] = {}
    for name, vit in encoders.items():
        bank, queries = (vectors_of(vit, part) for part in pixels)
        trained = without_whitening(vit)
        plain = bank, queries
        if trained is not vit:
            plain = vectors_of(trained, pixels[0]), vectors_of(trained, pixels[1])
        plain_bank, plain_queries = (torch.from_numpy(part["cls"]) for part in plain)
        white = [
            whitened_vectors(part, WHITEN, learned_from=plain_bank[:NUM_IMAGES]).numpy()
            for part in (plain_bank, plain_queries)
        ]
        knn = knn_score(bank["cls"], labels[0], queries["cls"], labels[1])
        every[f"knn_{name}"] = knn
        if not best or knn > float(best["knn"]):
            centred = plain_queries - plain_queries.mean(dim=0)
            best = {
                "knn": knn,
                "knn_plain": knn_score(plain_bank.numpy(), labels[0], plain_queries.numpy(), labels[1]),
                "knn_whitened": knn_score(white[0], labels[0], white[1], labels[1]),
                "linear": linear_score(bank["cls"], labels[0], queries["cls"], labels[1]),
                "rankme": rankme(centred),
                "knn_mean": knn_score(bank["mean"], labels[0], queries["mean"], labels[1]),
                "encoder": name,
            }
    return {**best, **every} if len(every) > 1 else best
