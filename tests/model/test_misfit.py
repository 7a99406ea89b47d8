"""A kind of ViT that nobody has taught exports and token merging about is refused, not exported as another one."""

from __future__ import annotations

import dataclasses

import pytest

from vitembed.config import ViTConfig
from vitembed.errors import ModelError
from vitembed.model.misfit import refuse_misfit


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterConfig(ViTConfig):
    qk_norm: bool = False


SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def test_a_field_that_came_later_is_refused_unless_at_its_default():
    refuse_misfit(LaterConfig(**SIZES, drop_path_rate=0.1), "timm's ViT", [], "use another")
    with pytest.raises(ModelError, match="^timm's ViT has no stem='conv', qk_norm=True: use another$"):
        refuse_misfit(LaterConfig(**SIZES, qk_norm=True), "timm's ViT", ["stem='conv'"], "use another")
