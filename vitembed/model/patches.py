"""Images to patches and back, and where each patch lies: patch embedding, stem, patchify, position embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """One linear map per patch, as a convolution whose stride is the patch size.

    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1. Parameter names follow timm (``proj``).
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, *, bias: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed each patch; ``n`` runs row by row.

        Raises:
            ValueError: If height or width is not a multiple of the patch size.
        """
        grid_size(pixels.shape[-2], pixels.shape[-1], self.patch_size)
        patches: Tensor = self.proj(pixels)
        return patches.flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Patches by a few small convolutions of stride 2 instead of one large one: the better start on few images.

    As many convolutions (3x3) as halvings give the patch size, each twice as wide as the one before; batch norm and
    ReLU between them, none behind the last. A token also knows some pixels around its patch. Parameter names are those
    of timm's ``HybridEmbed`` around its ``ConvStem``.

    Source: Xiao et al. 2021, "Early convolutions help transformers see better", arXiv:2106.14881, section 4.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        num = patch_size.bit_length() - 1
        widths = [in_chans, *(embed_dim >> (num - 1 - i) for i in range(num))]
        self.backbone = nn.Sequential(
            *(ConvNorm(widths[i], widths[i + 1], last=i == num - 1) for i in range(num)),
        )

    def forward(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Embed each patch; ``n`` runs row by row.

        Raises:
            ValueError: If height or width is not a multiple of the patch size.
        """
        grid_size(pixels.shape[-2], pixels.shape[-1], self.patch_size)
        # Channels last: what the tokens need anyway, and faster on CPUs (docs/experiments.md).
        patches: Tensor = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        return patches.flatten(2).transpose(1, 2)


class ConvNorm(nn.Module):
    """A 3x3 convolution of stride 2, with batch norm and ReLU unless it is the last."""

    def __init__(self, in_chans: int, out_chans: int, *, last: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, kernel_size=3, stride=2, padding=1, bias=last)
        self.bn = nn.Sequential() if last else nn.BatchNorm2d(out_chans)
        self.last = last

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Halve height and width."""
        out: Tensor = self.bn(self.conv(x))
        return out if self.last else out.relu()


def grid_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of an image.

    Raises:
        ValueError: If height or width is not a positive multiple of the patch size.
    """
    if height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"image of {height}x{width} px cannot be cut into {patch_size}-px patches: "
            f"height and width must be multiples of {patch_size}"
        )
    return height // patch_size, width // patch_size


def patchify(pixels: Float[Tensor, "b c h w"], patch_size: int) -> Float[Tensor, "b n p"]:
    """Cut images into flat patches, row by row; ``p = patch_size**2 * c``, channels last as in MAE."""
    b, c, height, width = pixels.shape
    rows, cols = grid_size(height, width, patch_size)
    cut = pixels.reshape(b, c, rows, patch_size, cols, patch_size)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * cols, patch_size**2 * c)


def unpatchify(
    patches: Float[Tensor, "b n p"], patch_size: int, grid: tuple[int, int], in_chans: int = 3
) -> Float[Tensor, "b c h w"]:
    """Put flat patches back together: the inverse of ``patchify``."""
    rows, cols = grid
    cut = patches.reshape(-1, rows, cols, patch_size, patch_size, in_chans)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, in_chans, rows * patch_size, cols * patch_size)


def resample_pos_embed(
    pos_embed: Float[Tensor, "1 m d"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int,
    *,
    how: str = "antialias",
) -> Float[Tensor, "1 t d"]:
    """Position embeddings for another grid of patches; those of the ``num_prefix`` prefix tokens stay as they are.

    Args:
        pos_embed: Positions of the prefix tokens, then of the patches row by row.
        old_grid: Rows and columns that it is for.
        new_grid: Rows and columns wanted.
        num_prefix: Prefix tokens that have a position.
        how: ``antialias``: bicubic with antialiasing, as ``timm.layers.resample_abs_pos_embed``. ``bicubic``: without
            (``transformers``' ViT, DINOv2, CLIP, I-JEPA; MAE's fine-tuning). ``bicubic_offset``: as Meta's DINO and
            DINOv2, which tell ``interpolate`` a scale a little too large (0.1 patches), so that it samples elsewhere.

    Always in fp32.
    """
    if old_grid == new_grid:
        return pos_embed
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    image = patches.float().reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    if how == "bicubic_offset":
        scale = [(new + 0.1) / old for new, old in zip(new_grid, old_grid, strict=True)]
        image = F.interpolate(image, scale_factor=scale, mode="bicubic", align_corners=False)
    else:
        antialias = how == "antialias"
        image = F.interpolate(image, size=new_grid, mode="bicubic", antialias=antialias, align_corners=False)
    patches = image.permute(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], -1).to(pos_embed.dtype)
    return torch.cat([prefix, patches], dim=1)


def sincos_pos_embed(embed_dim: int, grid: tuple[int, int]) -> Float[Tensor, "n d"]:
    """Fixed 2-D sine-cosine positions: half of the width codes the column, half the row.

    Source: He et al. 2021, arXiv:2111.06377, appendix A.1; frequencies of Vaswani et al. 2017, arXiv:1706.03762, 3.5.

    Raises:
        ValueError: If ``embed_dim`` is not a multiple of 4.
    """
    if embed_dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, got {embed_dim}")
    rates = 10_000.0 ** (-torch.arange(embed_dim // 4, dtype=torch.float64) / (embed_dim / 4))
    rows, cols = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")

    def code(place: Tensor) -> Tensor:
        angle = place.reshape(-1, 1).double() * rates
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    return torch.cat([code(cols), code(rows)], dim=1).float()
