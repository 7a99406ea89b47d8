"""The folders of photographs that the tools are given."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from speed.photos import write_photos

SMALL, LARGE = (640, 480), (4000, 3000)
_ORIENTATION = 0x0112


def photo_folders(place: Path, num_small: int, num_large: int) -> dict[str, Path]:
    """Folders of 0.3 and of 12 MP, and one of two small photos: what a run costs whatever the number of images."""
    folders = {"0.3 MP": (num_small, SMALL), "12 MP": (num_large, LARGE), "start": (2, SMALL)}
    return {name: write_photos(place / name, num, size) for name, (num, size) in folders.items() if num}


def many(place: Path, photos: Path, num_images: int) -> Path:
    """So many files, no two the same: copies of the photos with a number behind their end, where no decoder reads."""
    place.mkdir()
    sources = [path.read_bytes() for path in sorted(photos.iterdir())]
    for number in range(num_images):
        (place / f"{number:06}.jpg").write_bytes(sources[number % len(sources)] + number.to_bytes(8, "big"))
    return place


def with_truncated(place: Path, photos: Path) -> Path:
    """The photos, and one of them cut in the middle."""
    shutil.copytree(photos, place)
    data = next(photos.iterdir()).read_bytes()
    (place / "truncated.jpg").write_bytes(data[: len(data) // 2])
    return place


def with_bomb(place: Path, photos: Path) -> Path:
    """The photos, and a small PNG file that unpacks to 400 million pixels."""
    shutil.copytree(photos, place)
    Image.new("1", (20_000, 20_000)).save(place / "bomb.png")
    return place


def with_turned(place: Path, photos: Path) -> tuple[Path, Path, Path, Path]:
    """The photos, and three files of one: as it is, stored on its side with EXIF that says so, and without.

    Returns:
        The folder; the three files.
    """
    shutil.copytree(photos, place)
    with Image.open(sorted(photos.iterdir())[0]) as image:
        square = image.crop((0, 0, image.height, image.height))
    upright, turned, sideways = (place / f"{name}.jpg" for name in ("upright", "turned", "sideways"))
    square.save(upright, quality=95)
    on_its_side = square.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[_ORIENTATION] = 6  # to be turned a quarter clockwise
    on_its_side.save(turned, quality=95, exif=exif)
    on_its_side.save(sideways, quality=95)
    return place, upright, turned, sideways
