"""Two labelled folders of other domains for the bake-off, from Debian packages that anyone can fetch.

    apt-get download openclipart-png fonts-...          # then dpkg-deb -x PACKAGE EXTRACTED
    python benchmarks/bakeoff/other_domains.py clipart EXTRACTED clipart  # in colour, 11 subjects, 7,400 images
    python benchmarks/bakeoff/other_domains.py letters EXTRACTED letters  # A to Z in grey, one per font and letter
    python benchmarks/pretrain_quality.py --data clipart --minutes 2 --methods ours:nano,simclr,untrained,pixels

Nobody chose a setting of ours by these two. How many fonts there are depends on the packages: here all of Debian 12's
``fonts-*`` but emoji, icons and Unifont, 2,917 fonts that draw the Latin letters in their own way.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MIN_PER_SUBJECT = 130
NO_SUBJECT = ("special", "unsorted")
SIDE, FONT_SIZE = 64, 48


def clipart(source: Path, out: Path) -> int:
    """Each drawing at 256 px or less, in the folder of its subject; small subjects and mixed ones are left out."""
    Image.MAX_IMAGE_PIXELS = None  # one drawing has 231 megapixels
    [root] = source.rglob("openclipart/png")
    count = 0
    for subject in sorted(root.iterdir()):
        files = sorted(subject.rglob("*.png"))
        if subject.name in NO_SUBJECT or len(files) < MIN_PER_SUBJECT:
            continue
        (out / subject.name).mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            with Image.open(file) as image:
                small = image.convert("RGBA")
            small.thumbnail((256, 256))
            small.save(out / subject.name / f"{number}.png")
            count += 1
    return count


def letters(source: Path, out: Path) -> int:
    """Each letter of each font in the middle of a white square, in the folder of the letter."""
    seen = set[tuple[bytes, bytes]]()
    for file in sorted([*source.rglob("*.ttf"), *source.rglob("*.otf")]):
        try:
            font = ImageFont.truetype(str(file), FONT_SIZE)
            drawn = {letter: font.getmask(letter) for letter in string.ascii_uppercase}
            # A font without Latin draws one box for all.
            if any(mask.getbbox() is None for mask in drawn.values()) or len({*map(bytes, drawn.values())}) < 10:
                continue
            looks = (bytes(drawn["R"]), bytes(drawn["G"]))
        except (OSError, ValueError):
            continue
        if looks in seen:
            continue
        seen.add(looks)
        for letter in string.ascii_uppercase:
            image = Image.new("L", (SIDE, SIDE), 255)
            pen = ImageDraw.Draw(image)
            left, top, right, bottom = pen.textbbox((0, 0), letter, font=font)
            pen.text(((SIDE - left - right) / 2, (SIDE - top - bottom) / 2), letter, font=font, fill=0)
            (out / letter).mkdir(parents=True, exist_ok=True)
            image.save(out / letter / f"{len(seen)}.png")
    return len(seen) * len(string.ascii_uppercase)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clipart", "letters"))
    parser.add_argument("source", type=Path, help="folder with extracted packages")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    made = {"clipart": clipart, "letters": letters}[options.what](options.source, options.out)
    print(f"{made:,} images in {options.out}")


if __name__ == "__main__":
    main()
