"""A part of an image as the query: ``--crop X,Y,W,H``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitembed.errors import DataError, printable
from vitembed.images.source import ImageRef

if TYPE_CHECKING:  # loads Pillow, which a search for an indexed image does without
    from PIL.Image import Image as PILImage

    from vitembed.images.decode import DecodeOptions

_NUMBER = r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(%?)\s*"
_CROP = re.compile(",".join([_NUMBER] * 4))


@dataclass(frozen=True)
class Crop:
    """A rectangle of the upright image: its left top corner and its size."""

    text: str
    """As it was given."""
    numbers: tuple[float, float, float, float]
    """X, Y, W, H."""
    in_percent: bool
    """Of width and height; else pixels of the image in the file."""

    @classmethod
    def parse(cls, text: str) -> Crop:
        """Read ``100,50,300,200`` (pixels) or ``25%,25%,50%,50%``.

        Raises:
            DataError: If it is something else, or of no size.
        """
        match = _CROP.fullmatch(text)
        if match is None or len({match[2], match[4], match[6], match[8]}) > 1:
            raise DataError(
                f"crop {printable(text)!r} is no X,Y,W,H: expected four pixel counts such as 100,50,300,200, "
                "or four percentages such as 25%,25%,50%,50%"
            )
        x, y, width, height = (float(match[place]) for place in (1, 3, 5, 7))
        if width <= 0 or height <= 0:
            raise DataError(f"crop {printable(text)!r} holds no pixel: W and H must be above 0")
        return cls(text, (x, y, width, height), bool(match[2]))

    def load(self, path: str, options: DecodeOptions) -> PILImage:
        """The rectangle of an image file, decoded in full.

        Raises:
            BadImage: If the file cannot be decoded.
            DataError: If the rectangle does not lie within the image.
        """
        from vitembed.images.decode import decode_image

        image = decode_image(ImageRef(path), options).image
        return image.crop(self.box(*image.size, path))

    def box(self, width: int, height: int, path: str) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels, within an image of this size; a tenth of a pixel too much is rounding."""
        x, y, w, h = self.numbers
        if self.in_percent:
            x, y, w, h = x * width / 100, y * height / 100, w * width / 100, h * height / 100
        if x + w > width + 0.1 or y + h > height + 0.1:
            raise DataError(f"crop {self.text} does not lie within {printable(path)}, which has {width} x {height} px")
        left, top = min(round(x), width - 1), min(round(y), height - 1)
        return left, top, max(left + 1, min(round(x + w), width)), max(top + 1, min(round(y + h), height))
