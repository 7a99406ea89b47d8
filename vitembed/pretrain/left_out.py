"""What was found beside the images of a run, in words: for the message that the images are too few."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from vitembed.errors import BadImage, DataError, counted
from vitembed.images.ignored import passed_over_lines
from vitembed.images.source import ImageListing

_NUM_NAMED = 3


def left_out(listing: ImageListing) -> str:
    """What a listing leaves out: counts, and the first reasons; empty if it is nothing."""
    parts = []
    if listing.bad:
        parts.append(f"{counted(len(listing.bad), 'file')} that cannot be used ({_first(listing.bad)})")
    if listing.num_other:
        parts.append(f"{counted(listing.num_other, 'file')} of other kinds")
    parts += passed_over_lines(listing.passed_over, listing.unfinished)
    return f". Left out: {', '.join(parts)}" if parts else ""


@contextlib.contextmanager
def naming_left_out(bad: Sequence[BadImage]) -> Iterator[None]:
    """Add to what is said of too few images which files were left out."""
    try:
        yield
    except DataError as error:
        if isinstance(error, BadImage) or not bad:
            raise
        raise DataError(
            f"{error}. Left out: {counted(len(bad), 'file')} that cannot be used ({_first(bad)})"
        ) from error


def _first(bad: Sequence[BadImage]) -> str:
    more = "; ..." if len(bad) > _NUM_NAMED else ""
    return "; ".join(map(str, bad[:_NUM_NAMED])) + more
