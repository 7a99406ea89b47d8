"""The app: which commands there are, and what becomes of an error.

Nothing heavy is imported here or by the command modules: ``vitembed --help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vitembed import __version__
from vitembed.errors import FailedElsewhere, VitembedError, printable, printable_lines

from .output import EXIT_INTERRUPTED, EXIT_MISTAKE, note, prepare_streams

# Threads of GNU's OpenMP, which torch uses on Linux, burn a core while they wait for each other. On a machine that does
# other things too, waiting shortly and then sleeping trained 1.6 times faster, and as fast on an idle one
# (docs/experiments.md). Read when the library loads, which no import before this one does.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# In the order in which a user meets them: this is how --help lists them.
COMMANDS = (
    "pretrain",
    "index",
    "forget",
    "search",
    "dupes",
    "map",
    "embed",
    "export",
    "label",
    "probe",
    "classify",
    "finetune",
    "info",
    "models",
    "configs",
    "doctor",
    "demo",
)


class Command(TyperCommand):
    """Help that shows arguments as they are typed, ``IMAGES... [KEY=VALUE...]``, and nothing of their Python types."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Give the words of the usage line."""
        return ["[OPTIONS]", *(name for name, _ in self._arguments())]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections with arguments and options."""
        options = [
            record
            for param in self.get_params(ctx)
            if param.param_type_name == "option" and (record := param.get_help_record(ctx)) is not None
        ]
        for title, rows in (("Arguments", self._arguments()), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _arguments(self) -> list[tuple[str, str]]:
        return [
            (str(param.metavar), str(getattr(param, "help", "")))
            for param in self.params
            if param.param_type_name == "argument"
        ]


class Group(TyperGroup):
    """Turns what a user can mend into one line and an exit code; a bug keeps its traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the program. Here ends what cannot be said to stdout, of help and version too."""
        prepare_streams()
        try:
            return super().main(*args, **extra)
        except VitembedError as error:
            note(f"Error: {error}")
            sys.exit(EXIT_MISTAKE)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the options before the command."""
        with _safe_usage_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            with _safe_usage_errors(), _short_warnings():
                return super().invoke(ctx)
        except FailedElsewhere as error:  # one line for all processes of a run
            raise typer.Exit(EXIT_MISTAKE) from error
        except VitembedError as error:
            note(f"Error: {error}")
            raise typer.Exit(EXIT_MISTAKE) from error
        except KeyboardInterrupt as error:
            note("Interrupted.")
            raise typer.Exit(EXIT_INTERRUPTED) from error


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show Python's warnings as one line each, without the source line, safe for a terminal."""
    with warnings.catch_warnings():
        # Pillow warns of tags and frames without naming the file; what is wrong with an image is said at the end.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        # scikit-learn warns programmers; what users need to know is said in our own words.
        for category in (UserWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"sklearn\.")
        warnings.showwarning = lambda message, *_, **__: note(f"warning: {printable(str(message))}")
        yield


@contextmanager
def _safe_usage_errors() -> Iterator[None]:
    """Let what was typed and is repeated in a message of wrong usage not steer the terminal."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if hasattr(error, "format_message") and isinstance(message, str):
            vars(error)["message"] = printable(message)
        raise


# Plain help: it starts four times faster than the boxes, reads the same in a pipe and in docs/cli.md.
app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"vitembed {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Learn image embeddings from your own pictures, without labels; search and classify with them.

    Three commands need no options:

    \b
      vitembed pretrain ./images   learn a vision transformer from them
      vitembed index ./images      one vector per image; again: bring up to date
      vitembed search query.jpg    the most similar images

    They meet in a workspace: a folder .vitembed, found by walking up from the current folder as git does.
    Results go to stdout, progress and logs to stderr. Exit codes: 0 done; 1 a mistake, or nothing usable; 2 wrong
    usage; 3 done, but images were skipped under --strict; 130 interrupted, nothing lost.
    """  # noqa: D301  # \b keeps the next lines as they stand
    _prepare_logging()


class _ToStderr(logging.StreamHandler[Any]):
    """Writes to whatever stderr is at that moment: rich swaps it while a progress bar is on screen."""

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


def _prepare_logging() -> None:
    logger = logging.getLogger("vitembed")
    if not any(isinstance(handler, _ToStderr) for handler in logger.handlers):
        logger.addHandler(_ToStderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False


for _name in COMMANDS:
    _module = importlib.import_module(f".{_name}", __package__)
    app.command(_name, cls=Command)(getattr(_module, _name))
