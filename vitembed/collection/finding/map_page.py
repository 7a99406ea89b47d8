"""The map as one HTML file: a canvas of points, and under the mouse the image. No other file, no network.

Thumbnails lie in a few large pictures (atlases), as JPEG's own tables would be half of each small one.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from importlib.resources import files

import numpy as np
from PIL import Image

from vitembed.collection.finding.map2d import ImageMap
from vitembed.errors import BadImage, counted, printable
from vitembed.images.loader import default_workers
from vitembed.outputs import GENERATOR, PAGE, check_output, write_output
from vitembed.page.picture import thumbnail

MAX_THUMB_PX, MIN_THUMB_PX = 96, 32
ATLAS_SIDE = 16
"""Thumbnails per row and column of an atlas."""
_BYTES_PER_PIXEL = 0.35
"""JPEG of quality 75 takes less than this for photographs (measured 0.2 to 0.3); base64 makes a third more of it."""


def write_map(
    path: str | os.PathLike[str],
    image_map: ImageMap,
    *,
    max_bytes: int = 20_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write the page.

    Args:
        path: The file (``.html``); a page of ours that is there is replaced whole or not at all.
        image_map: What to show.
        max_bytes: About how large the thumbnails may be in all. They are made smaller, down to 32 pixels, and then
            only some of the points get one, evenly spread.
        progress: Called with the number of thumbnails made and the total.

    Returns:
        What to know about the page, one line each.

    Raises:
        DataError: If the file cannot be written.
    """
    check_output(path, PAGE)
    thumb_px, pictured = _plan(image_map, max_bytes)
    atlases, cell_of, num_unreadable = _atlases(image_map, pictured, thumb_px, progress)
    notes = []
    if len(image_map.paths) < image_map.num_images:
        notes.append(f"an even sample of {len(image_map.paths):,} out of {image_map.num_images:,} images")
    if len(pictured) < len(image_map.paths):
        notes.append(f"pictures for {len(pictured):,} of {len(image_map.paths):,} points, to keep the file small")
    if num_unreadable:
        notes.append(f"{counted(num_unreadable, 'image')} without a picture: the file is missing or cannot be read")
    data = {
        "points": [[round(float(x), 4), round(float(y), 4)] for x, y in image_map.points],
        "labels": image_map.labels.tolist(),
        "paths": _shared_start([printable(name) for name in image_map.paths]),
        "cells": cell_of.tolist(),
        "clusters": [{"name": printable(c.name), "example": c.example, "size": c.size} for c in image_map.clusters],
        "thumb": thumb_px,
        "side": ATLAS_SIDE,
        "atlases": atlases,
    }
    page = _page(data, _summary(image_map, notes))
    write_output(path, PAGE, page)
    return notes


def _plan(image_map: ImageMap, max_bytes: int) -> tuple[int, list[int]]:
    """Size of a thumbnail, and the points that get one: the examples of the clusters first of all."""
    num = len(image_map.paths)
    affordable = math.sqrt(max_bytes / (num * _BYTES_PER_PIXEL * 4 / 3))
    thumb_px = int(min(MAX_THUMB_PX, max(MIN_THUMB_PX, affordable)))
    most = max(len(image_map.clusters), int(max_bytes / (thumb_px**2 * _BYTES_PER_PIXEL * 4 / 3)))
    if num <= most:
        return thumb_px, list(range(num))
    examples = [cluster.example for cluster in image_map.clusters]
    spread = np.linspace(0, num - 1, most).astype(int).tolist()
    return thumb_px, sorted({*examples, *spread[: most - len(examples)]})


def _atlases(
    image_map: ImageMap, pictured: list[int], thumb_px: int, progress: Callable[[int, int], None] | None
) -> tuple[list[str], np.ndarray, int]:
    """Data URIs, and for each point its cell over all atlases (-1: none)."""
    cell_of = np.full(len(image_map.paths), -1)
    atlases, num_done, num_cells = list[str](), 0, 0
    per_atlas = ATLAS_SIDE**2
    sheet = Image.new("RGB", (ATLAS_SIDE * thumb_px, ATLAS_SIDE * thumb_px))
    for place, picture in _thumbnails(image_map, pictured, thumb_px):
        num_done += 1
        if progress is not None:
            progress(num_done, len(pictured))
        if picture is None:
            continue
        inside = num_cells % per_atlas
        sheet.paste(picture, (inside % ATLAS_SIDE * thumb_px, inside // ATLAS_SIDE * thumb_px))
        cell_of[place] = num_cells
        num_cells += 1
        if num_cells % per_atlas == 0:
            atlases.append(_data_uri(sheet, per_atlas, thumb_px))
    if num_cells % per_atlas:
        atlases.append(_data_uri(sheet, num_cells % per_atlas, thumb_px))
    return atlases, cell_of, len(pictured) - num_cells


def _thumbnails(image_map: ImageMap, pictured: list[int], thumb_px: int) -> Iterator[tuple[int, Image.Image | None]]:
    from concurrent.futures import ThreadPoolExecutor

    def make(place: int) -> Image.Image | None:
        try:
            small = thumbnail(image_map.paths[place], thumb_px)
        except BadImage:
            return None
        square = Image.new("RGB", (thumb_px, thumb_px), "white")
        square.paste(small, ((thumb_px - small.width) // 2, (thumb_px - small.height) // 2))
        return square

    with ThreadPoolExecutor(default_workers()) as pool:
        # In pieces: all at once would hold every thumbnail in memory.
        for start in range(0, len(pictured), 256):
            part = pictured[start : start + 256]
            yield from zip(part, pool.map(make, part), strict=True)


def _data_uri(sheet: Image.Image, num_cells: int, thumb_px: int) -> str:
    file = io.BytesIO()
    rows = -(-num_cells // ATLAS_SIDE)
    sheet.crop((0, 0, sheet.width, rows * thumb_px)).save(file, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _shared_start(paths: list[str]) -> list[str]:
    """Paths without the folder that all of them share."""
    try:
        start = os.path.commonpath(paths) if all(os.path.isabs(name) for name in paths) else ""  # noqa: PTH117  # text
    except ValueError:
        return paths
    return [name.removeprefix(start).lstrip(os.sep) or name for name in paths]


def _summary(image_map: ImageMap, notes: list[str]) -> str:
    if image_map.kept_variance is not None:
        how = f"PCA: the plane shows {100 * image_map.kept_variance:.0f} % of the variance"
    else:
        how = "UMAP: neighbours are kept, distances mean little"
    return "; ".join(
        [f"{image_map.num_images:,} images in {counted(len(image_map.clusters), 'cluster')} by k-means", how, *notes]
    )


def _page(data: dict[str, object], summary: str) -> str:
    parts = files("vitembed.collection.finding")
    script = parts.joinpath("map.js").read_text(encoding="utf-8")
    style = parts.joinpath("map.css").read_text(encoding="utf-8")
    # Only this very script runs. In the data no "<" may stand, lest a file name closes the element.
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{GENERATOR}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>Map of images</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>Map of images</h1><p>{html.escape(summary)}</p></header>\n<main>\n<div id="stage">'
        '<canvas id="map" tabindex="0" aria-label="Map of images: hover or tap a point, drag to move, scroll to zoom">'
        '</canvas><div id="card" hidden><canvas id="picture"></canvas><b></b><span></span></div></div>\n'
        '<nav id="clusters" aria-label="Clusters"></nav>\n</main>\n'
        f'<script type="application/json" id="data">{text}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )
