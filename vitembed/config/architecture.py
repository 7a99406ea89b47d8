"""The architecture of an encoder: what is stored beside its weights, and what a run asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vitembed.config.ranges import out_of_range
from vitembed.errors import ConfigError

# Width, depth and heads of each size. nano is for CPU demos; the others are the sizes of DeiT / ViT / MAE.
PRESETS: dict[str, tuple[int, int, int]] = {
    "nano": (128, 4, 2),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


_CHOICES: dict[str, tuple[str, ...]] = {
    "pos_embed": ("learned", "sincos2d", "rope"),
    "final_norm": ("tokens", "pooled", "none"),
    "act": ("gelu", "quick_gelu", "gelu_tanh"),
    "mlp": ("mlp", "swiglu"),
    "pos_interpolation": ("antialias", "bicubic", "bicubic_offset"),
    "rope_periods": ("float32", "bfloat16"),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The architecture of an encoder, complete: what is stored beside its weights."""

    img_size: int
    """Native side of the (square) image in pixels; other sizes are possible, positions are then interpolated."""
    patch_size: int
    """Side of a patch in pixels."""
    embed_dim: int
    """Width of a token."""
    depth: int
    """Number of blocks."""
    num_heads: int
    """Attention heads per block."""
    in_chans: int = 3
    """Channels of the input."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its width."""
    qkv_bias: bool = True
    """Whether queries, keys and values have a bias."""
    num_registers: int = 0
    """Scratch tokens beside cls (arXiv:2309.16588)."""
    stem: Literal["patch", "conv"] = "patch"
    """How pixels become tokens: one convolution as large as a patch (ViT), or some small ones (arXiv:2106.14881)."""
    pos_embed: Literal["learned", "sincos2d", "rope"] = "learned"
    """Learned 1-D positions (ViT), fixed 2-D sine-cosine ones (MAE), or queries and keys turned by place (DINOv3)."""
    no_embed_class: bool = False
    """Whether positions are for patches only (timm's name); otherwise cls and registers have one too."""
    init_values: float | None = None
    """Start value of LayerScale; none: no LayerScale."""
    class_token: bool = True
    """Whether there is a cls token; without one a vector is the mean of the patches (I-JEPA) or ``attn_pool``'s."""
    pre_norm: bool = False
    """A norm before the first block, and a patch embedding without bias (CLIP)."""
    norm_eps: float = 1e-6
    """What the norms add to the variance: 1e-6 in most ViTs, 1e-5 in CLIP and DINOv3, 1e-12 in Hugging Face's ViT."""
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    """Where the last norm stands: on every token, on the mean of the patches (timm's ``fc_norm``), or nowhere."""
    act: Literal["gelu", "quick_gelu", "gelu_tanh"] = "gelu"
    """Activation of an MLP: exact GELU, OpenAI CLIP's ``x * sigmoid(1.702 x)``, or GELU's tanh approximation."""
    mlp: Literal["mlp", "swiglu"] = "mlp"
    """Two linear layers, or SwiGLU with gate and value side by side in the first; ``mlp_ratio`` then counts both."""
    pos_interpolation: Literal["antialias", "bicubic", "bicubic_offset"] = "antialias"
    """How positions are resized: bicubic with antialiasing (timm), plain (Hugging Face), or as Meta's DINO does it."""
    rope_theta: float = 100.0
    """Longest period of rotary positions."""
    rope_periods: Literal["float32", "bfloat16"] = "float32"
    """What their periods are rounded to: Meta's DINOv3 files keep them in bfloat16."""
    attn_pool: bool = False
    """Whether cls is pooled from the patches by a learned query after the last norm (SigLIP)."""
    cls_proj: bool = False
    """Whether a linear map follows on the cls vector: what whitens it (``model/whitening.py``)."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; it rises linearly from 0."""

    def __post_init__(self) -> None:
        if problems := out_of_range(self):
            raise ConfigError("; ".join(problems))
        if self.img_size % self.patch_size:
            raise ConfigError(f"img_size {self.img_size} must be a multiple of patch_size {self.patch_size}")
        if self.stem == "conv":
            num = self.patch_size.bit_length() - 1
            if self.patch_size < 2 or self.patch_size != 1 << num:
                raise ConfigError(f"stem conv halves the image: patch_size must be a power of 2, got {self.patch_size}")
            if self.embed_dim % (1 << num):
                raise ConfigError(
                    f"stem conv needs an embed_dim that is a multiple of {1 << num}, got {self.embed_dim}"
                )
        elif self.stem != "patch":
            raise ConfigError(f"stem must be patch or conv, got {self.stem!r}")
        if self.embed_dim % self.num_heads:
            raise ConfigError(f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}")
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")
        if self.pos_embed == "sincos2d" and self.embed_dim % 4:
            raise ConfigError(f"sine-cosine positions need an embed_dim that is a multiple of 4, got {self.embed_dim}")
        if self.pos_embed == "rope" and (self.embed_dim // self.num_heads) % 4:
            raise ConfigError(
                f"rotary positions need heads whose width is a multiple of 4, got {self.embed_dim // self.num_heads}"
            )

    @property
    def has_cls(self) -> bool:
        """Whether there is a cls vector: from a token or pooled by a learned query."""
        return self.class_token or self.attn_pool

    @property
    def num_patches(self) -> int:
        """Patches of an image of the native size."""
        return (self.img_size // self.patch_size) ** 2


def preset(size: str, **settings: Any) -> ViTConfig:
    """The architecture of a named size, such as ``preset("small", img_size=224, patch_size=16)``.

    Raises:
        ConfigError: If the size is unknown.
    """
    if size not in PRESETS:
        raise ConfigError(f"unknown model size {size!r}: expected one of {', '.join(PRESETS)}")
    embed_dim, depth, num_heads = PRESETS[size]
    return ViTConfig(**{"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, **settings})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder to train."""

    size: str = "small"
    """nano, tiny, small, base, large or huge."""
    img_size: int = 224
    """Side of a training view in pixels."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    embed_dim: int | None = None
    """Width, instead of the size's own."""
    depth: int | None = None
    """Blocks, instead of the size's own."""
    num_heads: int | None = None
    """Heads, instead of the size's own."""
    num_registers: int = 0
    """Register tokens."""
    stem: str = "patch"
    """patch (one convolution as large as a patch) or conv (small ones of stride 2)."""
    pos_embed: str = "learned"
    """learned or sincos2d."""
    init_values: float | None = None
    """LayerScale start value; none: no LayerScale."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block."""
    whiten: float = 0.5
    """How far the exported cls vector is whitened: 0 not at all, 1 fully. Learned from the images, without labels."""

    def __post_init__(self) -> None:
        if problems := out_of_range(self, "model."):
            raise ConfigError("; ".join(problems))
        if self.pos_embed not in ("learned", "sincos2d"):
            raise ConfigError(f"model.pos_embed must be learned or sincos2d, got {self.pos_embed!r}")
        self.vit()

    def vit(self) -> ViTConfig:
        """The complete architecture.

        Raises:
            ConfigError: If the size is unknown or the sizes do not fit together.
        """
        given = {k: v for k in ("embed_dim", "depth", "num_heads") if (v := getattr(self, k)) is not None}
        return preset(
            self.size,
            img_size=self.img_size,
            patch_size=self.patch_size,
            num_registers=self.num_registers,
            stem=self.stem,
            pos_embed=self.pos_embed,
            init_values=self.init_values,
            drop_path_rate=self.drop_path_rate,
            **given,
        )
