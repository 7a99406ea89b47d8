"""The tour that ``vitembed demo`` gives: the users' own commands on real data, then a table and pictures."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitembed.demo.datasets import cifar10, fashion_mnist, imagenette
from vitembed.demo.edits import write_edited_copies
from vitembed.demo.emoji import emoji
from vitembed.errors import DataError, VitembedError, printable
from vitembed.pretrain.keep.files import RUN_FILE
from vitembed.workspace import OWN_MODEL, Workspace

MARKER = "demo.json"
_MADE_BY = {"made_by": "vitembed demo"}
PRETRAIN_BUDGET = "220s"
LABELLED_BUDGET = "5m"
LABELLED_IMAGES = 12_000
SEED = 0

_LABELLED: dict[str, Callable[..., Path]] = {
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "imagenette": imagenette,
}


def run_tour(out: Path, *, dataset: str = "emoji", data_root: Path | None = None, budget: str | None = None) -> None:
    """Type the users' commands one after another in ``out`` and show what comes of them.

    Leaves ``results.json``, ``results.md`` and contact sheets in ``out``.

    Args:
        out: A folder of an earlier demo, an empty or a new one.
        dataset: emoji (ships with the package), fashion-mnist, cifar10 or imagenette (downloaded by torchvision).
        data_root: Where the data set lies already.
        budget: Time budget of the pretraining, such as ``60s``.

    Raises:
        DataError: If ``out`` holds something else, or the data set cannot be had.
        VitembedError: If one of the commands fails.
    """
    started = time.monotonic()
    console = Console(width=120 if not sys.stdout.isatty() else None, highlight=False)
    out = _prepare(out)
    if dataset == "emoji":
        _emoji_tour(out, console, budget or PRETRAIN_BUDGET)
    elif dataset in _LABELLED:
        folder = _LABELLED[dataset](out / dataset, data_root=data_root, max_images=LABELLED_IMAGES, seed=SEED)
        _labelled_tour(out, folder, console, budget or LABELLED_BUDGET)
    else:
        raise DataError(f"unknown data set {dataset!r}: expected emoji, {', '.join(_LABELLED)}")
    minutes = (time.monotonic() - started) / 60
    console.print(f"\nDone in {minutes:.1f} minutes. Everything lies in {escape(printable(out))}")


def _prepare(out: Path) -> Path:
    """Make the folder, or check that it is of an earlier demo."""
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise DataError(f"{printable(out)} is no folder: name another with --out")
    if out.exists() and any(out.iterdir()) and not _is_demo(out):
        raise DataError(f"{printable(out)} is not empty and not from an earlier demo: name another folder with --out")
    (out / ".vitembed").mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(json.dumps(_MADE_BY) + "\n", encoding="utf-8")
    return out


def _again(out: Path) -> tuple[list[str], list[str]]:
    """What pretrain and index need to be run once more in an earlier demo's folder: both keep what is there."""
    place = Workspace(out)
    trained = place.model_dir.exists() or (place.run_named(OWN_MODEL) / RUN_FILE).exists()
    return ["--fresh"] if trained else [], ["--rebuild"] if place.index_dir.exists() else []


def _is_demo(out: Path) -> bool:
    try:
        return bool(json.loads((out / MARKER).read_bytes()) == _MADE_BY)
    except (OSError, ValueError):
        return False


def _emoji_tour(out: Path, console: Console, budget: str) -> None:
    data = emoji(out / "emoji")
    edited = [out / "edited" / path.parent.name / f"{path.stem}.png" for path in data.google]
    if not all(path.is_file() for path in edited):
        edited = write_edited_copies(data.google, out / "edited", np.random.default_rng(SEED))
    console.print(
        f"{len(data)} emoji, each drawn by Google and by Twitter, and an edited copy (cropped, tinted, turned) of each "
        "of Google's.\nNo labels are used to train. What a user would type:\n"
    )
    google, twitter = _relative(out, data.google[0].parents[1]), _relative(out, data.twitter[0].parents[1])
    example = _relative(out, edited[data.names.index("see_no_evil")])
    fresh, rebuild = _again(out)
    _type(out, console, ["pretrain", google, twitter, "--config", "emoji", "--time-budget", budget, *fresh])
    _type(out, console, ["index", google, twitter, *rebuild])
    _type(out, console, ["search", example, "-k", "5", "--html", "search.html"])
    _type(out, console, ["probe", google])

    from vitembed.demo.scoreboard import emoji_scoreboard, retrieval_sheet
    from vitembed.model.encoder import load

    console.print("How good is it? Measured against exact ground truth:\n")
    encoder = load(out / ".vitembed" / "model")
    board = emoji_scoreboard(data, edited, encoder, seed=SEED)
    _show(out, console, board.columns, [(row.name, row.values) for row in board.rows], board.notes, board.to_dict())
    retrieval_sheet(
        out / "edited-copies.html",
        "Edited copies find their originals",
        "Query: a cropped, tinted, turned copy. Green: its original, among 1,906.",
        edited,
        data.google,
        encoder,
    )
    retrieval_sheet(
        out / "another-artist.html",
        "Google's drawing finds Twitter's",
        "Query: Google's drawing. Green: Twitter's drawing of the same emoji, among 1,906.",
        data.google,
        data.twitter,
        encoder,
    )
    _pictures(out)
    sheets = "search.html edited-copies.html another-artist.html reconstruction.png neighbours.png"
    console.print(f"To look at: {', '.join(sheets.split())}")


def _labelled_tour(out: Path, folder: Path, console: Console, budget: str) -> None:
    name = _relative(out, folder)
    query = sorted((folder / "test").glob("*/*"))[0]
    fresh, rebuild = _again(out)
    _type(out, console, ["pretrain", f"{name}/train", "--time-budget", budget, *fresh])
    _type(out, console, ["index", f"{name}/train", *rebuild])
    _type(out, console, ["search", _relative(out, query), "-k", "5", "--html", "search.html"])
    _type(out, console, ["probe", name])

    from vitembed.demo.scoreboard import labelled_scoreboard
    from vitembed.model.encoder import load

    encoder = load(out / ".vitembed" / "model")
    paths = sorted(path for path in folder.glob("*/*/*") if path.is_file())
    labels, split = [path.parent.name for path in paths], [path.parents[1].name for path in paths]
    board = labelled_scoreboard(paths, labels, split, encoder, seed=SEED)
    _show(out, console, board.columns, [(row.name, row.values) for row in board.rows], board.notes, board.to_dict())
    _pictures(out)
    console.print("To look at: search.html, reconstruction.png, neighbours.png")


def _type(out: Path, console: Console, words: Sequence[str]) -> None:
    """Show a command, run it in ``out`` and show what it prints."""
    console.print(f"[bold]$ vitembed {escape(printable(shlex.join(words)))}[/bold]")
    started = time.monotonic()
    environment = {key: value for key, value in os.environ.items() if key != "VITEMBED_WORKSPACE"}
    done = subprocess.run([sys.executable, "-m", "vitembed_cli", *words], cwd=out, env=environment, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode != 0:
        raise VitembedError(
            f"vitembed {shlex.join(words)} ended with exit code {done.returncode}: see its message above"
        )
    console.print(f"[dim]({time.monotonic() - started:.0f} s)[/dim]\n")


def _show(
    out: Path,
    console: Console,
    columns: Sequence[str],
    rows: Sequence[tuple[str, list[float]]],
    notes: Sequence[str],
    everything: dict[str, object],
) -> None:
    """Print the table; keep it as Markdown and JSON."""
    table = Table(title="Results, 0..1 (95 % intervals in results.json)", title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in rows:
        best = [value == max(other[i] for _, other in rows) for i, value in enumerate(values)]
        cells = [f"[bold]{v:.3f}[/bold]" if top else f"{v:.3f}" for v, top in zip(values, best, strict=True)]
        table.add_row(name, *cells)
    console.print(table)
    for note in notes:
        console.print(f"- {escape(printable(note))}")
    lines = ["| |" + "|".join(columns) + "|", "|---|" + "---:|" * len(columns)]
    lines += [f"|{name}|" + "|".join(f"{value:.3f}" for value in values) + "|" for name, values in rows]
    markdown = "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"
    (out / "results.md").write_text(markdown, encoding="utf-8")
    (out / "results.json").write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")


def _pictures(out: Path) -> None:
    """Copy the last pictures of the training to where they are easy to find."""
    for kind in ("reconstruction", "neighbours"):
        made = sorted((out / ".vitembed" / "runs" / "model" / "pictures").glob(f"{kind}-*.png"))
        if made:
            shutil.copyfile(made[-1], out / f"{kind}.png")


def _relative(out: Path, path: Path) -> str:
    return path.absolute().relative_to(out).as_posix()
