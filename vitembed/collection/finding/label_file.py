"""A CSV file with labels of images, for filters on ``label``."""
# ruff: noqa: PTH100, PTH118, PTH120
# Paths stay plain strings: names that are not UTF-8 are kept as they are, and links are not followed.

from __future__ import annotations

import os
from pathlib import Path

from vitembed.csv_text import read_csv
from vitembed.errors import DataError, printable


def read_labels(file: str | os.PathLike[str]) -> dict[str, str]:
    """Label of each image in a CSV file with the columns ``path`` and ``label``; others are passed over.

    A path counts from the file's folder; as it stands, it is an external id as well. What ``vitembed label`` writes is
    such a file.

    Raises:
        DataError: If it cannot be read, lacks a column, or gives an image two labels.
    """
    folder = os.path.dirname(os.path.abspath(file))
    labels = dict[str, str]()
    _, rows = read_csv(Path(file), ("path", "label"))
    for line, fields in rows:
        path, label = fields["path"], fields["label"].strip()
        if not label:
            continue
        for name in (os.path.abspath(os.path.join(folder, path)), path):
            if labels.setdefault(name, label) != label:
                raise DataError(
                    f"{printable(file)}, line {line}: {printable(path)} is {printable(label)} here and "
                    f"{printable(labels[name])} further up"
                )
    return labels
