"""All tokens of images, not one vector each: what an attentive probe looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float32

from vitembed.errors import ConfigError
from vitembed.images.loader import load_batches
from vitembed.images.source import ImageRef
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer

MAX_BYTES = 8 << 30
"""They are kept in memory, and the probe passes over them thirty times."""


def tokens_of(
    encoder: Encoder,
    refs: Sequence[ImageRef],
    *,
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float32[np.ndarray, "n t d"]:
    """The cls token, where there is one, and the patch tokens of each image, in the order of ``refs``.

    Args:
        encoder: Any ViT; its pooling plays no part.
        refs: Images that can be read, as they were embedded just before.
        batch_size: Images per pass through the model.
        num_workers: As for ``Encoder.stream``.
        progress: Called with the number of images done and the total.

    Raises:
        ConfigError: If the model gives no patch tokens, or they would take more than 8 GiB.
        BadImage: If an image cannot be read any more.
    """
    if not isinstance(encoder.vit, VisionTransformer):
        raise ConfigError(f"an attentive probe needs patch tokens, which {encoder.name} does not give")
    found: np.ndarray | None = None
    done = 0
    for batch in load_batches(refs, encoder.load_image, batch_size=batch_size, num_workers=num_workers, isolated=True):
        if batch.bad:
            raise batch.bad[0][1]
        pixels = torch.from_numpy(np.ascontiguousarray(batch.images)).to(encoder.device)
        with torch.inference_mode():
            tokens = encoder.tokens(pixels)
            every = [tokens.cls[:, None]] if encoder.vit.config.has_cls else []
            rows = torch.cat([*every, tokens.patches], dim=1).float().cpu().numpy()
        if found is None:
            size = len(refs) * rows[0].nbytes
            if size > MAX_BYTES:
                raise ConfigError(
                    f"the tokens of {len(refs):,} images take {size / 2**30:.1f} GiB, an attentive probe holds "
                    f"{MAX_BYTES / 2**30:.0f}: probe fewer images (about {MAX_BYTES // rows[0].nbytes:,})"
                )
            found = np.empty((len(refs), *rows.shape[1:]), dtype=np.float32)
        found[batch.indices] = rows
        done += len(rows)
        if progress is not None:
            progress(done, len(refs))
    assert found is not None, "no images"
    return found
