"""A CRC over a JSON document, kept in it: what was damaged since it was written says so."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any


def seal_of(document: Mapping[str, Any]) -> int:
    """CRC-32 of a document without its seal, whatever the order of its keys."""
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
