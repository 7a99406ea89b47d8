"""Why two images match: which parts of each the agreement of their vectors rests on, and which parts answer each other.

Two things are measured, both on what the model sees:

- **Contribution.** Parts of one image are hidden at random, half of it at a time, and the cosine with the other image's
  whole vector is taken each time. A linear fit of these cosines to what was visible says what each part adds to the
  agreement. This holds for any pooling, the cls vector too, as it asks the vector itself and reads no attention map. A
  ViT does not compute hidden patches at all, just as in pretraining; other models see the image's mean colour there.
- **Answering patches.** Pairs of patches, one of each image, that are each other's nearest by the cosine of their patch
  vectors (less the mean of all), taken in the order of likeness times contribution on both sides.

Source: random masks as in Petsiuk et al. 2018, arXiv:1806.07421 (RISE), with a least-squares fit in place of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vitembed.embeddings import unit_rows
from vitembed.errors import ConfigError
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer

NUM_MASKS = 128
"""Hidden halves per image; each comes with its complement, so that every part is hidden equally often."""
MAX_CELLS = 8
"""Parts per side that are told apart: finer grids need more masks than one waits for."""
_GRID_WITHOUT_PATCHES = 7
_BATCH = 32
_RIDGE = 0.1


@dataclass(frozen=True)
class Match:
    """Two patches that answer each other; places are row and column on the grid of patches."""

    query: tuple[int, int]
    hit: tuple[int, int]
    cosine: float


@dataclass(frozen=True)
class Explanation:
    """What the agreement of two images rests on."""

    score: float
    """Cosine of their vectors."""
    query: np.ndarray
    """Contribution of each part of the query, in cosine, float32 ``[g, g]``; below 0 it tells them apart."""
    hit: np.ndarray
    """The same for the hit."""
    grid: int
    """Patches per side, on which the matches lie."""
    matches: list[Match]
    """Best first; none for models without patch vectors."""


class Explainer:
    """Explains one query against any number of hits; what concerns the query alone is computed once.

    Args:
        encoder: Of any architecture.
        query: Pixels as ``encoder.preprocess`` makes them, uint8 ``[s, s, c]``.
        num_masks: Even.
        seed: Of the masks.

    Raises:
        ConfigError: If the encoder merges tokens: then there are no patches to look at.
    """

    def __init__(self, encoder: Encoder, query: np.ndarray, *, num_masks: int = NUM_MASKS, seed: int = 0) -> None:
        self._encoder = encoder
        self._vector, self._patches = _look(encoder, query)
        num_patches = len(self._patches)
        self.grid = math.isqrt(num_patches) if num_patches > 1 else _GRID_WITHOUT_PATCHES
        if num_patches > 1 and self.grid**2 != num_patches:
            raise ConfigError(f"{num_patches} patches lie on no square: a heat map needs one, without merged tokens")
        self._cells = _cells(self.grid)
        self._keep = _masks(self.grid, self._cells, num_masks, seed)
        self._masked = self._vectors_of_parts(query)

    def explain(self, hit: np.ndarray, *, max_matches: int = 6) -> Explanation:
        """What query and hit (uint8 ``[s, s, c]``) have in common."""
        vector, patches = _look(self._encoder, hit)
        of_query = self._contribution(self._masked @ vector)
        of_hit = self._contribution(self._vectors_of_parts(hit) @ self._vector)
        matches = _answering(self._patches, patches, of_query, of_hit, self.grid, max_matches)
        return Explanation(float(self._vector @ vector), of_query, of_hit, self.grid, matches)

    def _contribution(self, cosines: np.ndarray) -> np.ndarray:
        """Fit ``cosines`` ``[m]`` to the share of each cell that was visible; spread over the patches' grid."""
        num_cells = int(self._cells.max()) + 1
        sizes = np.bincount(self._cells, minlength=num_cells)
        shares = np.stack([np.bincount(self._cells[keep], minlength=num_cells) for keep in self._keep]) / sizes
        design = shares - shares.mean(axis=0)
        normal = design.T @ design + _RIDGE * np.eye(num_cells)
        weights = np.linalg.solve(normal, design.T @ (cosines - cosines.mean()))
        # Half of the image is visible each time, so what shows is how the parts differ; they sum to about 0.
        contribution: np.ndarray = weights[self._cells].reshape(self.grid, self.grid).astype(np.float32)
        return contribution

    def _vectors_of_parts(self, pixels: np.ndarray) -> np.ndarray:
        """Unit vectors of the image with half of it hidden, float32 ``[m, d]``."""
        parts = [_partial(self._encoder, pixels, keep, self.grid) for keep in self._batches()]
        return unit_rows(np.concatenate(parts))

    def _batches(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._keep), _BATCH):
            yield self._keep[start : start + _BATCH]


def _look(encoder: Encoder, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vector ``[d]`` and patch vectors ``[n, d]`` of one image, float32."""
    with torch.inference_mode():
        tokens = encoder.tokens(torch.from_numpy(pixels[None]).to(encoder.device))
        vector = encoder.pooled(tokens).float().cpu().numpy()
        return unit_rows(vector)[0], tokens.patches[0].float().cpu().numpy()


def _partial(encoder: Encoder, pixels: np.ndarray, keep: np.ndarray, grid: int) -> np.ndarray:
    """Vectors of the parts ``keep`` int64 ``[b, k]`` of an image, float32 ``[b, d]``."""
    if type(encoder.vit) is VisionTransformer:
        images = torch.from_numpy(pixels[None]).to(encoder.device).expand(len(keep), -1, -1, -1)
        mean, std = (
            torch.tensor(values, device=encoder.device).reshape(1, -1, 1, 1)
            for values in (encoder.preprocess.mean, encoder.preprocess.std)
        )
        with torch.inference_mode():
            normalised = (images.permute(0, 3, 1, 2).float().div(255.0) - mean) / std
            tokens = encoder.vit(normalised, torch.from_numpy(keep).to(encoder.device))
            vectors: np.ndarray = encoder.pooled(tokens).float().cpu().numpy()
        return vectors
    rows = np.arange(len(pixels)) * grid // len(pixels)
    patch_of = rows[:, None] * grid + rows[None, :]
    visible = np.stack([np.isin(patch_of, part) for part in keep])[..., None]
    mean = pixels.reshape(-1, pixels.shape[-1]).mean(axis=0).astype(np.uint8)
    return encoder.embed_arrays(np.where(visible, pixels[None], mean).astype(np.uint8))


def _cells(grid: int) -> np.ndarray:
    """Which of at most ``MAX_CELLS`` squared parts each patch belongs to, int64 ``[grid * grid]``."""
    side = min(grid, MAX_CELLS)
    line = np.arange(grid) * side // grid
    return (line[:, None] * side + line[None, :]).reshape(-1)


def _masks(grid: int, cells: np.ndarray, num_masks: int, seed: int) -> np.ndarray:
    """Patches that stay visible, int64 ``[num_masks, n // 2]``: cells in random order, and the other half of them."""
    rng = np.random.default_rng(seed)
    num, half = grid * grid, grid * grid // 2
    kept = []
    for _ in range(num_masks // 2):
        order = rng.permutation(int(cells.max()) + 1)
        ranked = np.argsort(order[cells] + rng.random(num) / 2)  # whole cells, one after the other
        kept += [np.sort(ranked[:half]), np.sort(ranked[num - half :])]
    return np.stack(kept)


def _answering(
    query: np.ndarray, hit: np.ndarray, of_query: np.ndarray, of_hit: np.ndarray, grid: int, max_matches: int
) -> list[Match]:
    if len(query) != grid * grid:
        return []
    mean = np.concatenate([query, hit]).mean(axis=0)
    first, second = query - mean, hit - mean
    first /= np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-12)
    second /= np.maximum(np.linalg.norm(second, axis=1, keepdims=True), 1e-12)
    cosines = first @ second.T
    forward, backward = cosines.argmax(axis=1), cosines.argmax(axis=0)
    mutual = np.flatnonzero(backward[forward] == np.arange(len(forward)))
    counts = np.sqrt(np.maximum(of_query.reshape(-1)[mutual], 0) * np.maximum(of_hit.reshape(-1)[forward[mutual]], 0))
    worth = counts * np.maximum(cosines[mutual, forward[mutual]], 0)
    chosen = list[Match]()
    for place in np.argsort(-worth, kind="stable"):
        if worth[place] <= 0 or len(chosen) == max_matches:
            break
        row = int(mutual[place])
        column = int(forward[row])
        match = Match(divmod(row, grid), divmod(column, grid), float(cosines[row, column]))
        # On a fine grid the neighbours of a match say the same once more.
        if all(_distance(match.query, other.query) > grid // 8 for other in chosen):
            chosen.append(match)
    return chosen


def _distance(first: tuple[int, int], second: tuple[int, int]) -> int:
    return max(abs(first[0] - second[0]), abs(first[1] - second[1]))
