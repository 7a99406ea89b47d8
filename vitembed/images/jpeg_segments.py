"""The pieces of a JPEG file, without decoding it.

Source: ITU-T T.81, B.1.1.3 (markers), B.2.2 (frame header).
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_BYTES = 1 << 28
"""Of a file that is looked at; a larger one is decoded whole."""
MAX_SEGMENTS = 10_000
"""The same for one in more pieces: a hostile one can have millions."""

BASELINE, PROGRESSIVE, SCAN, TABLES = 0xC0, 0xC2, 0xDA, 0xDB
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are no frames
_START, _END, _ADOBE = 0xD8, 0xD9, 0xEE
# In a scan, FF 00 is data and FF D0 to D7 a restart. The expression begins with a literal, which makes it fast.
_BEFORE_MARKER = re.compile(rb"\xff+")
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


class Segment(NamedTuple):
    """From one marker to the next."""

    marker: int
    start: int
    """Of its FF."""
    body: bytes
    end: int
    """Of a scan: where its data ends."""


class Component(NamedTuple):
    """A channel, as the frame header has it."""

    name: int
    sampling: int
    """Samples across and down, four bits each."""
    table: int
    """Of quantisation steps."""


def segments_of(data: bytes) -> list[Segment] | None:
    """From the start to the end of the image; None if it has no end, or its order is broken."""
    if data[:2] != bytes([0xFF, _START]):
        return None
    found, place = list[Segment](), 2
    while True:
        begin = _BEFORE_MARKER.match(data, place)
        if begin is None or begin.end() == len(data) or len(found) == MAX_SEGMENTS:
            return None
        place = begin.end() - 1
        marker = data[place + 1]
        if marker == _END:
            return [*found, Segment(marker, place, b"", place + 2)]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker < 0xC0 or 0xD0 <= marker <= _START or end < place + 4 or end > len(data):
            return None
        body = data[place + 4 : end]
        if marker == SCAN:
            following = _NEXT_MARKER.search(data, end)
            if following is None:
                return None
            end = following.start()
        found.append(Segment(marker, place, body, end))
        place = end


def components_of(frame: bytes) -> list[Component] | None:
    """One or three, at 8 bits, none with more samples than the first."""
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    found = [Component(*frame[at : at + 3]) for at in range(6, len(frame), 3)]
    most = [max(one.sampling >> shift & 15 for one in found) for shift in (4, 0)]
    return found if found[0].sampling == most[0] << 4 | most[1] else None


def is_rgb(components: list[Component], segments: list[Segment]) -> bool:
    """Whether the components are colours, rather than brightness and two differences."""
    if len(components) == 1:
        return False
    adobe = [one.body for one in segments if one.marker == _ADOBE and one.body[:5] == b"Adobe"]
    return any(body[11:12] == b"\0" for body in adobe) or bytes(one.name for one in components) == b"RGB"
