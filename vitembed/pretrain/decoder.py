"""The light decoder that predicts the hidden patches from the visible ones."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitembed.config import ViTConfig
from vitembed.model.patches import resample_pos_embed, sincos_pos_embed
from vitembed.model.vit import Block, Tokens


class Decoder(nn.Module):
    """Predicts the pixels, or another vector, of every patch from the cls vector and the visible patches.

    Args:
        encoder: Architecture of the encoder whose tokens come in.
        embed_dim: Width.
        depth: Blocks.
        out_dim: Numbers per patch that are predicted.

    Thrown away after training. Parameter names are MAE's.

    Source: He et al. 2021, arXiv:2111.06377, section 3, "MAE decoder".
    """

    decoder_pos_embed: Tensor

    def __init__(self, encoder: ViTConfig, *, embed_dim: int, depth: int, out_dim: int) -> None:
        super().__init__()
        num_heads = max(1, embed_dim // 32)
        side = encoder.img_size // encoder.patch_size
        self.native_grid = (side, side)
        config = ViTConfig(
            img_size=encoder.img_size,
            patch_size=encoder.patch_size,
            embed_dim=embed_dim,
            depth=max(depth, 1),
            num_heads=num_heads,
        )
        self.decoder_embed = nn.Linear(encoder.embed_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        positions = torch.cat([torch.zeros(1, embed_dim), sincos_pos_embed(embed_dim, self.native_grid)])
        self.register_buffer("decoder_pos_embed", positions.unsqueeze(0), persistent=False)
        self.decoder_blocks = nn.ModuleList(Block(config, 0.0) for _ in range(depth))
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_pred = nn.Linear(embed_dim, out_dim)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """As in the encoder."""
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, tokens: Tokens, ids_restore: Int[Tensor, "b n"], grid: tuple[int, int] | None = None
    ) -> Float[Tensor, "b n p"]:
        """One prediction per patch, visible and hidden, row by row.

        Args:
            tokens: The encoder's, of the visible patches.
            ids_restore: Where each patch lies in the order (visible, hidden).
            grid: Rows and columns of patches; none: the encoder's native ones.
        """
        x = self.decoder_embed(torch.cat([tokens.cls.unsqueeze(1), tokens.patches], dim=1))
        cls, visible = x[:, :1], x[:, 1:]
        b, n = ids_restore.shape
        hidden = self.mask_token.to(x.dtype).expand(b, n - visible.shape[1], -1)
        both = torch.cat([visible, hidden], dim=1)
        patches = both.gather(1, ids_restore.unsqueeze(-1).expand(-1, -1, both.shape[-1]))
        x = torch.cat([cls, patches], dim=1) + self.positions(grid or self.native_grid).to(x.dtype)
        for block in self.decoder_blocks:
            x = block(x)
        pred: Tensor = self.decoder_pred(self.decoder_norm(x[:, 1:]))
        return pred

    def positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 t d"]:
        """Positions of the cls token and of a grid of patches."""
        return resample_pos_embed(self.decoder_pos_embed, self.native_grid, grid, 1)
