"""The vision transformer: patches, a cls token, registers, positions, pre-norm blocks.

Parameter names are timm's (``blocks.N.attn.qkv`` ...), so weights travel both ways. Masking is a choice of the caller
(``ids_keep``), never a mode of the model: an encoder that embeds sees every patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitembed.config import ViTConfig
from vitembed.model.patches import ConvStem, PatchEmbed, grid_size, resample_pos_embed, sincos_pos_embed


class Tokens(NamedTuple):
    """What the encoder gives for a batch of images, after the final norm."""

    cls: Tensor
    """One vector per image, [b, d]."""
    registers: Tensor
    """Scratch tokens without a place in the image, [b, r, d]."""
    patches: Tensor
    """One vector per visible patch in the order of ``ids_keep`` (all patches row by row without it), [b, n, d]."""


class Attention(nn.Module):
    """Multi-head self-attention by ``scaled_dot_product_attention``.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} cannot be split into {num_heads} heads: it must be a multiple")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Mix the tokens of each image."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(b, t, d))
        return mixed


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Work on each token alone."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch.

    Source: Touvron et al. 2021, arXiv:2103.17239, section 3.
    """

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Scale the branch."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: in training, drop the whole branch of a random image and rescale the others.

    Source: Huang et al. 2016, arXiv:1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Drop per image while training; do nothing in evaluation."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        return x * (torch.rand(x.shape[0], 1, 1, device=x.device) < keep).to(x.dtype) / keep


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP, each on a residual branch."""

    def __init__(self, config: ViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.num_heads, config.qkv_bias)
        self.ls1 = LayerScale(dim, config.init_values) if config.init_values is not None else nn.Identity()
        self.drop_path1 = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.ls2 = LayerScale(dim, config.init_values) if config.init_values is not None else nn.Identity()
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """One step of depth."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


class VisionTransformer(nn.Module):
    """A ViT encoder: pixels to one cls vector, register vectors and one vector per patch.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929 (cls token, learned 1-D positions, pre-norm); registers: Darcet
    et al. 2023, arXiv:2309.16588. Equal to ``timm.models.vision_transformer.VisionTransformer`` with the same weights.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        d = config.embed_dim
        self.native_grid = grid_size(config.img_size, config.img_size, config.patch_size)
        self.num_prefix = 1 + config.num_registers
        self.num_positioned_prefix = 0 if config.no_embed_class else self.num_prefix

        embed = ConvStem if config.stem == "conv" else PatchEmbed
        self.patch_embed = embed(config.patch_size, config.in_chans, d)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, d)) if config.num_registers else None
        num_positions = self.num_positioned_prefix + self.native_grid[0] * self.native_grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, d), requires_grad=config.pos_embed == "learned")
        rates = [config.drop_path_rate * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(d, eps=1e-6)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal of std 0.02 for linear layers and positions, 1e-6 for prefix tokens (timm's choice).

        Convolutions keep torch's own start.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)
        if self.config.pos_embed == "learned":
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.pos_embed[0, self.num_positioned_prefix :] = sincos_pos_embed(self.config.embed_dim, self.native_grid)

    def forward(self, pixels: Float[Tensor, "b c h w"], ids_keep: Int[Tensor, "b k"] | None = None) -> Tokens:
        """Encode a batch of normalised images of any size that is a multiple of the patch size.

        Args:
            pixels: Normalised images.
            ids_keep: For each image the indices of the patches to look at; the others are not computed at all.
                Without it every patch is seen.

        Raises:
            ValueError: If the image size does not fit the patch size.
        """
        x = self.embed_tokens(pixels, ids_keep)
        for block in self.blocks:
            x = block(x)
        return self.split(self.norm(x))

    def intermediate(self, pixels: Float[Tensor, "b c h w"], num_blocks: int) -> list[Tokens]:
        """Tokens after each of the last ``num_blocks`` blocks, the last block's last, each through the final norm.

        Raises:
            ValueError: If there are not that many blocks.
        """
        if not 1 <= num_blocks <= len(self.blocks):
            raise ValueError(f"num_blocks must lie between 1 and the depth {len(self.blocks)}, got {num_blocks}")
        x = self.embed_tokens(pixels, None)
        kept = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= len(self.blocks) - num_blocks:
                kept.append(self.split(self.norm(x)))
        return kept

    def embed_tokens(
        self, pixels: Float[Tensor, "b c h w"], ids_keep: Int[Tensor, "b k"] | None
    ) -> Float[Tensor, "b t d"]:
        """Patches with their positions, the kept ones only, behind the cls and register tokens."""
        grid = grid_size(pixels.shape[-2], pixels.shape[-1], self.config.patch_size)
        x = self.patch_embed(pixels)
        pos = resample_pos_embed(self.pos_embed, self.native_grid, grid, self.num_positioned_prefix).to(x.dtype)
        x = x + pos[:, self.num_positioned_prefix :]
        if ids_keep is not None:
            x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        prefix = self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token], dim=1)
        if self.num_positioned_prefix:
            prefix = prefix + pos[:, : self.num_positioned_prefix]
        return torch.cat([prefix.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def split(self, x: Float[Tensor, "b t d"]) -> Tokens:
        """Name the parts of a token sequence."""
        return Tokens(x[:, 0], x[:, 1 : self.num_prefix], x[:, self.num_prefix :])


class ClassHead(nn.Module):
    """Class scores from the cls vector: one linear layer, or an MLP with one hidden layer.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1 (an MLP with one hidden layer at pretraining, a
    single linear layer at fine-tuning).
    """

    def __init__(self, embed_dim: int, num_classes: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        if hidden_dim is None:
            self.layers: nn.Module = nn.Linear(embed_dim, num_classes)
        else:
            self.layers = nn.Sequential(nn.Linear(embed_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, num_classes))

    def forward(self, cls: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Unnormalised class scores (logits)."""
        logits: Tensor = self.layers(cls)
        return logits
