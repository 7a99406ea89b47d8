"""Pictures in a terminal: by the protocol that it speaks, and by coloured half blocks where it speaks none."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from PIL import Image

Protocol = Literal["kitty", "iterm", "sixel", "blocks"]
CELL_PX = (10, 20)
"""Size of a character cell that pictures are made for; terminals differ, and scale what they are told."""
_CHUNK = 4096  # bytes of base64 that kitty takes at once
_SIXEL_COLOURS = 255


def choose_protocol(environment: Mapping[str, str]) -> Protocol:
    """What the terminal of these environment variables speaks, as far as it says; else half blocks.

    Inside tmux and screen pictures get lost, so there it is half blocks too.
    """
    terminal, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or terminal.startswith(("screen", "tmux")):
        return "blocks"
    if "KITTY_WINDOW_ID" in environment or terminal in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "vscode", "mintty"):
        return "iterm"
    if terminal.startswith(("foot", "mlterm", "yaft", "contour")) or "sixel" in terminal:
        return "sixel"
    return "blocks"


def draw(image: Image.Image, protocol: Protocol, *, columns: int = 24) -> str:
    """Text that shows an RGB image when it is written to the terminal, ``columns`` cells wide at most.

    Args:
        image: Any size; made smaller, never larger than twelve rows.
        protocol: What the terminal speaks.
        columns: Cells.
    """
    rows = columns // 2
    if protocol == "blocks":
        return _blocks(_fitted(image, columns, 2 * rows))
    small = _fitted(image, columns * CELL_PX[0], rows * CELL_PX[1])
    if protocol == "sixel":
        return _sixel(small)
    file = io.BytesIO()
    small.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(file.getvalue())};width={small.width}px:{data}\x07\n"
    parts = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    controls = ["a=T,f=100,"] + [""] * (len(parts) - 1)
    more = [1] * (len(parts) - 1) + [0]
    return "".join(f"\x1b_G{c}m={m};{part}\x1b\\" for c, m, part in zip(controls, more, parts, strict=True)) + "\n"


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((width, height), Image.Resampling.LANCZOS)
    return small


def _blocks(image: Image.Image) -> str:
    """Two pixels a cell: the upper one is the colour of the block, the lower one that of its ground."""
    pixels = np.asarray(image)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    lines = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m\u2580"
            for a, b in zip(upper, lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m\n")
    return "".join(lines)


def _sixel(image: Image.Image) -> str:
    """Bands six pixels high, one pass per colour in each; lengths of runs as ``!n``.

    Source: DEC VT330/VT340 manual, chapter 14.
    """
    indexed = image.quantize(_SIXEL_COLOURS)
    palette = np.array(indexed.getpalette()).reshape(-1, 3)
    pixels = np.asarray(indexed)
    colours = "".join(
        f"#{place};2;{r * 100 // 255};{g * 100 // 255};{b * 100 // 255}" for place, (r, g, b) in enumerate(palette)
    )
    bands = []
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        passes = []
        for colour in np.unique(band):
            bits = ((band == colour) << np.arange(len(band))[:, None]).sum(axis=0)
            passes.append(f"#{colour}" + _runs((bits + 63).tolist()))
        bands.append("$".join(passes))
    return f'\x1bPq"1;1;{image.width};{image.height}{colours}{"-".join(bands)}\x1b\\\n'


def _runs(codes: Iterable[int]) -> str:
    parts, last, length = list[str](), -1, 0
    for code in [*codes, -1]:
        if code == last:
            length += 1
            continue
        if length:
            parts.append(f"!{length}{chr(last)}" if length > 3 else chr(last) * length)
        last, length = code, 1
    return "".join(parts)
