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

from vitembed.images.jpeg_segments import (
    FRAMES,
    PROGRESSIVE,
    SCAN,
    TABLES,
    Component,
    Segment,
    components_of,
    is_rgb,
    segments_of,
)

COARSEST_STEP = 8
"""Largest quantisation step of the low frequencies, that of libjpeg's quality 75: beyond it, the last bit is seen."""

_LOW_FREQUENCIES = 9  # in zigzag order: what an image of a quarter of the size is made of


def fewer_scans(data: bytes, scale: int) -> bytes | None:
    """A progressive JPEG file without what is not needed at 1/scale of its size; None if it is to be decoded as it is.

    None is also the answer for a file that is no whole JPEG, so what is damaged is decoded, and judged, as it is; and
    at 1/4 for one whose colours are not brightness and two differences, or that is quantised coarsely.

    Args:
        data: The file.
        scale: 1, 2, 4 or 8.
    """
    segments = segments_of(data) if scale in (4, 8) else None
    if segments is None:
        return None
    frames = [one for one in segments if one.marker in FRAMES]
    if len(frames) != 1 or frames[0].marker != PROGRESSIVE:
        return None
    components = components_of(frames[0].body)
    if components is None:
        return None
    needless = _refining(components[0], segments)
    if scale == 4:
        fine = not is_rgb(components, segments) and _low_step(components[0], segments) <= COARSEST_STEP
        needless = [one for one in needless if fine and one.body[5] == 0x10]  # from bit 1 to bit 0, the last
    if not needless:
        return None
    parts, start = list[bytes](), 0
    for scan in needless:
        parts.append(data[start : scan.start])
        start = scan.end
    # Nothing behind the end: offsets into it, as of the second image of a pair, would be wrong now.
    return b"".join([*parts, data[start : segments[-1].end]])


def _refining(component: Component, segments: list[Segment]) -> list[Segment]:
    """The scans that add a bit to the coefficients of a component but its means."""
    scans = [one for one in segments if one.marker == SCAN and one.body[:2] == bytes([1, component.name])]
    return [one for one in scans if len(one.body) == 6 and one.body[3] >= 1 and one.body[5] >> 4]


def _low_step(component: Component, segments: list[Segment]) -> int:
    """The component's largest quantisation step of the low frequencies but the mean."""
    steps = 1 << 16
    for segment in segments:
        body = segment.body if segment.marker == TABLES else b""
        while body:
            width = 2 if body[0] >> 4 else 1
            values = body[1 : 1 + 64 * width]
            if len(values) == 64 * width and body[0] & 15 == component.table:
                low = values[width : (1 + _LOW_FREQUENCIES) * width]
                steps = max(int.from_bytes(low[at : at + width], "big") for at in range(0, len(low), width))
            body = body[1 + 64 * width :]
    return steps
