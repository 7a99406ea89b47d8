"""The real data set that ships with the project: 1,906 emoji, each drawn by Google's and by Twitter's artists.

Two drawings of one emoji are exact ground truth for retrieval, and the nine categories for probes.
"""

from __future__ import annotations

import csv
import os
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from vitembed.demo.publish import publish, unpack
from vitembed.errors import DataError, printable

_TABLE = "emoji.csv"


@dataclass(frozen=True)
class EmojiData:
    """The unpacked emoji. All lists run in the same order: row ``i`` of each is the same emoji."""

    directory: Path
    """Holds ``google/CATEGORY/NAME.webp``, ``twitter/CATEGORY/NAME.webp`` and ``emoji.csv``."""
    names: list[str]
    """File names without suffix, the same for both vendors."""
    categories: list[str]
    """Names of the category folders, such as ``food-drink``; nine different ones."""
    subcategories: list[str]
    """About a hundred finer groups, such as ``food-fruit``."""
    titles: list[str]
    """For people, such as ``red apple``."""
    google: list[Path]
    twitter: list[Path]

    def __len__(self) -> int:
        return len(self.names)


def emoji(directory: str | os.PathLike[str]) -> EmojiData:
    """Unpack the emoji into ``directory``, which appears whole or not at all, or use what an earlier call put there.

    Raises:
        DataError: If ``directory`` holds anything else, or an earlier call's files were removed from it.
    """
    root = Path(directory)
    if not (root / _TABLE).is_file():
        archive = resources.files("vitembed.demo") / "data" / "emoji.zip"
        with archive.open("rb") as file, zipfile.ZipFile(file) as opened, publish(root) as staging:
            unpack(opened, staging)
    return _read(root)


def _read(root: Path) -> EmojiData:
    with (root / _TABLE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        data = EmojiData(
            directory=root,
            names=[row["name"] for row in rows],
            categories=[row["category"] for row in rows],
            subcategories=[row["subcategory"] for row in rows],
            titles=[row["title"] for row in rows],
            google=[root / "google" / row["category"] / f"{row['name']}.webp" for row in rows],
            twitter=[root / "twitter" / row["category"] / f"{row['name']}.webp" for row in rows],
        )
    except KeyError as error:
        raise DataError(f"{printable(root / _TABLE)} has no column {error}: remove the folder and run again") from None
    missing = [path for path in data.google + data.twitter if not path.is_file()]
    if missing or not rows:
        lacks = printable(missing[0].relative_to(root)) if missing else "every row of its table"
        raise DataError(f"{printable(root)} lacks {lacks}: remove the folder and run again")
    return data
