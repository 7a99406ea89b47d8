"""The bar that shows decoding, on a terminal only."""

from __future__ import annotations

import contextlib
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class DecodeBar(contextlib.AbstractContextManager["DecodeBar"]):
    """Shows how many images are decoded.

    Args:
        total: Images to decode.
        show: Off: nothing is drawn.
    """

    def __init__(self, total: int, *, show: bool) -> None:
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("decode  "),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not (show and console.is_terminal),
        )
        self.task = self.bar.add_task("decode", total=total)

    def __enter__(self) -> DecodeBar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, done: int, total: int) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=done, total=total)
