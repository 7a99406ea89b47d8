"""What lies behind transparent pixels: never a ground in which the picture vanishes."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw, features

from vitembed.images.decode import DecodeOptions, decode, decode_image, decode_pil
from vitembed.images.modes import HIDDEN

SIZE = 48
BEFORE = DecodeOptions(rules=1, depth="full")


def shape(number: int) -> Image.Image:
    """A mask of 0 and 255."""
    mask = Image.new("L", (SIZE, SIZE))
    draw = ImageDraw.Draw(mask)
    box = (8, 8, 40, 40)
    if number == 0:
        draw.ellipse(box, fill=255)
    elif number == 1:
        draw.rectangle((20, 4, 28, 44), fill=255)
    else:
        draw.polygon([(24, 4), (44, 44), (4, 44)], fill=255)
    return mask


def on_clear(kind: str, number: int, colour: int) -> Image.Image:
    mask = shape(number)
    grey = Image.new("L", (SIZE, SIZE), colour)
    if kind == "LA":
        return Image.merge("LA", (grey, mask))
    if kind == "RGBA":
        return Image.merge("RGBA", (grey, grey, grey, mask))
    if kind == "PA":
        image = on_clear("RGBA", number, colour).convert("PA")
        image.putalpha(mask)
        return image
    palette = Image.fromarray((np.asarray(mask) > 0).astype(np.uint8), "P")
    palette.putpalette([255 - colour] * 3 + [colour] * 3)
    palette.info["transparency"] = 0
    return palette


def files(draw, number: int, colour: int) -> dict[str, bytes]:
    """The same shape on nothing, in every way that a format has for it."""
    rgba, la, p = (on_clear(kind, number, colour) for kind in ("RGBA", "LA", "P"))
    found = {
        "png rgba": draw.encoded(rgba, "PNG"), "png la": draw.encoded(la, "PNG"),
        "png p": draw.encoded(p, "PNG", transparency=0), "gif": draw.encoded(p, "GIF", transparency=0),
        "webp": draw.encoded(rgba, "WEBP", lossless=True, exact=True), "tiff": draw.encoded(rgba, "TIFF"),
        "tiff la": draw.encoded(la, "TIFF"), "tga": draw.encoded(rgba, "TGA"), "ico": draw.encoded(rgba, "ICO"),
        "jp2": draw.encoded(rgba, "JPEG2000"),
    }  # fmt: skip
    if features.check("avif"):
        found["avif"] = draw.encoded(rgba, "AVIF", quality=100)
    seen = np.asarray(shape(number))
    other = 255 - colour
    grey = Image.fromarray(np.where(seen > 0, colour, other).astype(np.uint8))
    found["png grey + tRNS"] = draw.encoded(grey, "PNG", transparency=other)
    found["png rgb + tRNS"] = draw.encoded(grey.convert("RGB"), "PNG", transparency=(other,) * 3)
    values = np.where(seen > 0, colour * 257, other * 257).astype(np.uint16)
    key = draw.png_chunk(b"tRNS", values[0, 0].astype(">u2").tobytes() * 3)
    found["png rgb 16 + tRNS"] = draw.png_16_bit_rgb(np.repeat(values[:, :, None], 3, axis=2), key)
    return found


@pytest.mark.parametrize("colour", [255, 240, 20])
def test_what_would_vanish_shows(put, draw, colour):
    ground = (255,) * 3 if colour > 128 else (0,) * 3
    options = DecodeOptions(background=ground)
    for number in range(3):
        seen = np.asarray(shape(number)) > 0
        for name, data in files(draw, number, colour).items():
            pixels = decode(put(data, f"image.{name.split()[0]}"), options)
            assert abs(pixels[seen].astype(float).mean() - colour) < 4, name
            assert abs(pixels[~seen].astype(float).mean() - (0 if colour > 128 else 255)) < 4, name
    # As it was, for models from before: nothing is seen.
    blank = decode(put(draw.encoded(on_clear("RGBA", 0, colour), "PNG")), DecodeOptions(background=ground, rules=1))
    assert blank.std() < 12


def test_no_two_shapes_are_one_picture(put, draw):
    for kind in ("RGBA", "LA", "P", "PA"):
        images = [decode_pil(on_clear(kind, number, 255)).astype(float) for number in range(3)]
        assert all(np.abs(one - other).mean() > 20 for one, other in itertools.combinations(images, 2)), kind


def test_what_is_seen_keeps_its_background(put, draw):
    photo = Image.merge("RGBA", (*[Image.linear_gradient("L").resize((SIZE, SIZE))] * 3, shape(0)))
    for image in (photo, on_clear("RGBA", 1, 20), on_clear("RGBA", 1, 128)):
        data = put(draw.encoded(image, "PNG"))
        np.testing.assert_array_equal(decode(data), decode(data, BEFORE))
        assert (decode(data)[0, 0] == 255).all()


def test_what_is_transparent_all_over(put, draw):
    hidden = np.zeros((SIZE, SIZE, 4), np.uint8)
    hidden[:, :, 0] = np.arange(SIZE) * 5
    decoded = decode_image(put(draw.encoded(Image.fromarray(hidden), "PNG")))
    np.testing.assert_array_equal(np.array(decoded.image), hidden[:, :, :3])
    assert decoded.notes == (HIDDEN,)
    plain = decode_image(put(draw.encoded(Image.new("RGBA", (SIZE, SIZE), (9, 9, 9, 0)), "PNG")))
    assert (np.array(plain.image) == 255).all()
    assert plain.notes == ()


def test_deep_alpha(put, draw):
    seen = np.asarray(shape(2)) > 0
    rows = np.where(seen[:, :, None], [4095, 4095, 4095, 65535], [0, 0, 0, 0]).astype(">u2")
    import struct

    head = draw.png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 16, 6, 0, 0, 0))
    body = draw.png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    pixels = decode(put(b"\x89PNG\r\n\x1a\n" + head + body + draw.png_chunk(b"IEND", b"")))
    assert (pixels[seen] == 255).all()
    assert (pixels[~seen] == 0).all()
