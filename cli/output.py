"""What reaches the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from vitembed.errors import HIDDEN, BadImage, DataError, printable, printable_lines
from vitembed.outputs import REPORT, write_output

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EXIT_MISTAKE = 1
EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141  # what a shell shows for a program whose reader has left

NUM_BAD_SHOWN = 20
SECONDS_BETWEEN_LINES = 30.0
# What JSON may hold as it is and no terminal should get: see errors.printable.
_NOT_IN_JSON = re.compile(f"[\ud800-\udfff{HIDDEN}]")


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable whatever the shell made of them, before anything else opens a file.

    A number that is closed (``>&-``) would go to the next file that is opened, and get what is printed. Nothing is lost
    where stderr is closed; writing to a stdout that is closed or full is an error of one line.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.fstat(number)  # open, but not to this Python: leave it alone
                continue
            # Of stdout the wrong way round: every attempt to write to it shall fail.
            opened = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)  # else it is closed again in decoding processes
            fresh = open(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, name, fresh)
            setattr(sys, f"__{name}__", fresh)
            if name == "stdin":
                _closed.add(name)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = _Stdout(
            sys.stdout.buffer,
            encoding=sys.stdout.encoding,
            errors="backslashreplace",
            line_buffering=sys.stdout.line_buffering,
        )
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


_closed = set[str]()


class _Stdout(io.TextIOWrapper):
    """Says in one line that it cannot be written to, whoever writes; a reader that has left is not an error."""

    def write(self, text: str) -> int:
        with _refused():
            return super().write(text)

    def flush(self) -> None:
        with _refused():
            super().flush()


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _let_go_of_stdout()
        raise DataError(f"cannot write to stdout: {error.strerror or error}") from error


def _let_go_of_stdout() -> None:
    """Let what is still to be written vanish; without this, Python complains once more when it closes stdout."""
    with suppress(OSError, ValueError):  # no file at all, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdin_bytes() -> io.BufferedIOBase:
    """What comes in.

    Raises:
        DataError: If stdin is closed.
    """
    if "stdin" in _closed:
        raise DataError("stdin is closed: nothing can be read from it")
    return cast("io.BufferedIOBase", sys.stdin.buffer)


def note(line: str) -> None:
    """One line on stderr. What a file name or a foreign text holds never steers the terminal."""
    with suppress(OSError):  # nobody to tell
        print(printable_lines(line), file=sys.stderr, flush=True)


def say(line: str) -> None:
    """One line of a result on stdout, safe for a terminal."""
    _to_stdout(printable_lines(line) + "\n")


def say_picture(picture: str) -> None:
    """A picture drawn with the terminal's own sequences, on stdout."""
    _to_stdout(picture + "\n")


def say_json(document: Any, *, indent: int | None = 2) -> None:
    r"""One JSON document on stdout; without ``indent`` on one line.

    Bytes of a path that are no UTF-8 become lone surrogate escapes (``\udcff``), which Python's ``os.fsencode``
    turns back into the bytes; control and bidi characters are escaped; everything else is readable UTF-8.
    """
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=indent)
    _to_stdout(_NOT_IN_JSON.sub(lambda match: json.dumps(match[0])[1:-1], text) + "\n")


def say_paths(paths: Sequence[str], end: bytes = b"\n") -> None:
    """Paths alone on stdout, in the very bytes that the file system has; for xargs -0 ``end`` is a NUL.

    On a terminal, where nobody but a person reads them, as ``say`` does it.
    """
    if sys.stdout.isatty():
        _to_stdout("".join(f"{printable(path)}{end.decode()}" for path in paths))
        return
    _to_stdout(b"".join(os.fsencode(path) + end for path in paths))


def say_csv(cells: Sequence[str]) -> None:
    """One line of CSV on stdout; paths in the very bytes that the file system has, but on a terminal."""
    from vitembed.csv_text import csv_bytes

    _to_stdout(csv_bytes([[printable(cell) for cell in cells] if sys.stdout.isatty() else cells]))


def say_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """A table on stdout.

    Args:
        columns: Headings; all empty: no heading line.
        rows: Cells as text, shown as they are (no markup), each on one line.
        right: Headings of the columns to be aligned to the right.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(printable(cell)) for cell in row])
    say_rich(table)


def say_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values on stdout, one pair a line."""
    say_table(["", ""], facts)


def say_rich(content: RenderableType) -> None:
    """Anything rich can show, on stdout. Lines are not broken in a pipe, so that grep sees whole paths."""
    from rich.console import Console

    console = Console(file=sys.stdout, soft_wrap=False)
    if not console.is_terminal:
        console.width = 100_000
    with console.capture() as capture:
        console.print(content)
    _to_stdout("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def stderr_console() -> Console:
    """Where progress is shown."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr while something goes on; in a pipe or a log file a line every half minute.

    Yields:
        A function to be called with the number done, the total and, if there is more to say, a few words on it.
    """
    console = stderr_console()
    if not console.is_terminal:
        last = time.monotonic()

        def report(done: int, total: int, words: str = "") -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                note(f"{what}: {done:,} of {total:,}{words and ', '}{words}")

        yield report
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    counts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    columns = (*counts, TextColumn("{task.fields[words]}", markup=False))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=None, words="")
        yield lambda done, total, words="": progress.update(task, completed=done, total=total, words=printable(words))


def shown(path: str | os.PathLike[str]) -> str:
    """A path as people want to read it: relative to the current folder when it lies below."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # links are what the user sees: keep them
    here = Path.cwd()
    return printable(absolute.relative_to(here) if absolute.is_relative_to(here) and absolute != here else absolute)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``0.8 s``, ``42 s``, ``3 min 40 s``, ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def finish(
    bad: Sequence[BadImage], *, strict: bool, report: Path | None, notes: Sequence[tuple[str, str]] = ()
) -> None:
    """Say which images were skipped, after everything else.

    Args:
        bad: The images that could not be read.
        strict: End with exit code 3 when there are any.
        report: Also write all of them there, one JSON object a line; the file is empty when there are none.
        notes: Path and words for each image that is good though its file is odd.

    Raises:
        DataError: If the report cannot be written.
    """
    if report is not None:
        lines = [json.dumps({"path": problem.path, "reason": problem.reason}) + "\n" for problem in bad]
        write_output(report, REPORT, "".join(lines))
    if notes:
        from vitembed.images.loaded import note_lines

        for line in note_lines(notes):
            note(line)
    if not bad:
        return
    note(f"{len(bad)} image{'s' if len(bad) > 1 else ''} skipped:")
    for problem in bad[:NUM_BAD_SHOWN]:
        note(f"  {problem}")
    if len(bad) > NUM_BAD_SHOWN:
        where = printable(report) if report is not None else "--report"
        note(f"  ... and {len(bad) - NUM_BAD_SHOWN} more (see {where})")
    if strict:
        raise typer.Exit(EXIT_SKIPPED)


def _to_stdout(text: str | bytes) -> None:
    try:
        with _refused():
            if isinstance(text, bytes):
                sys.stdout.buffer.write(text)
            else:
                sys.stdout.write(text)
            sys.stdout.flush()
    except BrokenPipeError as error:  # the reader (head, less) has seen enough
        _let_go_of_stdout()
        raise typer.Exit(EXIT_PIPE_CLOSED) from error
