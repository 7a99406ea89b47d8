"""Our own JSON files: how they are read, and the CRC in them by which those that were damaged are known."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitembed.errors import DamagedFile, printable


def read_document(path: Path, *, needs: Mapping[str, type | tuple[type, ...]] | None = None, advice: str = "") -> Any:
    """Read a JSON object that this program wrote.

    Args:
        path: The file.
        needs: Keys that it must have, and the types of their values.
        advice: What to do about a damaged file; ends the message.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFile: If it cannot be read, is no JSON object, or a key is missing or of another type.
    """

    def damaged(why: str) -> DamagedFile:
        return DamagedFile(f"{printable(path)} is damaged ({why}){f': {advice}' if advice else ''}")

    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damaged(f"it cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise damaged("it is no JSON") from error
    if not isinstance(document, dict):
        raise damaged("it holds no JSON object")
    for key, kinds in (needs or {}).items():
        value = document.get(key)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise damaged(f"its {key!r} is {'missing' if key not in document else 'not what it must be'}")
    return document


def seal_of(document: Mapping[str, Any]) -> int:
    """CRC-32 of a document without its seal, whatever the order of its keys."""
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
