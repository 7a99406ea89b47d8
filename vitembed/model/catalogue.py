"""The public vision transformers that have a name here, as data: where they come from, how large, under which licence.

Sizes were counted on the models that timm builds without a head (``tests/model/test_names.py`` does it again); licences
are those that the weights' authors give. A revision is pinned only where the commit was seen; ``None`` means that the
hub's ``main`` is resolved when the model is first fetched, and that commit is used from then on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublicModel:
    """One public model."""

    name: str
    """What ``--model`` takes."""
    family: str
    """How it was made; families share preprocessing."""
    hub_id: str
    """Repository on the Hugging Face hub."""
    revision: str | None = None
    """Full commit hash, where one could be verified."""
    embed_dim: int
    """Width of a token."""
    depth: int
    """Number of blocks."""
    num_heads: int
    """Attention heads per block."""
    patch_size: int
    """Side of a patch in pixels."""
    num_registers: int = 0
    """Tokens beside cls and patches."""
    hidden_dim: int
    """Width inside a block's MLP."""
    gated_mlp: bool = False
    """Whether the MLP is a SwiGLU: one more matrix of the same size."""
    has_cls: bool = True
    """Whether there is a cls token."""
    num_params: int
    """Weights of the encoder, heads and decoders left out."""
    img_size: int = 224
    """Side of the image that it sees here, in pixels."""
    licence: str
    """SPDX name, or the name of a licence of its own."""
    paper: str
    """Source, on arXiv."""
    gated: bool = False
    """Whether the hub wants the licence accepted, by a logged-in account, before it hands out the file."""


# width, depth, heads, hidden, of the usual sizes
_SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "medium": (512, 12, 8, 2048),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
}


def _model(
    name: str, hub_id: str, size: str, patch_size: int, num_params_m: float, like: PublicModel, **facts: object
) -> PublicModel:
    """A row that shares licence, paper and family with ``like``; parameters in millions."""
    given: dict[str, object] = {"name": name, "hub_id": hub_id, "patch_size": patch_size, **facts}
    if size in _SIZES:
        given |= dict(zip(("embed_dim", "depth", "num_heads", "hidden_dim"), _SIZES[size], strict=True))
    return dataclasses.replace(like, **given, num_params=round(num_params_m * 1e6))  # type: ignore[arg-type]


def _family(family: str, licence: str, paper: str, **facts: object) -> PublicModel:
    """What the models of a family share; sizes are those of its rows."""
    blank = {"name": "", "hub_id": "", "embed_dim": 0, "depth": 0, "num_heads": 0, "patch_size": 0, "hidden_dim": 0}
    given: dict[str, object] = {**blank, "num_params": 0, "family": family, "licence": licence, "paper": paper, **facts}
    return PublicModel(**given)  # type: ignore[arg-type]


_DINOV2 = _family("dinov2", "Apache-2.0", "arXiv:2304.07193")
_DINOV2_REG = _family("dinov2", "Apache-2.0", "arXiv:2309.16588", num_registers=4)
_GIANT = {"embed_dim": 1536, "depth": 40, "num_heads": 24, "hidden_dim": 4096, "gated_mlp": True}
_DINO = _family("dino", "Apache-2.0", "arXiv:2104.14294")
_MAE = _family("mae", "CC-BY-NC-4.0", "arXiv:2111.06377")
_DINOV3 = _family("dinov3", "DINOv3 License", "arXiv:2508.10104", num_registers=4, gated=True)
_DEIT3 = _family("deit3", "Apache-2.0", "arXiv:2204.07118")
_AUGREG = _family("augreg", "Apache-2.0", "arXiv:2106.10270")
_CLIP = _family("clip", "MIT", "arXiv:2103.00020")
_IJEPA = _family("ijepa", "CC-BY-NC-4.0", "arXiv:2301.08243", has_cls=False)

MODELS: tuple[PublicModel, ...] = (
    _model(
        *("dinov2-small", "facebook/dinov2-small", "small", 14, 22.1, _DINOV2),
        revision="ed25f3a31f01632728cabb09d1542f84ab7b0056",
    ),
    _model("dinov2-base", "facebook/dinov2-base", "base", 14, 86.6, _DINOV2),
    _model("dinov2-large", "facebook/dinov2-large", "large", 14, 304.4, _DINOV2),
    _model("dinov2-giant", "facebook/dinov2-giant", "giant", 14, 1136.5, _DINOV2, **_GIANT),
    _model("dinov2-small-reg", "facebook/dinov2-with-registers-small", "small", 14, 22.1, _DINOV2_REG),
    _model("dinov2-base-reg", "facebook/dinov2-with-registers-base", "base", 14, 86.6, _DINOV2_REG),
    _model("dinov2-large-reg", "facebook/dinov2-with-registers-large", "large", 14, 304.4, _DINOV2_REG),
    _model("dinov2-giant-reg", "facebook/dinov2-with-registers-giant", "giant", 14, 1136.5, _DINOV2_REG, **_GIANT),
    _model("dinov3-small", "facebook/dinov3-vits16-pretrain-lvd1689m", "small", 16, 21.6, _DINOV3),
    _model(
        "dinov3-small-plus", "facebook/dinov3-vits16plus-pretrain-lvd1689m", "small", 16, 28.7, _DINOV3, gated_mlp=True
    ),
    _model("dinov3-base", "facebook/dinov3-vitb16-pretrain-lvd1689m", "base", 16, 85.6, _DINOV3),
    _model("dinov3-large", "facebook/dinov3-vitl16-pretrain-lvd1689m", "large", 16, 303.1, _DINOV3),
    _model(
        *("dinov3-huge-plus", "facebook/dinov3-vith16plus-pretrain-lvd1689m", "", 16, 840.5, _DINOV3),
        embed_dim=1280,
        depth=32,
        num_heads=20,
        hidden_dim=5120,
        gated_mlp=True,
    ),
    _model(
        *("dinov3-7b", "facebook/dinov3-vit7b16-pretrain-lvd1689m", "", 16, 6716.0, _DINOV3),
        embed_dim=4096,
        depth=40,
        num_heads=32,
        hidden_dim=8192,
        gated_mlp=True,
    ),
    _model("dinov3-large-sat", "facebook/dinov3-vitl16-pretrain-sat493m", "large", 16, 303.1, _DINOV3),
    _model("dino-small16", "facebook/dino-vits16", "small", 16, 21.7, _DINO),
    _model("dino-small8", "facebook/dino-vits8", "small", 8, 21.7, _DINO),
    _model("dino-base16", "facebook/dino-vitb16", "base", 16, 85.8, _DINO),
    _model("dino-base8", "facebook/dino-vitb8", "base", 8, 85.8, _DINO),
    _model("mae-base", "facebook/vit-mae-base", "base", 16, 85.8, _MAE),
    _model("mae-large", "facebook/vit-mae-large", "large", 16, 303.3, _MAE),
    _model("mae-huge", "facebook/vit-mae-huge", "huge", 14, 630.8, _MAE),
    _model("deit3-small", "timm/deit3_small_patch16_224.fb_in22k_ft_in1k", "small", 16, 21.7, _DEIT3),
    _model("deit3-medium", "timm/deit3_medium_patch16_224.fb_in22k_ft_in1k", "medium", 16, 38.3, _DEIT3),
    _model("deit3-base", "timm/deit3_base_patch16_224.fb_in22k_ft_in1k", "base", 16, 85.8, _DEIT3),
    _model("deit3-large", "timm/deit3_large_patch16_224.fb_in22k_ft_in1k", "large", 16, 303.3, _DEIT3),
    _model("deit3-huge", "timm/deit3_huge_patch14_224.fb_in22k_ft_in1k", "huge", 14, 630.8, _DEIT3),
    _model("vit-tiny-augreg", "timm/vit_tiny_patch16_224.augreg_in21k", "tiny", 16, 5.5, _AUGREG),
    _model("vit-small-augreg", "timm/vit_small_patch16_224.augreg_in21k", "small", 16, 21.7, _AUGREG),
    _model("vit-small32-augreg", "timm/vit_small_patch32_224.augreg_in21k", "small", 32, 22.5, _AUGREG),
    _model("vit-base-augreg", "timm/vit_base_patch16_224.augreg_in21k", "base", 16, 85.8, _AUGREG),
    _model("vit-base32-augreg", "timm/vit_base_patch32_224.augreg_in21k", "base", 32, 87.5, _AUGREG),
    _model("vit-base8-augreg", "timm/vit_base_patch8_224.augreg_in21k", "base", 8, 85.8, _AUGREG),
    _model("vit-large-augreg", "timm/vit_large_patch16_224.augreg_in21k", "large", 16, 303.3, _AUGREG),
    _model("clip-base32", "openai/clip-vit-base-patch32", "base", 32, 87.5, _CLIP),
    _model("clip-base16", "openai/clip-vit-base-patch16", "base", 16, 85.8, _CLIP),
    _model("clip-large14", "openai/clip-vit-large-patch14", "large", 14, 303.2, _CLIP),
    _model("clip-large14-336", "openai/clip-vit-large-patch14-336", "large", 14, 303.5, _CLIP, img_size=336),
    _model("ijepa-huge14", "facebook/ijepa_vith14_1k", "huge", 14, 630.8, _IJEPA),
    _model("ijepa-huge14-22k", "facebook/ijepa_vith14_22k", "huge", 14, 630.8, _IJEPA),
    _model("ijepa-huge16", "facebook/ijepa_vith16_1k", "huge", 16, 631.7, _IJEPA, img_size=448),
    _model(
        *("ijepa-giant16-22k", "facebook/ijepa_vitg16_22k", "", 16, 1011.4, _IJEPA),
        embed_dim=1408,
        depth=40,
        num_heads=16,
        hidden_dim=6144,
    ),
)
