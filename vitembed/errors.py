"""What can go wrong because of what the user gave us: one line each, no traceback.

A ``VitembedError`` is a user's mistake or a bad file; the command line prints it as one line and exits with 1.
Anything else that is raised is our bug and keeps its traceback.
"""

from __future__ import annotations

import os
import re


class VitembedError(Exception):
    """A problem the user can mend. The message says what was got, what is expected and what to do."""


class ConfigError(VitembedError):
    """A configuration that cannot be used: unknown key, wrong type, contradicting values."""


class DataError(VitembedError):
    """Input that holds nothing usable: no images, no labels, a vector file that is not one."""


class DamagedFile(DataError):
    """A file that this program wrote and that is no longer as it was written."""


class ModelError(VitembedError):
    """A model folder or weights file that cannot be used."""


class CollectionError(VitembedError):
    """A collection (index) that is absent, damaged, locked or of another format."""


class MismatchError(CollectionError):
    """Vectors of different encoders were about to meet."""


class TrainingError(VitembedError):
    """A training run that cannot go on, as on a non-finite loss."""


class FailedElsewhere(VitembedError):
    """Another process of the same run failed and says why; the command line ends without a word of its own."""


class BadImage(VitembedError):
    """An image that cannot be decoded.

    Args:
        path: Where the image is, as ``os.fsdecode`` gives it (may hold surrogate escapes).
        reason: One short phrase, such as ``truncated``, ``zero bytes``, ``not an image``.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{printable(path)}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        """Cross process borders whole."""
        return (BadImage, (self.path, self.reason))


# DEL and C1, marks that turn the direction of writing, line separators, and what takes no room.
HIDDEN = (
    "\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
"""Characters that no terminal should get from a file name, besides C0; for a regular expression."""
_UNSAFE = re.compile(f"[\x00-\x1f{HIDDEN}]")


def counted(number: int, one: str, many: str | None = None) -> str:
    """Give ``1 image``, ``2 images``; ``many`` where an ``s`` is not enough."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def printable(path: str | os.PathLike[str]) -> str:
    r"""The text on one line, safe for any terminal: undecodable bytes, control and bidi characters as ``\x1b``."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def printable_lines(text: str) -> str:
    """The same of each line of a longer text."""
    return "\n".join(map(printable, text.split("\n")))
