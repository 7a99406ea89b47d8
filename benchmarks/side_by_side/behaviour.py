"""What a damaged file, a photo on its side and a kill do to an index: counted in the index itself, not believed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from side_by_side.folders import with_bomb, with_truncated, with_turned
from side_by_side.measure import run
from side_by_side.tools import Failed, Tool


def damaged_files(tool: Tool, photos: Path, scratch: Path, query: Path) -> dict[str, str]:
    """Good images missing from the index, and vectors given to what is no whole image."""
    rows = {}
    for name, make, bad in (
        ("a truncated JPEG among them", with_truncated, "truncated.jpg"),
        ("a PNG of 400 megapixels among them", with_bomb, "bomb.png"),
    ):
        place = scratch / f"{tool.name} {bad}"
        place.mkdir()
        folder = make(place / "photos", photos)
        state = place / "state"
        tool.prepare(state)
        try:
            tool.indexed(folder, state, query)
            end = ""
        except Failed as error:
            end = f", ended with {_errors(error)}"
        names = {Path(path).name for path in tool.vectors(state)}
        num_lost = sum(path.name not in names for path in photos.iterdir())
        wrong = f", {bad} got a vector" if bad in names else ""
        rows[name] = f"{num_lost} of {len(list(photos.iterdir()))} lost{wrong}{end}"
    return rows


def exif_orientation(tool: Tool, photos: Path, scratch: Path, query: Path) -> str:
    """Whether a photo that EXIF turns upright lies nearer to its upright copy than to the same pixels without EXIF."""
    place = scratch / f"{tool.name} turned"
    place.mkdir()
    folder, *files = with_turned(place / "photos", photos)
    tool.prepare(place / "state")
    try:
        tool.indexed(folder, place / "state", query)
    except Failed as error:
        return f"could not: {_errors(error)}"
    vectors = {Path(path).name: vector for path, vector in tool.vectors(place / "state").items()}
    upright, turned, sideways = (vectors[file.name] / np.linalg.norm(vectors[file.name]) for file in files)
    near, far = turned @ upright, turned @ sideways
    return f"{'yes' if near > far else 'no'} (cosine with upright {near:.4f}, with sideways {far:.4f})"


def _errors(error: Failed) -> str:
    """The exceptions that a tool's processes ended with, in their order."""
    lines = re.findall(r"^[\w.]*(?:Error|Exception|Warning)\b.*", str(error), re.MULTILINE)
    return "; ".join(line[:100] for line in dict.fromkeys(lines)) or str(error)[-100:]


def killed(tool: Tool, photos: Path, scratch: Path, query: Path, *, seconds: float) -> str:
    """What a SIGKILL leaves, and whether the next run makes the index whole."""
    state = scratch / f"{tool.name} killed"
    tool.prepare(state)
    left = seconds
    for command in tool.index(photos, state, query):
        done = run(command, kill_after=left)
        left -= done.wall
        if done.status != 0:
            break
    else:
        return f"done before {seconds:.0f} s were over"
    num_kept = len(tool.vectors(state))
    tool.indexed(photos, state, query)
    num_images = len(list(photos.iterdir()))
    whole = "whole" if len(tool.vectors(state)) == num_images else "NOT whole"
    return f"{num_kept:,} of {num_images:,} kept; {whole} after the next run"
