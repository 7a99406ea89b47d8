"""Progressive JPEGs without the scans that a scaled decode has no use for.

A progressive file keeps its coefficients in several scans, each a refinement, and libjpeg reads every one of them even
where it decodes to an eighth of the size. A file with some left out is a JPEG like any other: the standard lets a
progressive file end after any scan.

- At 1/8 libjpeg makes each pixel's brightness of the mean of its block alone, so all that refines its other
  coefficients can go: the pixels are the same. Their first scans stay, as without any of them libjpeg would smooth the
  means; so do the colours', which have fewer samples and are scaled less.
- At 1/4 the scan that adds the last bit to the brightness can go. It holds about half of the bytes and most of the
  time; the pixels differ by 0.02 of 255 on average where the quantisation is as fine as cameras have it.

Source: ITU-T T.81, B.1.1.3 (markers), G.1.1.1 (spectral selection and successive approximation).
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_BYTES = 1 << 28
"""Of a file that is looked at; a larger one is decoded whole."""
MAX_SEGMENTS = 10_000
"""The same for one in more pieces: a hostile one can have millions."""
COARSEST_STEP = 8
"""Largest quantisation step of the low frequencies, that of libjpeg's quality 75: beyond it, the last bit is seen."""

_START, _END, _SCAN, _FRAME, _TABLES, _ADOBE = 0xD8, 0xD9, 0xDA, 0xC2, 0xDB, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are no frames
_LOW_FREQUENCIES = 9  # in zigzag order: what an image of a quarter of the size is made of
# In a scan, FF 00 is data and FF D0 to D7 a restart. The expression begins with a literal, which makes it fast.
_BEFORE_MARKER = re.compile(rb"\xff+")
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


class _Segment(NamedTuple):
    marker: int
    start: int
    """Of its FF."""
    body: bytes
    end: int
    """Of a scan: where its data ends."""


class _Component(NamedTuple):
    name: int
    sampling: int
    """Samples across and down, four bits each."""
    table: int
    """Of quantisation steps."""


def fewer_scans(data: bytes, scale: int) -> bytes | None:
    """A progressive JPEG file without what is not needed at 1/scale of its size; None if it is to be decoded as it is.

    None is also the answer for a file that is no whole JPEG, so what is damaged is decoded, and judged, as it is; and
    at 1/4 for one whose colours are not brightness and two differences, or that is quantised coarsely.

    Args:
        data: The file.
        scale: 1, 2, 4 or 8.
    """
    segments = _segments(data) if scale in (4, 8) else None
    if segments is None:
        return None
    frames = [one for one in segments if one.marker in _FRAMES]
    if len(frames) != 1 or frames[0].marker != _FRAME:
        return None
    components = _components(frames[0].body)
    if components is None:
        return None
    needless = _refining(components[0], segments)
    if scale == 4:
        fine = not _is_rgb(components, segments) and _low_step(components[0], segments) <= COARSEST_STEP
        needless = [one for one in needless if fine and one.body[5] == 0x10]  # from bit 1 to bit 0, the last
    if not needless:
        return None
    parts, start = list[bytes](), 0
    for scan in needless:
        parts.append(data[start : scan.start])
        start = scan.end
    # Nothing behind the end: offsets into it, as of the second image of a pair, would be wrong now.
    return b"".join([*parts, data[start : segments[-1].end]])


def _segments(data: bytes) -> list[_Segment] | None:
    """From the start to the end of the image; None if it has no end, or its order is broken."""
    if data[:2] != bytes([0xFF, _START]):
        return None
    found, place = list[_Segment](), 2
    while True:
        begin = _BEFORE_MARKER.match(data, place)
        if begin is None or begin.end() == len(data) or len(found) == MAX_SEGMENTS:
            return None
        place = begin.end() - 1
        marker = data[place + 1]
        if marker == _END:
            return [*found, _Segment(marker, place, b"", place + 2)]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker < 0xC0 or 0xD0 <= marker <= _START or end < place + 4 or end > len(data):
            return None
        body = data[place + 4 : end]
        if marker == _SCAN:
            following = _NEXT_MARKER.search(data, end)
            if following is None:
                return None
            end = following.start()
        found.append(_Segment(marker, place, body, end))
        place = end


def _components(frame: bytes) -> list[_Component] | None:
    """One or three, at 8 bits, none with more samples than the first."""
    if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3) or len(frame) != 6 + 3 * frame[5]:
        return None
    found = [_Component(*frame[at : at + 3]) for at in range(6, len(frame), 3)]
    most = [max(one.sampling >> shift & 15 for one in found) for shift in (4, 0)]
    return found if found[0].sampling == most[0] << 4 | most[1] else None


def _refining(component: _Component, segments: list[_Segment]) -> list[_Segment]:
    """The scans that add a bit to the coefficients of a component but its means."""
    scans = [one for one in segments if one.marker == _SCAN and one.body[:2] == bytes([1, component.name])]
    return [one for one in scans if len(one.body) == 6 and one.body[3] >= 1 and one.body[5] >> 4]


def _is_rgb(components: list[_Component], segments: list[_Segment]) -> bool:
    if len(components) == 1:
        return False
    adobe = [one.body for one in segments if one.marker == _ADOBE and one.body[:5] == b"Adobe"]
    return any(body[11:12] == b"\0" for body in adobe) or bytes(one.name for one in components) == b"RGB"


def _low_step(component: _Component, segments: list[_Segment]) -> int:
    """The component's largest quantisation step of the low frequencies but the mean."""
    steps = 1 << 16
    for segment in segments:
        body = segment.body if segment.marker == _TABLES else b""
        while body:
            width = 2 if body[0] >> 4 else 1
            values = body[1 : 1 + 64 * width]
            if len(values) == 64 * width and body[0] & 15 == component.table:
                low = values[width : (1 + _LOW_FREQUENCIES) * width]
                steps = max(int.from_bytes(low[at : at + width], "big") for at in range(0, len(low), width))
            body = body[1 + 64 * width :]
    return steps
