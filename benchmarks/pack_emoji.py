"""Make ``vitembed/demo/data/emoji.zip``, the demo's data set, from the two public npm packages it comes from.

    npm pack emoji-datasource-google@16.0.0 && mkdir google && tar -xzf emoji-datasource-google-16.0.0.tgz -C google
    npm pack emoji-datasource-twitter@16.0.0 && mkdir twitter && tar -xzf emoji-datasource-twitter-16.0.0.tgz -C twitter
    python benchmarks/pack_emoji.py --google google/package --twitter twitter/package

Without npm: https://registry.npmjs.org/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz, and the other.

The archive holds ``google/CATEGORY/NAME.webp``, ``twitter/CATEGORY/NAME.webp`` and ``emoji.csv``. It must stay below
6 MB. Lossless WebP of the originals takes 8.4 MB, so colours are first rounded to steps of 5 and alpha to steps of 17
(of 255): colours move by at most 2, alpha by at most 8, fully transparent and fully opaque pixels stay so, and seen on
white the peak signal-to-noise ratio is 46 dB. Lossy WebP of the same size reaches 33 dB, as it halves the colour
resolution of the outlines.

The same Pillow (libwebp) gives the same bytes: sorted entries, fixed timestamps, no file-system attributes.
Minutes on one core: the slowest WebP method is the smallest.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

VENDORS = ("google", "twitter")
COLUMNS = ("name", "unified", "category", "subcategory", "title")
COLOUR_STEP = 5  # of 255; both steps divide 255, so that 0 and 255 are kept as they are
ALPHA_STEP = 17
MAX_BYTES = 6_000_000
OUTPUT = Path(__file__).resolve().parent.parent / "vitembed" / "demo" / "data" / "emoji.zip"


def slug(text: str) -> str:
    """The text as a folder name: ``Food & Drink`` becomes ``food-drink``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def file_name(short_names: list[str]) -> str:
    """The first short name that every file system and shell takes: ``+1`` becomes ``thumbsup``."""
    return next(name for name in short_names if re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name))


def encode(path: Path) -> bytes:
    """The drawing at 64 px as WebP, colours and alpha rounded."""
    with Image.open(path) as image:
        rgba = np.asarray(image.convert("RGBA"))
    steps = np.array([COLOUR_STEP] * 3 + [ALPHA_STEP])
    rounded = ((rgba + steps // 2) // steps * steps).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rounded).save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def pack(packages: dict[str, Path], output: Path) -> int:
    """Write the archive and return the number of emoji in it."""
    catalogue = json.loads((packages["google"] / "emoji.json").read_text(encoding="utf-8"))
    rows: list[dict[str, str]] = []
    images: dict[str, Path] = {}
    for entry in sorted(catalogue, key=lambda entry: entry["sort_order"]):
        if entry["category"] == "Component" or not all(entry[f"has_img_{vendor}"] for vendor in VENDORS):
            continue
        name, category = file_name(entry["short_names"]), slug(entry["category"])
        rows.append(
            {
                "name": name,
                "unified": entry["unified"],
                "category": category,
                "subcategory": entry["subcategory"],
                "title": entry["name"].lower() if entry["name"].isupper() else entry["name"],
            }
        )
        for vendor in VENDORS:
            images[f"{vendor}/{category}/{name}.webp"] = packages[vendor] / "img" / vendor / "64" / entry["image"]
    assert len({row["name"].lower() for row in rows}) == len(rows), "two emoji share a file name"

    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    members = {name: encode(path) for name, path in images.items()} | {"emoji.csv": table.getvalue().encode("utf-8")}

    with zipfile.ZipFile(output, "w") as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".csv") else zipfile.ZIP_STORED
            archive.writestr(info, members[name])
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pack the emoji drawings of both vendors for the demo.")
    for vendor in VENDORS:
        parser.add_argument(f"--{vendor}", type=Path, required=True, help=f"unpacked emoji-datasource-{vendor} package")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    args = parser.parse_args()
    num_emoji = pack({vendor: getattr(args, vendor) for vendor in VENDORS}, args.out)
    num_bytes = args.out.stat().st_size
    print(f"{args.out}: {num_emoji} emoji x {len(VENDORS)} vendors, {num_bytes / 1e6:.2f} MB")
    if num_bytes > MAX_BYTES:
        raise SystemExit(f"the archive must not exceed {MAX_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
