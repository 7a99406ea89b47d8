"""The vision transformer: patches, a cls token, registers, positions, pre-norm blocks.

Parameter names are timm's (``blocks.N.attn.qkv`` ...), so weights travel both ways. Masking is a choice of the caller
(``ids_keep``), never a mode of the model: an encoder that embeds sees every patch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitembed.config import ViTConfig
from vitembed.model.blocks import Attention, AttentionPool, Block, DropPath, LayerScale, Mlp, SwiGlu
from vitembed.model.patches import ConvStem, PatchEmbed, grid_size, resample_pos_embed, sincos_pos_embed
from vitembed.model.rope import Rope, axial_rope

__all__ = [
    "Attention", "AttentionPool", "Block", "ClassHead", "DropPath", "LayerScale", "Mlp", "SwiGlu", "Tokens",
    "VisionTransformer",
]  # fmt: skip


class Tokens(NamedTuple):
    """What the encoder gives for a batch of images, after the final norm."""

    cls: Tensor
    """One vector per image, [b, d]; [b, 0] where the architecture has none (``config.has_cls``)."""
    registers: Tensor
    """Scratch tokens without a place in the image, [b, r, d]."""
    patches: Tensor
    """One vector per visible patch in the order of ``ids_keep`` (all patches row by row without it), [b, n, d]."""


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
        self.num_prefix = int(config.class_token) + config.num_registers
        self.num_positioned_prefix = 0 if config.no_embed_class else self.num_prefix

        self.patch_embed: nn.Module
        if config.stem == "conv":
            self.patch_embed = ConvStem(config.patch_size, config.in_chans, d)
        else:
            self.patch_embed = PatchEmbed(config.patch_size, config.in_chans, d, bias=not config.pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, d)) if config.num_registers else None
        num_positions = self.num_positioned_prefix + self.native_grid[0] * self.native_grid[1]
        self.pos_embed = (
            None
            if config.pos_embed == "rope"
            else nn.Parameter(torch.zeros(1, num_positions, d), requires_grad=config.pos_embed == "learned")
        )
        self.norm_pre = nn.LayerNorm(d, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        rates = [config.drop_path_rate * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(d, eps=config.norm_eps) if config.final_norm == "tokens" else nn.Identity()
        self.fc_norm = nn.LayerNorm(d, eps=config.norm_eps) if config.final_norm == "pooled" else nn.Identity()
        self.attn_pool = AttentionPool(config) if config.attn_pool else None
        self.cls_proj = nn.Linear(d, d) if config.cls_proj else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal of std 0.02 for linear layers and positions, 1e-6 for prefix tokens (timm's choice).

        Convolutions keep torch's own start. On the meta device, where weights from a file follow, nothing is done:
        drawing there makes torch load its compiler, which takes seconds.
        """
        if next(self.parameters()).is_meta:
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)
        if self.attn_pool is not None:
            nn.init.trunc_normal_(self.attn_pool.latent, std=self.config.embed_dim**-0.5)
        if self.pos_embed is None:
            return
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
        x, rope = self.embed_tokens(pixels, ids_keep), self.rope(pixels, ids_keep)
        for block in self.blocks:
            x = block(x) if rope is None else block(x, rope)
        return self.projected(self.split(self.norm(x)))

    def intermediate(self, pixels: Float[Tensor, "b c h w"], num_blocks: int) -> list[Tokens]:
        """Tokens after each of the last ``num_blocks`` blocks, the last block's last, each through the final norm.

        Raises:
            ValueError: If there are not that many blocks.
        """
        if not 1 <= num_blocks <= len(self.blocks):
            raise ValueError(f"num_blocks must lie between 1 and the depth {len(self.blocks)}, got {num_blocks}")
        x, rope = self.embed_tokens(pixels, None), self.rope(pixels, None)
        kept = []
        for i, block in enumerate(self.blocks):
            x = block(x) if rope is None else block(x, rope)
            if i >= len(self.blocks) - num_blocks:
                kept.append(self.split(self.norm(x)))
        return kept

    def embed_tokens(
        self, pixels: Float[Tensor, "b c h w"], ids_keep: Int[Tensor, "b k"] | None
    ) -> Float[Tensor, "b t d"]:
        """Patches with their positions, the kept ones only, behind the cls and register tokens."""
        grid = grid_size(pixels.shape[-2], pixels.shape[-1], self.config.patch_size)
        x = self.patch_embed(pixels)
        pos = None
        if self.pos_embed is not None:
            pos = resample_pos_embed(
                self.pos_embed, self.native_grid, grid, self.num_positioned_prefix, how=self.config.pos_interpolation
            ).to(x.dtype)
            x = x + pos[:, self.num_positioned_prefix :]
        if ids_keep is not None:
            x = x.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        tokens: list[Tensor] = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if tokens:
            prefix = tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)
            if pos is not None and self.num_positioned_prefix:
                prefix = prefix + pos[:, : self.num_positioned_prefix]
            x = torch.cat([prefix.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        out: Tensor = self.norm_pre(x)
        return out

    def rope(self, pixels: Float[Tensor, "b c h w"], ids_keep: Int[Tensor, "b k"] | None) -> Rope | None:
        """How far queries and keys of the (kept) patches are turned; none without rotary positions."""
        if self.config.pos_embed != "rope":
            return None
        rope = axial_rope(
            grid_size(pixels.shape[-2], pixels.shape[-1], self.config.patch_size),
            self.config.embed_dim // self.config.num_heads,
            theta=self.config.rope_theta,
            rounding=self.config.rope_periods,
            device=pixels.device,
        )
        return rope if ids_keep is None else rope.kept(ids_keep)

    def split(self, x: Float[Tensor, "b t d"]) -> Tokens:
        """Name the parts of a token sequence."""
        first = int(self.config.class_token)
        if self.attn_pool is not None:
            cls = self.attn_pool(x[:, first + self.config.num_registers :])
        else:
            cls = x[:, 0] if first else x.new_zeros(x.shape[0], 0)
        return Tokens(cls, x[:, first : self.num_prefix], x[:, self.num_prefix :])

    def projected(self, tokens: Tokens) -> Tokens:
        """The tokens with the cls vector that the encoder gives: through ``cls_proj`` where there is one."""
        return tokens if self.cls_proj is None else tokens._replace(cls=self.cls_proj(tokens.cls))

    def mean_pool(self, tokens: Tokens) -> Float[Tensor, "b d"]:
        """Mean of the patches, through the norm that belongs behind it where the architecture has one."""
        mean: Tensor = self.fc_norm(tokens.patches.mean(dim=1))
        return mean


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
