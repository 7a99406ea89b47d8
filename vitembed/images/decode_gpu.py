"""Large baseline JPEGs decoded by a GPU (nvJPEG, through torchvision), in a decoding process of its own.

Used on request, beside the processes that decode on processors: whoever is free takes the next image. A GPU decodes in
full, so its pixels are averaged over squares of 2, 4 or 8 there, which is what a scaled decode gives; the rest of the
preprocessing is the processor's, the same code. Images that gain nothing by it, or that decoders do not agree on
(small, progressive, CMYK, damaged, of other formats), are decoded on the processor as always.

Nothing is taken on trust: the first pictures, self-made and real, are decoded both ways, and a GPU that gives other
pixels is not used. Neither is one that fails: the processors take over, and no image is lost or refused for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, JpegImagePlugin

from vitembed.errors import BadImage
from vitembed.images.decode import Decoded, may_draft, orientation_of, pixel_limit, upright
from vitembed.images.formats import explain_os_error, open_regular, sniff_file
from vitembed.images.jpeg_segments import BASELINE, FRAMES, MAX_BYTES, SCAN, components_of, is_rgb, segments_of
from vitembed.images.loaded import Loaded
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef
from vitembed.images.worker import GaveUpError

if TYPE_CHECKING:
    from torch import Tensor

MAX_DIFFERENCE = 1.0
"""Mean over an image's pixels, of 255, beyond which two ways of decoding do not agree. Averages of a full decode and a
scaled decode differ by 0.2 on 12-megapixel photographs (``benchmarks/decode.py``)."""
NUM_COMPARED = 16
"""Real images that are decoded both ways before the GPU is believed."""
MAX_PIXELS = 100_000_000
"""Larger images are not for the GPU: in full and in floating point one takes 1.2 GB."""
MAX_FAILURES = 3
"""In a row; a context of CUDA that has failed is of no more use."""
_SAMPLE_SIZE = (1_205, 903)  # that no square divides


class GpuJpegs:
    """``Preprocess.load_image`` with a GPU at hand, for a decoding process (``pool.load_in_processes(also=...)``).

    Args:
        preprocess: What is done to each image.
        device: A CUDA device.
        decoder: Stands in for torchvision's where there is no such device: the bytes of a JPEG, as uint8 [n], to RGB,
            uint8 [3, h, w].
        tolerant: Take what is there of truncated images; these are always the processor's.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        device: str,
        *,
        decoder: Callable[[Tensor], Tensor] | None = None,
        tolerant: bool = False,
    ) -> None:
        self.preprocess = preprocess
        self._load = partial(preprocess.load_image, tolerant=tolerant)
        self.device = device
        self._decoder = decoder
        self._num_compared = 0
        self._num_failed = 0

    def __str__(self) -> str:
        """Its name in a message."""
        return f"JPEG decoding on {self.device}"

    def prepare(self) -> None:
        """Find the decoder, and see that its pixels are those of the processor.

        Raises:
            GaveUpError: If there is none, or they are not.
        """
        try:
            if self._decoder is None:
                self._decoder = _nvjpeg(self.device)
            for mode, subsampling in (("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0)):
                data = _sample(mode, subsampling)
                with Image.open(io.BytesIO(data)) as image:
                    exact = np.asarray(image.convert("RGB").reduce(2))
                near = self._averaged(data, 2)
                if near.shape != exact.shape or _difference(near, exact) > MAX_DIFFERENCE:
                    raise GaveUpError(f"it gives other pixels than the processor ({mode}, subsampling {subsampling})")
        except (ImportError, AttributeError, RuntimeError) as error:
            raise GaveUpError(" ".join(str(error).split())[:200]) from error

    def __call__(self, ref: ImageRef) -> Loaded:
        """Load one image, by the GPU if it is one for it.

        Raises:
            BadImage: If it cannot be decoded.
            GaveUpError: If the GPU is not to be used any more.
        """
        decoded = self._on_gpu(ref)
        if decoded is None:
            return self._load(ref)
        loaded = self.preprocess.fit(decoded)
        if self._num_compared < NUM_COMPARED:
            known = self._load(ref)
            if known.full_size != loaded.full_size or _difference(known.pixels, loaded.pixels) > MAX_DIFFERENCE:
                raise GaveUpError(f"it gives other pixels than the processor for {ref.path}")
            self._num_compared += 1
            return known
        return loaded

    def _on_gpu(self, ref: ImageRef) -> Decoded | None:
        """None: to be decoded, or refused, by the processor."""
        if ref.frame or not self.preprocess.draft:
            return None
        with open_regular(ref.path) as file:
            if sniff_file(file, ref.path) != "JPEG":
                return None
            try:
                data = file.read(MAX_BYTES + 1)
            except OSError as error:
                raise BadImage(ref.path, explain_os_error(error)) from error
        size = _plain_size(data)
        if size is None or size[0] * size[1] > min(pixel_limit(), MAX_PIXELS):
            return None
        if not may_draft(size, self.preprocess.decode_options):
            return None
        fits = min(size) // (2 * self.preprocess.short_px)
        scale = next(scale for scale in (8, 4, 2, 1) if scale <= max(fits, 1))
        if scale == 1:
            return None
        try:
            with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as header:
                orientation = orientation_of(header)
        except Exception:  # what Pillow does not open, it says why elsewhere
            return None
        try:
            pixels = self._averaged(data, scale)
        except RuntimeError as error:  # of this file, of its memory, or of all that comes
            self._num_failed += 1
            if self._num_failed == MAX_FAILURES:
                raise GaveUpError(" ".join(str(error).split())[:200]) from error
            return None
        self._num_failed = 0
        if pixels.shape != (-(-size[1] // scale), -(-size[0] // scale), 3):
            raise GaveUpError(f"it gives an array {list(pixels.shape)} at 1/{scale} for {ref.path}")
        return upright(Image.fromarray(pixels), size, orientation)

    def _averaged(self, data: bytes, scale: int) -> np.ndarray:
        """RGB, uint8 ``[h, w, 3]``, at 1/scale of the size, rounded up."""
        import torch
        from torch.nn.functional import avg_pool2d

        assert self._decoder is not None
        with torch.inference_mode():
            whole = self._decoder(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            small = avg_pool2d(whole[None].float(), scale, ceil_mode=True, count_include_pad=False)
            return small[0].round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


def _nvjpeg(device: str) -> Callable[[Tensor], Tensor]:
    import warnings

    warnings.filterwarnings("ignore")  # that its place is another package soon; pinned until it is
    from vitembed._torchvision import import_torchvision

    import_torchvision()
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda data: decode_jpeg(data, mode=ImageReadMode.RGB, device=device)


def _plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a whole baseline JPEG in one scan whose colours are kept in the usual way; else None."""
    segments = segments_of(data) if len(data) <= MAX_BYTES else None
    if segments is None:
        return None
    frames = [one for one in segments if one.marker in FRAMES]
    if len(frames) != 1 or frames[0].marker != BASELINE or sum(one.marker == SCAN for one in segments) != 1:
        return None
    body = frames[0].body
    components = components_of(body)
    if components is None or is_rgb(components, segments):
        return None
    height, width = (int.from_bytes(body[at : at + 2], "big") for at in (1, 3))
    return (width, height) if width and height else None


def _sample(mode: str, subsampling: int) -> bytes:
    """A JPEG with slopes, edges and grain."""
    width, height = _SAMPLE_SIZE
    rows, columns = np.mgrid[:height, :width]
    slopes = np.stack([rows * 255 / height, columns * 255 / width, 128 + 100 * np.sin(rows / 37 + columns / 53)], 2)
    slopes[height // 3 : height // 2, width // 4 : width // 2] = (230, 30, 40)
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 1))
    image = Image.fromarray(np.clip(slopes + grain, 0, 255).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **({"subsampling": subsampling} if mode == "RGB" else {}))
    return buffer.getvalue()


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float64) - other).mean())
