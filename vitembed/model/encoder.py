"""The encoder: a ViT, the preprocessing that belongs to it and the fingerprint of both. Images in, vectors out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vitembed.config.ranges import BATCH_SIZE, NUM_WORKERS, check_numbers
from vitembed.config.running import DEPTHS
from vitembed.device import resolve_device
from vitembed.embeddings import Embeddings
from vitembed.errors import BadImage, ConfigError, DataError
from vitembed.images.decode_gpu import GpuJpegs
from vitembed.images.ignored import log_passed_over
from vitembed.images.loaded import Loaded
from vitembed.images.loader import load_batches
from vitembed.images.preprocess import Preprocess
from vitembed.images.source import ImageRef, find_images
from vitembed.model.checkpoint import fingerprint
from vitembed.model.speed import Speed
from vitembed.model.timm_encoder import TimmEncoder
from vitembed.model.vit import Tokens, VisionTransformer

POOLS = ("cls", "mean", "cls+mean")
_FEW_IMAGES = 8
"""So many are decoded before another process could have started."""
ImageLike = str | os.PathLike[str] | Image.Image | npt.NDArray[np.uint8]
"""A path, or an image in memory: Pillow's, or uint8 [h, w], [h, w, 3], [h, w, 4]."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """Vectors of some of the images, as they come."""

    indices: npt.NDArray[np.int64]
    """Positions in the list of images that was given, [b]."""
    vectors: npt.NDArray[np.float32]
    """One row per index, [b, d], not normalised."""
    bad: list[tuple[int, BadImage]]
    """Positions of images that could not be read, with the reason."""
    decode_seconds: float
    """Time that worker threads spent on decoding."""
    model_seconds: float
    """Time that the model took."""
    image_sizes: npt.NDArray[np.int64] | None = None
    """Width and height of the upright originals in pixels, [b, 2]."""
    notes: list[tuple[int, str]] = field(default_factory=list)
    """Positions of images whose files are odd though their pixels are good, with what is odd."""


class Encoder:
    """Turns images into vectors.

    Args:
        vit: Any module that gives ``Tokens`` for normalised pixels [b, c, h, w].
        preprocess: How images become its input.
        pool: cls (the cls vector), mean (of the patch tokens) or cls+mean (both, side by side).
        name: What to call it in reports.
        device: Where it runs.
        provenance: Facts about where the weights come from.
        licence: Licence of the weights.
        speed: exact, half, tome:R or half+tome:R: what to give up for faster vectors (``vitembed.model.speed``).
        reference: What ``load`` gives the very same weights for, from any folder; none: ``name``.
        gpu_decode: Let the CUDA device that the encoder is on decode large JPEGs, beside the processor
            (``vitembed.images.decode_gpu``).
        tolerant: Take what is there of truncated images, with a note.

    Raises:
        ConfigError: If ``pool`` or ``speed`` is unknown, or ``gpu_decode`` is asked of another device.
        ModelError: If this model's tokens cannot be merged as ``speed`` asks.
    """

    def __init__(
        self,
        vit: VisionTransformer | TimmEncoder,
        preprocess: Preprocess,
        *,
        pool: str = "cls",
        name: str = "",
        device: torch.device | None = None,
        provenance: dict[str, Any] | None = None,
        licence: str | None = None,
        speed: str | Speed = "exact",
        reference: str | None = None,
        gpu_decode: bool = False,
        tolerant: bool = False,
    ) -> None:
        if pool not in POOLS:
            raise ConfigError(f"unknown pool {pool!r}: expected one of {', '.join(POOLS)}")
        if pool != "mean" and not vit.config.has_cls:
            raise ConfigError(f"pool {pool!r} needs a cls token, which this architecture does not have: use mean")
        if pool != "cls" and not isinstance(vit, VisionTransformer):
            raise ConfigError(
                f"pool {pool!r} needs patch tokens, which {vit.config.architecture} does not give: use cls"
            )
        self.device = device or torch.device("cpu")
        if gpu_decode and self.device.type != "cuda":
            raise ConfigError(
                f"decoding on a GPU needs a CUDA device, and this encoder is on {self.device}: leave it out"
            )
        self.gpu_decode = gpu_decode
        self.load_image: Callable[[ImageRef], Loaded] = partial(preprocess.load_image, tolerant=tolerant)
        """Loads an image as ``preprocess`` does, half ones too if this encoder is tolerant; picklable."""
        self._tolerant = tolerant
        # timm's models do all that this class asks of a ViT; who needs more of one asks whether it is one.
        self.vit = cast(VisionTransformer, vit.to(self.device).eval())
        self.preprocess = preprocess
        self.pool = pool
        self.name = name
        self.provenance = provenance or {}
        self.licence = licence
        self.reference = reference or name
        self.speed = Speed.parse(speed)
        self.fingerprint = self.speed.mark(fingerprint(vit.state_dict(), vit.config, preprocess, pool))
        self.embed_dim = vit.config.embed_dim * (2 if pool == "cls+mean" else 1)
        self._mean = torch.tensor(preprocess.mean, device=self.device).reshape(1, -1, 1, 1)
        self._std = torch.tensor(preprocess.std, device=self.device).reshape(1, -1, 1, 1)
        self._forward = self.speed.applied(self.vit, self.device)

    def that_made(self, fingerprint: str) -> Encoder:
        """Give the version of this encoder with the fingerprint; the encoder itself if none has it.

        There are two versions: today's decoding, and the decoding of models older than ``depth``.

        Args:
            fingerprint: Of vectors or a probe, perhaps made by an older version of vitembed.
        """
        if fingerprint in ("", self.fingerprint) or self.preprocess == self.preprocess.as_before():
            return self
        before = Encoder(
            self.vit,
            self.preprocess.as_before(),
            pool=self.pool,
            name=self.name,
            device=self.device,
            provenance=self.provenance,
            licence=self.licence,
            speed=self.speed,
            reference=self.reference,
            gpu_decode=self.gpu_decode,
            tolerant=self._tolerant,
        )
        return before if before.fingerprint == fingerprint else self

    def embed(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        batch_size: int = 64,
        num_workers: int | None = None,
        on_bad: Literal["raise", "skip"] = "raise",
        progress: Callable[[int, int], None] | None = None,
    ) -> Embeddings:
        """One vector per image, in the order given; the images of a folder in the order of their paths' bytes.

        Args:
            images: Folders, files and ``@list.txt``; or images in memory (Pillow, or uint8 arrays; several in a list).
            batch_size: Images per pass through the model.
            num_workers: Threads that decode; none: one per core.
            on_bad: Whether an unreadable image stops everything (``raise``) or is left out and listed in
                ``meta["bad"]`` (``skip``).
            progress: Called with the number done and the total.

        Raises:
            BadImage: The first unreadable image, under ``on_bad="raise"``.
            ConfigError: If ``batch_size`` or ``num_workers`` is out of range.
            DataError: If there is no image to embed.
        """
        check_numbers(batch_size=(batch_size, BATCH_SIZE), num_workers=(num_workers, NUM_WORKERS))
        meta = {"model": self.name, "pool": self.pool, "img_size": self.preprocess.img_size, "normalized": False}
        single = isinstance(images, (str, os.PathLike, Image.Image))
        if isinstance(images, np.ndarray):  # one image, unless it is a stack [b, h, w, c]
            single = images.ndim != 4
        items: list[ImageLike] = [images] if single else list(images)  # type: ignore[list-item, arg-type]
        in_memory = [item for item in items if not isinstance(item, (str, os.PathLike))]
        paths = [item for item in items if isinstance(item, (str, os.PathLike))]
        if in_memory and paths:
            raise DataError("images in memory and paths cannot be mixed in one call")
        if in_memory:
            arrays = [self.preprocess.apply(image) for image in in_memory]
            parts = [self.embed_arrays(np.stack(arrays[i : i + batch_size])) for i in range(0, len(arrays), batch_size)]
            ids = [str(i) for i in range(len(arrays))]
            return Embeddings(vectors=np.concatenate(parts), ids=ids, fingerprint=self.fingerprint, meta=meta)

        refs, bad = _listed(paths)
        if bad and on_bad == "raise":
            raise bad[0]
        vectors, ids, total, notes = [], [], len(refs) + len(bad), list[dict[str, str]]()
        if num_workers is None and len(refs) <= _FEW_IMAGES:
            num_workers = 0
        for batch in self.stream(refs, batch_size=batch_size, num_workers=num_workers):
            if batch.bad and on_bad == "raise":
                raise batch.bad[0][1]
            bad += [problem for _, problem in batch.bad]
            notes += [{"path": refs[place].path, "note": words} for place, words in batch.notes]
            vectors.append(batch.vectors)
            ids += [refs[i].path for i in batch.indices]
            if progress is not None:
                progress(len(ids) + len(bad), total)
        if not ids:
            first = f", the first: {bad[0]}" if bad else ""
            raise DataError(f"no readable image in {', '.join(map(str, paths))} ({len(bad)} unreadable{first})")
        meta["bad"] = [{"path": problem.path, "reason": problem.reason} for problem in bad]
        if notes:
            meta["notes"] = notes
        return Embeddings(vectors=np.concatenate(vectors), ids=ids, fingerprint=self.fingerprint, meta=meta)

    def stream(
        self, refs: Sequence[ImageRef], *, batch_size: int = 64, num_workers: int | None = None
    ) -> Iterator[EmbeddedBatch]:
        """Vectors batch by batch while the next images are being decoded; bounded memory for any number of images.

        Images are decoded in processes, so that one that crashes or hangs its decoder is just a bad image;
        ``num_workers=0`` decodes in this one, which answers a quarter of a second sooner for a few.
        """
        batches = load_batches(
            refs,
            self.load_image,
            batch_size=batch_size,
            num_workers=num_workers,
            isolated=True,
            also=GpuJpegs(self.preprocess, str(self.device), tolerant=self._tolerant) if self.gpu_decode else None,
        )
        for batch in batches:
            start = time.perf_counter()
            vectors = self.embed_arrays(batch.images)
            seconds = time.perf_counter() - start
            yield EmbeddedBatch(
                batch.indices, vectors, batch.bad, batch.decode_seconds, seconds, batch.image_sizes, batch.notes
            )

    def embed_arrays(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Vectors of preprocessed images.

        Args:
            images: uint8 [b, s, s, c], as ``preprocess`` makes them.

        Returns:
            float32 [b, d], not normalised.
        """
        if len(images) == 0:
            return np.zeros((0, self.embed_dim), np.float32)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device, non_blocking=True)
        with torch.inference_mode():
            return self.pooled(self.tokens(pixels)).float().cpu().numpy()

    def tokens(self, images: Tensor) -> Tokens:
        """Tokens of preprocessed images, uint8 [b, s, s, c] on the encoder's device."""
        pixels = images.permute(0, 3, 1, 2).float().div(255.0)
        tokens: Tokens = self._forward((pixels - self._mean) / self._std)
        return tokens

    def pooled(self, tokens: Tokens) -> Tensor:
        """One vector per image, [b, d]."""
        if self.pool == "cls":
            return tokens.cls
        mean = self.vit.mean_pool(tokens)
        return mean if self.pool == "mean" else torch.cat([tokens.cls, mean], dim=1)


def _listed(inputs: Sequence[str | os.PathLike[str]]) -> tuple[list[ImageRef], list[BadImage]]:
    """Files just where they were named, also twice; folders and lists spread out where they were named."""
    refs: list[ImageRef] = []
    bad: list[BadImage] = []
    for item in inputs:
        name = os.fsdecode(item)
        if os.path.isfile(name) and not name.startswith("@"):  # noqa: PTH113 - names that are not UTF-8 stay strings
            refs.append(ImageRef(os.path.abspath(name)))  # noqa: PTH100 - links are kept
        else:
            listing = find_images([item])
            log_passed_over(listing.passed_over, listing.unfinished)
            refs += listing.refs
            bad += listing.bad
    return refs, bad


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    pool: str | None = None,
    speed: str = "exact",
    gpu_decode: bool = False,
    depth: str | None = None,
    tolerant: bool = False,
) -> Encoder:
    """The encoder that a name means; without a name the workspace's own.

    Args:
        model: A model folder; a weights file or folder of another project (timm, transformers, MAE, DINO ...); the
            name given to ``vitembed pretrain --name`` in this workspace; or a public name such as ``dinov2-small``,
            ``timm/NAME`` or ``org/name`` on the Hugging Face hub, also with ``@REVISION``.
        device: auto, cpu, cuda, cuda:N or mps.
        pool: cls, mean or cls+mean, instead of the model's own choice.
        speed: exact, half (16 bits), tome:R (each block merges R tokens) or half+tome:R.
        gpu_decode: Let a CUDA device decode large JPEGs too, beside the processor.
        depth: What is white in images of more than 8 bits, instead of the model's own choice (``data.depth``).
        tolerant: Take what is there of truncated images, with a note.

    Raises:
        ConfigError: If ``depth``, ``device``, ``pool`` or ``speed`` is unknown, or there is no CUDA device for
            ``gpu_decode``.
        ModelError: If there is no usable model there.
        VitembedError: Without ``model``, if there is no workspace.
    """
    from vitembed.model.opening import open_model

    chosen = resolve_device(device)
    if depth is not None and depth not in DEPTHS:
        raise ConfigError(f"unknown depth {depth!r}: expected one of {', '.join(DEPTHS)}")
    opened = open_model(model)
    return Encoder(
        opened.vit,
        opened.preprocess if depth is None else replace(opened.preprocess, depth=depth),
        pool=pool or opened.pool,
        name=opened.name,
        device=chosen,
        provenance=opened.provenance,
        licence=opened.licence,
        speed=speed,
        reference=opened.reference,
        gpu_decode=gpu_decode,
        tolerant=tolerant,
    )
