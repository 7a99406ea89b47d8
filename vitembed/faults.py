"""The seam by which tests stop a program at any of its writes; nothing but one test of a variable otherwise."""

from __future__ import annotations

from collections.abc import Callable

hook: Callable[[str], None] | None = None
"""Called with the name of the step that is about to be taken, such as ``rename vectors.faiss``. It may end the process
or raise, as a power switch or a full disk would."""


def about_to(step: str) -> None:
    """Announce a write, fsync, rename or commit that is next."""
    if hook is not None:
        hook(step)
