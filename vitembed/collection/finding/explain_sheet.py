"""Heat maps and answering patches as pictures: the sheet that ``search --explain`` writes."""
# ruff: noqa: PTH100
# Paths stay plain strings: names that are not UTF-8 are kept as they are.

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitembed.collection.finding.explain import Explainer, Explanation
from vitembed.collection.search import SearchResult
from vitembed.collection.sheet import SheetImage, SheetRow, write_sheet
from vitembed.collection.sheet_png import sheet_png
from vitembed.errors import BadImage, DataError, MismatchError, printable
from vitembed.images.source import ImageRef
from vitembed.model.encoder import Encoder
from vitembed.outputs import PICTURE, check_output, page_or_picture

MAX_HITS = 6
PICTURE_PX = 280
_WARM, _COOL = np.array([214, 60, 20]), np.array([40, 90, 200])
_COLOURS = ("#e6194b", "#0a7d32", "#1f4fd8", "#b8860b", "#8e24aa", "#00838f", "#d2691e", "#444444")
NOTE = (
    "Warm: seeing this part raises the cosine between the two vectors; cool: lowers it (linear fit over random halves "
    "of each image). Numbers: patches that are each other's nearest by their own vectors, among those that count. "
    "Images as the model sees them."
)

SHORT_NOTE = "warm: raises the cosine of the vectors; cool: lowers it; numbers: patches that answer each other"


def write_explanation(
    path: str | os.PathLike[str], encoder: Encoder, fingerprint: str, result: SearchResult, *, max_hits: int = MAX_HITS
) -> None:
    """Write why each of the best hits matched, as a page (``.html``) or one picture (``.png``).

    Args:
        path: The file; one of ours that is there is replaced whole or not at all.
        encoder: Of the collection that was searched.
        fingerprint: Of that collection.
        result: Of one query image.
        max_hits: How many of the hits; each takes a hundred passes of half an image through the model.

    Raises:
        DataError: If there are several queries or none that is an image, or the file's suffix is another one.
        MismatchError: If the encoder is not the one of the collection.
        BadImage: If the query cannot be read.
    """
    kind = page_or_picture(path)
    check_output(path, kind)
    encoder = encoder.that_made(fingerprint)
    if encoder.fingerprint != fingerprint:
        raise MismatchError(
            f"the collection is of encoder {fingerprint[:12]}, this is encoder {encoder.fingerprint[:12]}: "
            "run vitembed index --rebuild, or name another --workspace"
        )
    query = _query_pixels(encoder, result)
    explainer = Explainer(encoder, query)
    rows = []
    for hit in result.hits[:max_hits]:
        try:
            pixels = encoder.preprocess.load(ImageRef(hit.path))
        except BadImage as error:
            rows.append(SheetRow(SheetImage(query, ["query"]), [SheetImage(hit.path, [error.reason, hit.path])]))
            continue
        rows.append(_row(query, pixels, explainer.explain(pixels), hit.rank, hit.path, result.queries[0]))
    title = "Why they match"
    if kind is PICTURE:
        sheet_png(path, title, rows, SHORT_NOTE, thumb_px=PICTURE_PX // 2)
    else:
        side_by_side = [SheetRow([], [*row.queries(), *row.hits]) for row in rows]
        write_sheet(path, title, side_by_side, NOTE, thumb_px=PICTURE_PX)


def _query_pixels(encoder: Encoder, result: SearchResult) -> np.ndarray:
    if len(result.queries) != 1 or result.exclude:
        raise DataError(
            f"an explanation is for one query image, got {len(result.queries)} and {len(result.exclude)} to move "
            "away from: search for one alone"
        )
    path = os.path.abspath(result.queries[0])
    if not os.path.isfile(path):  # noqa: PTH113  # as above
        raise DataError(f"no image to explain: {printable(result.queries[0])} is no file")
    if result.crop is not None:
        return encoder.preprocess.apply(result.crop.load(path, encoder.preprocess.decode_options))
    return encoder.preprocess.load(ImageRef(path))


def _row(query: np.ndarray, hit: np.ndarray, found: Explanation, rank: int, path: str, name: str) -> SheetRow:
    strongest = max(float(np.abs(found.query).max()), float(np.abs(found.hit).max()), 1e-9)
    queries = [
        SheetImage(heat(query, found.query, strongest), [f"query and {rank}.: {found.score:.4f}", name]),
        SheetImage(numbered(query, [match.query for match in found.matches], found.grid), ["answering patches"]),
    ]
    likeness = ", ".join(f"{match.cosine:.2f}" for match in found.matches) or "none"
    hits = [
        SheetImage(heat(hit, found.hit, strongest), [f"{rank}. strongest {strongest:+.3f}", path]),
        SheetImage(
            numbered(hit, [match.hit for match in found.matches], found.grid), ["answering patches", f"{likeness}"]
        ),
    ]
    return SheetRow(queries, hits)


def heat(pixels: np.ndarray, contribution: np.ndarray, strongest: float) -> Image.Image:
    """The image in grey with warm and cool parts over it; ``strongest`` is as warm or cool as can be."""
    base = Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1))
    size = (PICTURE_PX, PICTURE_PX)
    grey = np.asarray(base.convert("L").convert("RGB").resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    grey = 90 + grey * (165 / 255)  # paler, so that colours show on black too
    smooth = np.asarray(
        Image.fromarray((contribution / strongest).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    ).clip(-1, 1)
    tint = np.where(smooth[..., None] > 0, _WARM, _COOL)
    share = 0.75 * np.abs(smooth)[..., None]
    return Image.fromarray((grey * (1 - share) + tint * share).clip(0, 255).astype(np.uint8))


def numbered(pixels: np.ndarray, places: list[tuple[int, int]], grid: int) -> Image.Image:
    """The image with a numbered frame around each of some patches."""
    base = Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1))
    picture = base.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)
    pen, font, side = ImageDraw.Draw(picture), ImageFont.load_default(15), PICTURE_PX / grid
    for number, (row, column) in enumerate(places, start=1):
        colour = _COLOURS[(number - 1) % len(_COLOURS)]
        left, top = column * side, row * side
        pen.rectangle((left, top, left + side - 1, top + side - 1), None, colour, 3)
        pen.rectangle((left, top, left + 14, top + 18), colour)
        pen.text((left + 3, top), str(number), "white", font)
    return picture
