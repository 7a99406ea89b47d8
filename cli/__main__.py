"""``python -m vitembed_cli``: the same as the command ``vitembed``."""

from __future__ import annotations

from .main import app

app(prog_name="vitembed")
