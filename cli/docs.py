"""``python -m vitembed_cli.docs FILE``: writes docs/cli.md from the commands' own help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

from .main import COMMANDS, app

WIDTH = 100
_HEAD = """# Command line

Made from the commands' own help by `make docs`; a test keeps it current.
"""


def command_line_docs() -> str:
    """The help of every command as Markdown, whatever terminal this runs in."""
    group: Any = get_command(app)  # a group; typed by Typer as any command
    settings = {"terminal_width": WIDTH, "max_content_width": WIDTH, "color": False}
    top = group.make_context("vitembed", ["info"], **settings)
    sections = [_HEAD, _section("vitembed", group.get_help(top))]
    for name in COMMANDS:
        command = group.get_command(top, name)
        context = command.make_context(name, [], parent=top, resilient_parsing=True, **settings)
        sections.append(_section(f"vitembed {name}", command.get_help(context)))
    return "\n".join(sections)


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(command_line_docs(), encoding="utf-8")
