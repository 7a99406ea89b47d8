"""Any text made safe for a page: file names hold whatever their owner, or an attacker, likes."""

from __future__ import annotations

import html

from vitembed.errors import printable


def safe(text: str) -> str:
    """Safe inside an element and inside a quoted attribute; what cannot be shown is written as an escape."""
    return html.escape("".join(sign if sign.isprintable() else _escaped(sign) for sign in printable(text)))


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")
