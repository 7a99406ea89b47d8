"""Files whose pixels are all there though something else is missing or damaged: without their end, or a sound text.

Source: ITU-T T.81, G.1.1.1 (the scans of a progressive file); the PNG specification, 5.3 and 13.2 (chunks).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from vitembed.images.jpeg_segments import FRAMES, MAX_BYTES, PROGRESSIVE, SCAN, segments_of

NO_END = "no end marker, pixels whole"
DAMAGED_NOTE = "damaged {}, pixels whole"

_JPEG_END = b"\xff\xd9"
# What a decoder would take for pixels if it came to need any: two ways, unlike from the first bit, with all markers of
# a restart, as it would look for the next of these first.
_FILLERS = tuple(
    b"".join(bits * 64 + bytes([0xFF, 0xD0 + number]) for number in range(8)) * 2 for bits in (b"\x55\x2a", b"\xaa\xd5")
)
_TAIL_BYTES = 4096
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"tRNS")
"""Chunks that pixels are made of."""
_PNG_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


class Mended(NamedTuple):
    """A whole file made from one that is not."""

    data: bytes
    note: str


def missing_end(file: BinaryIO | io.BytesIO, format_name: str) -> str | None:
    """A note where a decoder does without the end of the file; for GIF and PNG."""
    mark = {"GIF": b";", "PNG": b"IEND"}.get(format_name)
    if mark is None:
        return None
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
    except (OSError, ValueError):
        return None
    return None if mark in tail[-64:] or (format_name == "PNG" and mark in tail) else NO_END


def is_filled_up(file: BinaryIO | io.BytesIO) -> bool:
    """Whether a JPEG lacks its end marker and ends in zeros or ones, which decoders take for pixels."""
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if size > MAX_BYTES or file.read(1) not in (b"\0", b"\xff"):
            return False
        file.seek(0)
        data = file.read()
    except (OSError, ValueError):
        return False
    return not data.rstrip(b"\0\xff").endswith(_JPEG_END) and _JPEG_END not in data[data.rfind(b"\xff\xda") :]


def whole_jpegs(data: bytes) -> Iterator[tuple[Mended, Mended]]:
    """Pairs of files that differ in what follows the pixels: decoded alike, the pixels are all there.

    Nothing for a file that lacks scans. Zeros at the end are not believed: what was to be copied over them is missing.
    """
    candidates = [data.rstrip(b"\0\xff")]
    if 0 < len(data) - len(candidates[0]) <= 2:  # these may be data
        candidates.append(data)
    for start in candidates:
        if _has_all_scans(start + _JPEG_END):
            one, other = (Mended(start + filler + _JPEG_END, NO_END) for filler in _FILLERS)
            yield one, other


def _has_all_scans(data: bytes) -> bool:
    segments = segments_of(data)
    frames = [one for one in segments or () if one.marker in FRAMES]
    if segments is None or len(frames) != 1 or len(frames[0].body) < 6:
        return False
    body = frames[0].body
    names = {body[at] for at in range(6, 6 + 3 * body[5], 3) if at < len(body)}
    is_progressive = frames[0].marker == PROGRESSIVE
    missing = {(name, place) for name in names for place in (range(64) if is_progressive else (0,))}
    for scan in segments:
        count = scan.body[0] if scan.marker == SCAN and scan.body else 0
        if not count or len(scan.body) != 4 + 2 * count:
            continue
        first, last, bits = scan.body[-3:]
        if is_progressive and bits & 15:
            continue
        places = range(first, last + 1) if is_progressive else (0,)
        missing -= {(scan.body[1 + 2 * i], place) for i in range(count) for place in places}
    return not missing


def whole_png(data: bytes) -> Mended | None:
    """The PNG without damaged chunks that its pixels do not need, and with an end; None if it does not help."""
    if not data.startswith(_PNG_START):
        return None
    parts, place, note, ended = [_PNG_START], len(_PNG_START), "", False
    while place + 8 <= len(data) and not ended:
        length, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        stored = data[place + 8 + length : place + 12 + length]
        is_sound = stored == struct.pack(">I", zlib.crc32(name + body))
        if name in _PNG_PIXELS:
            # Cut off within the checksum of the last pixels: these have one of their own.
            cut = name == b"IDAT" and len(body) == length and len(stored) < 4
            if not is_sound and not cut:
                return None
            parts.append(_chunk(name, body))
        elif is_sound and name not in _PNG_ANIMATION:
            parts.append(_chunk(name, body))
        elif not is_sound and name != b"IEND":
            if len(stored) == 4 and not (name.isalpha() and name[0] & 32):
                return None  # a critical chunk that is not known, or no chunk at all
            note = DAMAGED_NOTE.format(f"{name.decode('ascii')} chunk") if len(stored) == 4 else NO_END
        ended = name == b"IEND"
        place += 12 + length
    if not ended:
        parts.append(_chunk(b"IEND", b""))
    return Mended(b"".join(parts), note or (NO_END if not ended else DAMAGED_NOTE.format("animation")))


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
