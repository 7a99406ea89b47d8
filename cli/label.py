"""``vitembed label``: ask a person about few images, and learn from the answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vitembed.config.ranges import SEED
from vitembed.errors import DataError, VitembedError, counted
from vitembed.workspace import WORKSPACE_DIR, find_workspace

from .encoders import index_encoder, index_facts, note_model
from .options import Images, JsonOption, ModelOption, ReportOption, StrictOption, WorkspaceOption
from .output import finish, note, progress_bar, say, say_json, shown

if TYPE_CHECKING:
    from vitembed.embeddings import Embeddings
    from vitembed.errors import BadImage
    from vitembed.model.encoder import Encoder
    from vitembed.model.late import LateEncoder
    from vitembed.probe.labelling.session import LabelSession
    from vitembed.probe.labelling.terminal_dialog import Terminal

NUM_CHANGED_SHOWN = 20


def label(
    images: Images,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="A,B,...", help="Names of the classes. [default: those of the labels file]"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE.csv", help="Where the answers are kept. [default: .vitembed/labels/FOLDER.csv]"
        ),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="FILE", help="Ask by a page (.html) or table (.csv) to fill in, not here."),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", metavar="FILE.csv", help="Take a filled sheet back.")
    ] = None,
    num: Annotated[
        int | None,
        typer.Option("-n", "--num", min=1, metavar="N", help="Images asked at a time. [default: 8, of a sheet 24]"),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Keep the probe as it is at the end, for vitembed classify."),
    ] = None,
    precision: Annotated[
        float,
        typer.Option(
            "--precision", metavar="SHARE", help="How often answers must be right from which classify does not abstain."
        ),
    ] = 0.95,
    open_images: Annotated[bool, typer.Option("--open", help="Open each image in a window too.")] = False,
    graphics: Annotated[
        Literal["auto", "kitty", "iterm", "sixel", "blocks"],
        typer.Option("--graphics", metavar="KIND", help="How a terminal draws: auto, kitty, iterm, sixel or blocks."),
    ] = "auto",
    seed: Annotated[
        int | None,
        typer.Option("--seed", min=0, max=SEED.high, metavar="N", help="Decides which images are drawn at random."),
    ] = None,
    model: ModelOption = None,
    json: JsonOption = False,
    strict: StrictOption = False,
    report: ReportOption = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Label images, few and well chosen, until a probe knows the rest.

    Asks about typical images first, then about those that the probe is unsure of; one in five is drawn at random, and
    those alone tell which accuracy to expect. Answers are kept at once in a plain CSV that vitembed probe reads; the
    same command goes on where it stopped. Asks in the terminal: a number or the beginning of a class, Enter for the
    suggestion, ? none of these, s skip, u undo, +NAME a new class, o open the image, q leave. The images are indexed on
    the way, so they can be searched afterwards.

    In a filled sheet an empty label is no answer and ? is none of the classes; later answers replace earlier ones.

    \b
    Examples:
      vitembed label ./images --classes cat,dog,other
      vitembed label ./images --sheet ask.html
      vitembed label ./images --answers answers.csv --sheet ask.html
      vitembed label ./images --save pets.safetensors
    """  # noqa: D301
    from vitembed.outputs import LABELS, PAGE, PROBE, REPORT, SHEET, check_outputs
    from vitembed.probe.labelling.class_names import NO_CLASSES, checked_classes
    from vitembed.probe.labelling.session import LabelSession
    from vitembed.probe.labelling.terminal_dialog import dialog, progress_lines

    if sheet is not None and sheet.suffix.lower() not in (".html", ".htm", ".csv"):
        raise typer.BadParameter(f"{shown(sheet)}: expected a name that ends in .html or .csv", param_hint="--sheet")
    is_table = sheet is not None and sheet.suffix.lower() == ".csv"
    given_labels = labels if labels is not None and labels.parent.is_dir() else None
    check_outputs((sheet, SHEET if is_table else PAGE), (save, PROBE), (report, REPORT), (given_labels, LABELS))
    if not 0 < precision <= 1:
        raise typer.BadParameter(f"{precision:g}: expected a share above 0 and at most 1", param_hint="--precision")
    names = None if classes is None else checked_classes(classes.split(","))
    labels = labels or _default_labels(images[0], workspace)
    if names is None and not labels.is_file() and not labels.with_name(f"{labels.name}.json").is_file():
        raise DataError(NO_CLASSES)
    encoder, vectors, bad, odd = _indexed(images, model, workspace)
    session = LabelSession(vectors, names, labels_file=labels, seed=seed)
    session.save()
    for line in session.notes:
        note(line)
    problems: Callable[[], None] = _nothing
    if answers is not None:
        problems = _take(session, answers)
    if sheet is None and answers is None:
        if not dialog(session, _terminal(graphics), num=num or 8, always_open=open_images):
            note(
                f"stopped; run the same command to continue "
                f"({counted(session.num_labelled, 'label')} in {shown(labels)})"
            )
    elif sheet is not None:
        _write_sheet(session, sheet, num or 24)
    if save is not None:
        _save_probe(session, encoder.encoder(), save, precision)
    if json:
        say_json(_document(session, labels))
    elif sheet is not None or answers is not None:
        for line in progress_lines(session):
            say(line)
        say(f"labels: {shown(labels)}")
    finish(bad, strict=strict, report=report, notes=odd)
    problems()


def _nothing() -> None:
    """No answer was refused."""


def _indexed(
    images: list[str], model: str | None, workspace: Path | None
) -> tuple[LateEncoder, Embeddings, list[BadImage], list[tuple[str, str]]]:
    """Bring the workspace's collection up to date for these images, and give their vectors."""
    from vitembed.collection.collection import Collection
    from vitembed.images.source import walk

    encoder = index_encoder(model, workspace)
    place = find_workspace(workspace, create=True)
    with Collection.create(
        place.index_dir, fingerprint=encoder.fingerprint, dim=encoder.embed_dim, meta=index_facts(encoder)
    ) as collection:
        with progress_bar("embedding") as advance:
            done = collection.update(encoder, images, progress=lambda now: advance(now.done, now.total))
        note_model(place, encoder)
        vectors = collection.embeddings()
        wanted = {entry.path for entry in walk(images).entries}
        rows = [row for row, path in enumerate(vectors.ids) if path in wanted]
    if not rows:
        finish(done.bad, strict=False, report=None)
        raise DataError(f"no readable image in {', '.join(map(shown, images))}")
    note(f"index: {len(rows):,} of these images, {done.num_embedded:,} of them embedded now")
    return encoder, vectors[rows], done.bad, done.notes


def _default_labels(images: str, workspace: Path | None) -> Path:
    """Where the labels of these images lie, if nobody says so."""
    path = Path(os.path.abspath(images.removeprefix("@")))  # noqa: PTH100  links stay links
    name = path.stem if path.is_file() else path.name or "images"
    try:
        place = find_workspace(workspace).dir
    except VitembedError:  # made further on, here or where --workspace says
        place = (workspace or Path.cwd()) / WORKSPACE_DIR
    return place / "labels" / f"{name}.csv"


def _take(session: LabelSession, answers: Path) -> Callable[[], None]:
    """Take a filled sheet, and give what is to be done at the end: nothing, or an error."""
    from vitembed.probe.labelling.sheet_csv import refuse_problems, take_sheet

    taken = take_sheet(answers, session)
    note(
        f"{shown(answers)}: {taken.num_new:,} new labels, {len(taken.changed):,} changed, {taken.num_same:,} known "
        f"already, {taken.num_unsure:,} none of the classes, {taken.num_empty:,} not answered"
    )
    for line in taken.changed[:NUM_CHANGED_SHOWN]:
        note(f"  {line}")
    if len(taken.changed) > NUM_CHANGED_SHOWN:
        note(f"  ... and {len(taken.changed) - NUM_CHANGED_SHOWN} more")
    for line in taken.problems:
        note(line)
    return lambda: refuse_problems(taken, answers)


def _write_sheet(session: LabelSession, sheet: Path, num: int) -> None:
    from vitembed.probe.labelling.sheet_csv import write_csv_sheet
    from vitembed.probe.labelling.sheet_page import write_page_sheet

    rows = session.ask(num)
    if not len(rows):
        note("no images are left to ask about: no sheet is written")
        return
    session.save()
    if sheet.suffix.lower() == ".csv":
        write_csv_sheet(sheet, session, rows)
        note(
            f"{counted(len(rows), 'image')} to label: {shown(sheet)}; fill in the column label and give it back "
            "with --answers"
        )
        return
    for problem in write_page_sheet(sheet, session, rows):
        note(f"no picture of {problem}")
    note(
        f"{counted(len(rows), 'image')} to label: {shown(sheet)}; open it, answer, save, and give the file back "
        "with --answers"
    )


def _save_probe(session: LabelSession, encoder: Encoder, save: Path, precision: float) -> None:
    from vitembed import __version__
    from vitembed.probe.labelling.saved import saved_probe

    session.probe()  # refuses where there is nothing to learn from, before anything is embedded
    names = [name for name, given in zip(session.ids, session.labels, strict=True) if given is not None]
    with progress_bar("embedding the labelled images") as advance:
        vectors = encoder.embed(names, progress=advance)
    facts = {
        "model": encoder.reference,
        "pool": encoder.pool,
        "speed": str(encoder.speed),
        "version": __version__,
    }
    probe = saved_probe(session, vectors, facts, target_precision=precision)
    probe.save(save)
    when = (
        "abstains always, unless --threshold is given"
        if probe.threshold is None
        else ("never abstains" if probe.threshold == 0 else f"abstains below {probe.threshold:.3f}")
    )
    note(f"probe: {shown(save)} ({len(probe.classes)} classes; {when})")


def _document(session: LabelSession, labels: Path) -> dict[str, Any]:
    return {
        "labels": os.fspath(labels),
        "classes": session.classes,
        "counts": session.counts(),
        "num_labelled": session.num_labelled,
        "num_left": session.num_left,
        "expected": session.expected_accuracy().to_dict() if session.is_fitted() else None,
    }


def _terminal(graphics: Literal["auto", "kitty", "iterm", "sixel", "blocks"]) -> Terminal:
    """The dialog's way to the person: questions on stderr, answers from stdin, pictures where a person looks on."""
    from vitembed.collection.finding.terminal import choose_protocol, draw
    from vitembed.errors import BadImage
    from vitembed.page.picture import thumbnail
    from vitembed.probe.labelling.terminal_dialog import Terminal

    protocol = choose_protocol(os.environ) if graphics == "auto" else graphics

    def read() -> str | None:
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None

    def prompt() -> None:
        print("> ", end="", file=sys.stderr, flush=True)

    def show(path: str) -> None:
        if not sys.stderr.isatty():
            return
        try:
            print(draw(thumbnail(path, 480), protocol), file=sys.stderr, flush=True)
        except BadImage as error:
            note(f"[{error.reason}]")

    return Terminal(read=read, say=note, prompt=prompt, show=show, open=_open_in_window, shown=shown)


def _open_in_window(path: str) -> None:
    """Hand the image to the system's viewer, which is not waited for."""
    if sys.platform == "win32":
        os.startfile(path)
        return
    program = "open" if sys.platform == "darwin" else "xdg-open"
    try:
        subprocess.Popen(
            [program, path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        note(f"cannot open a window: {program}: {error.strerror}")
