"""The demo's table: raw pixels, the untrained and the trained encoder against exact ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitembed.collection.sheet import SheetImage, SheetRow, write_sheet
from vitembed.collection.sheet_png import sheet_png
from vitembed.demo.emoji import EmojiData
from vitembed.demo.truth import category_scores, pixel_vectors, retrieval
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.model.encoder import Encoder
from vitembed.probe.report import evaluate

PIXEL_SIDE = 32
_Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    values: list[float]
    """One per column, 0..1."""


@dataclass(frozen=True)
class Scoreboard:
    """The table and everything behind it."""

    columns: list[str]
    rows: list[Row]
    details: dict[str, Any]
    """Per row the full scores with their 95 % intervals."""
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "columns": self.columns,
            "rows": {row.name: row.values for row in self.rows},
            "details": self.details,
            "notes": self.notes,
        }


def pixels_of(paths: Sequence[Path], side: int) -> npt.NDArray[np.uint8]:
    """Images as the encoders see them, before the model: uint8 [n, side, side, 3]."""
    preprocess = Preprocess(img_size=side)
    return np.stack([preprocess.load(ImageRef(str(path.absolute()))) for path in paths])


def untrained(encoder: Encoder, *, seed: int) -> Encoder:
    """The same architecture with random weights: what is owed to the architecture alone."""
    import torch

    from vitembed.model.vit import VisionTransformer

    torch.manual_seed(seed)
    return Encoder(VisionTransformer(encoder.vit.config), encoder.preprocess, name="untrained", device=encoder.device)


def emoji_scoreboard(data: EmojiData, edited: Sequence[Path], encoder: Encoder, *, seed: int) -> Scoreboard:
    """Edited copies, the other artist, and the category, for pixels and both encoders."""
    sets = {"google": data.google, "twitter": data.twitter, "edited": edited}
    details: dict[str, Any] = {}
    rows = []
    raw = {name: pixels_of(paths, PIXEL_SIDE) for name, paths in sets.items()}
    mean_pixels = {name: pixel_vectors(images, PIXEL_SIDE) for name, images in raw.items()}
    small_pixels = {name: pixel_vectors(images, 16) for name, images in raw.items()}
    candidates: list[tuple[str, Mapping[str, _Vectors], Mapping[str, _Vectors]]] = [
        ("raw pixels", mean_pixels, small_pixels)
    ]
    for name, each in (("untrained encoder", untrained(encoder, seed=seed)), ("trained encoder", encoder)):
        embedded = {key: each.embed(list(paths), batch_size=256).vectors for key, paths in sets.items()}
        candidates.append((name, embedded, embedded))
    for name, vectors, for_probe in candidates:
        scores = {
            "edited copies": retrieval(vectors["edited"], vectors["google"]),
            "another artist": retrieval(vectors["google"], vectors["twitter"]),
            "category": _category(vectors, for_probe, data, seed=seed),
        }
        details[name] = scores
        rows.append(
            Row(
                name,
                [
                    scores["edited copies"]["recall@1"]["value"],
                    scores["another artist"]["recall@1"]["value"],
                    scores["another artist"]["recall@10"]["value"],
                    scores["category"]["knn5"]["accuracy"],
                    scores["category"]["linear"]["accuracy"],
                ],
            )
        )
    columns = ["(a) edited copy R@1", "(b) artist R@1", "(b) artist R@10", "(c) category 5-NN", "(c) category linear"]
    return Scoreboard(columns, rows, details, _remarks(columns, rows, details))


def _category(
    vectors: Mapping[str, _Vectors], for_probe: Mapping[str, _Vectors], data: EmojiData, *, seed: int
) -> dict[str, Any]:
    """k-NN over both artists' drawings, the linear probe too; the same emoji never judges itself."""
    labels, groups = [*data.categories] * 2, [*data.names] * 2
    both = np.concatenate([vectors["google"], vectors["twitter"]])
    probed = np.concatenate([for_probe["google"], for_probe["twitter"]])
    scores = category_scores(both, labels, groups=groups, linear=False, seed=seed)
    linear = category_scores(probed, labels, groups=groups, ks=(5,), num_folds=2, seed=seed)["linear"]
    return {**scores, "linear": linear}


def _remarks(columns: Sequence[str], rows: Sequence[Row], details: Mapping[str, Any]) -> list[str]:
    majority = details["trained encoder"]["category"]["majority"]["accuracy"]
    notes = [
        "raw pixels: 32x32 (16x16 for the linear probe), mean image subtracted, cosine; "
        f"always answering the largest category would be right for {majority:.3f}",
    ]
    pixels, trained = rows[0].values, rows[-1].values
    for column, pixel, ours in zip(columns, pixels, trained, strict=True):
        if pixel > ours:
            why = ": both artists draw an emoji at the same place, so pixels align" if "artist" in column else ""
            notes.append(f"pixels win on {column} by {pixel - ours:.3f}{why}")
    return notes


def labelled_scoreboard(
    paths: Sequence[Path], labels: Sequence[str], split: Sequence[str] | None, encoder: Encoder, *, seed: int
) -> Scoreboard:
    """k-NN and linear accuracy on a labelled folder, for pixels and both encoders."""
    columns = ["k-NN", "linear"]
    rows, details = [], {}
    candidates = [("raw pixels", pixel_vectors(pixels_of(paths, 16), 16))]
    for name, each in (("untrained encoder", untrained(encoder, seed=seed)), ("trained encoder", encoder)):
        candidates.append((name, each.embed(list(paths), batch_size=256).vectors))
    for name, vectors in candidates:
        report = evaluate(vectors, labels, split=split, seed=seed).to_dict()
        details[name] = report
        rows.append(Row(name, [report["knn"]["accuracy"], report["linear"]["accuracy"]]))
    return Scoreboard(columns, rows, details, ["raw pixels: 16x16, mean image subtracted"])


def retrieval_sheet(
    path: Path,
    title: str,
    note: str,
    queries: Sequence[Path],
    gallery: Sequence[Path],
    encoder: Encoder,
    *,
    k: int = 8,
    num_rows: int = 16,
) -> None:
    """A contact sheet of evenly spaced queries, green where the true match (the same row) was found.

    Writes the HTML page ``path`` and, beside it, its first rows as one PNG.
    """
    query_vectors = _unit(encoder.embed(list(queries), batch_size=256).vectors)
    gallery_vectors = _unit(encoder.embed(list(gallery), batch_size=256).vectors)
    rows = []
    for i in np.linspace(0, len(queries) - 1, num_rows).astype(int):
        scores = gallery_vectors @ query_vectors[i]
        hits = []
        for rank, j in enumerate(np.argsort(-scores, kind="stable")[:k], start=1):
            captions = [f"{rank}. {scores[j]:.3f}", gallery[j].stem]
            hits.append(SheetImage(gallery[j], captions, tone="good" if j == i else None))
        rows.append(SheetRow(SheetImage(queries[i], ["query", queries[i].stem]), hits))
    write_sheet(path, title, rows, note, thumb_px=96)
    sheet_png(path.with_suffix(".png"), title, rows[:6], note, thumb_px=96)


def _unit(vectors: _Vectors) -> _Vectors:
    unit: _Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
