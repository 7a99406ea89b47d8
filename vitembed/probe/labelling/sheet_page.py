"""A sheet as one HTML page: pictures with a button for each class, and the answers as a CSV by another button.

No server, no network, no other file. The page runs its own script and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from vitembed.csv_text import csv_bytes
from vitembed.errors import BadImage, counted, printable
from vitembed.outputs import GENERATOR, PAGE, check_output, write_output
from vitembed.page.picture import jpeg_uri, thumbnail
from vitembed.page.safe_text import safe
from vitembed.probe.labelling.class_names import UNSURE
from vitembed.probe.labelling.session import LabelSession
from vitembed.probe.labelling.sheet_csv import image_key

ANSWERS_NAME = "answers.csv"


def write_page_sheet(
    path: str | os.PathLike[str], session: LabelSession, rows: Sequence[int] | np.ndarray, *, thumb_px: int = 320
) -> list[BadImage]:
    """Write the page.

    Args:
        path: The file (``.html``); a page of ours that is there is replaced whole or not at all.
        session: Whose images, classes and suggestions are shown.
        rows: The images, in their order.
        thumb_px: Longer side of a picture. One takes about 15 KB.

    Returns:
        Images that can no longer be read: they stand there with the reason in place of a picture.

    Raises:
        DataError: If the file cannot be written.
    """
    check_output(path, PAGE)
    numbers = np.asarray(rows).tolist()
    bad = list[BadImage]()
    cards = []
    for row, hint in zip(numbers, session.suggestions(numbers), strict=True):
        name = session.ids[row]
        picture, problem = "", ""
        try:
            picture = jpeg_uri(thumbnail(name, thumb_px))
        except BadImage as error:
            bad.append(error)
            problem = error.reason
        cards.append(
            {
                "name": _shown(name),
                "picture": picture,
                "problem": printable(problem),
                "suggested": None if hint is None else session.classes.index(hint.label),
                "percent": None if hint is None else round(100 * hint.probability),
                # The start of its line of the CSV, as bytes: no text of a page can hold a path that is not UTF-8.
                "start": base64.b64encode(csv_bytes([[name]]).rstrip(b"\n")).decode("ascii"),
                "key": image_key(name),
            }
        )
    classes = [
        {"name": name, "cell": base64.b64encode(csv_bytes([[name]]).rstrip(b"\n")).decode("ascii")}
        for name in session.classes
    ]
    sheet = hashlib.sha256("\n".join([*session.classes, *(str(card["key"]) for card in cards)]).encode()).hexdigest()
    data = {"cards": cards, "classes": classes, "unsure": UNSURE, "file": ANSWERS_NAME, "sheet": sheet[:16]}
    write_output(path, PAGE, _page(data, len(cards)))
    return bad


def _shown(name: str) -> str:
    """The last parts of a path, which tell images apart."""
    parts = name.replace("\\", "/").split("/")
    return printable("/".join(parts[-2:]))


def _page(data: dict[str, object], num: int) -> str:
    parts = files("vitembed.probe.labelling")
    script = parts.joinpath("sheet.js").read_text(encoding="utf-8")
    style = parts.joinpath("sheet.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    # No "<" may stand in the data, lest a file name closes the element.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = f"{counted(num, 'image')} to label"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"{GENERATOR}\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{safe(policy)}">\n'
        f"<title>{safe(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{safe(title)}</h1><p id="progress" aria-live="polite"></p>'
        f'<progress id="bar" value="0"></progress><button id="save">Save {ANSWERS_NAME}</button></header>\n'
        '<p id="help">Click a class, or type its number; <kbd>Enter</kbd> takes the suggestion, <kbd>0</kbd> is none '
        "of these or cannot tell, <kbd>Backspace</kbd> takes the last answer back, arrow keys move. Then save, and "
        f"give the file back: <code>vitembed label ... --answers {ANSWERS_NAME}</code></p>\n"
        '<main id="cards"></main>\n<noscript>This page needs JavaScript.</noscript>\n'
        f'<script type="application/json" id="data">{text}</script>\n<script>{script}</script>\n</body>\n</html>\n'
    )
