"""Pictures in terminals: what is sent is read back by hand."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vitembed.collection.finding.terminal import choose_protocol, draw


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "foot-extra"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({}, "blocks"),
    ],
)
def test_protocol(environment, protocol):
    assert choose_protocol(environment) == protocol


def test_blocks_hold_two_pixels_a_cell(image):
    text = draw(image, "blocks", columns=24)
    lines = text.splitlines()
    colours = [re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m", line) for line in lines]
    small = image.copy()
    small.thumbnail((24, 24), Image.Resampling.LANCZOS)
    pixels = np.asarray(small)
    shown = np.array(colours, dtype=int).reshape(len(lines), 24, 2, 3).transpose(0, 2, 1, 3).reshape(-1, 24, 3)
    assert np.array_equal(shown[: len(pixels)], pixels)
    assert all(line.endswith("\x1b[0m") for line in lines)


def test_kitty_sends_a_png_in_pieces(image):
    text = draw(image, "kitty", columns=40)
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert len(parts) > 1
    assert parts[0][0] == "a=T,f=100,m=1"
    assert [controls for controls, _ in parts[1:]] == ["m=1"] * (len(parts) - 2) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in parts)
    with Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in parts)))) as shown:
        assert shown.size == (100, 60)


def test_iterm_sends_a_png(image):
    data = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+);width=100px:(.*)\x07\n", draw(image, "iterm"))
    content = base64.b64decode(data[2])
    assert len(content) == int(data[1])
    with Image.open(io.BytesIO(content)) as shown:
        assert np.array_equal(np.asarray(shown), np.asarray(image))


def test_sixel_draws_each_pixel_in_its_colour():
    colours = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [255, 255, 255]], np.uint8)
    pixels = colours[np.random.default_rng(0).integers(0, 4, (13, 9))]
    text = draw(Image.fromarray(pixels), "sixel")
    head, body = re.fullmatch(r'\x1bPq"1;1;9;13((?:#\d+;2;\d+;\d+;\d+)+)(.*)\x1b\\\n', text, re.DOTALL).groups()
    palette = {int(n): (int(r), int(g), int(b)) for n, r, g, b in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", head)}
    shown = np.zeros((18, 9, 3), int)
    for top, band in enumerate(body.split("-")):
        for one in band.split("$"):
            colour, codes = re.fullmatch(r"#(\d+)(.*)", one, re.DOTALL).groups()
            row = "".join(c * int(n or 1) for n, c in re.findall(r"(?:!(\d+))?([?-~])", codes))
            for x, code in enumerate(row):
                for bit in range(6):
                    if (ord(code) - 63) >> bit & 1:
                        shown[6 * top + bit, x] = palette[int(colour)]
    assert np.abs(shown[:13] - pixels.astype(int) * 100 // 255).max() <= 1
    assert not shown[13:].any()
