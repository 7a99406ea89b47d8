"""What a vision transformer is stacked from: attention, MLPs, LayerScale, stochastic depth, pooling by a query."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitembed.config import ViTConfig
from vitembed.model.rope import Rope, turn


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

    def forward(self, x: Float[Tensor, "b t d"], rope: Rope | None = None) -> Float[Tensor, "b t d"]:
        """Mix the tokens of each image; with ``rope`` by where their patches lie."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = turn(q, rope), turn(k, rope)
        out = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(out.transpose(1, 2).reshape(b, t, d))
        return mixed


def activate(x: Tensor, act: str) -> Tensor:
    """One of the activations of ``ViTConfig.act``."""
    if act == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if act == "gelu_tanh" else "none")


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu") -> None:
        super().__init__()
        self.act = act
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Work on each token alone."""
        out: Tensor = self.fc2(activate(self.fc1(x), self.act))
        return out


class SwiGlu(nn.Module):
    """A gated MLP; the first layer gives the gate (first half) and what it gates.

    Source: Shazeer 2020, arXiv:2002.05202. Parameter names are those of timm's ``SwiGLUPacked``.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        if hidden_dim % 2:
            raise ValueError(f"SwiGLU's first layer gives two halves: its width must be even, got {hidden_dim}")
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim // 2, dim)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Work on each token alone."""
        gate, value = self.fc1(x).chunk(2, dim=-1)
        out: Tensor = self.fc2(F.silu(gate) * value)
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
        dim, hidden_dim = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = Attention(dim, config.num_heads, config.qkv_bias)
        self.ls1 = LayerScale(dim, config.init_values) if config.init_values is not None else nn.Identity()
        self.drop_path1 = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = SwiGlu(dim, hidden_dim) if config.mlp == "swiglu" else Mlp(dim, hidden_dim, config.act)
        self.ls2 = LayerScale(dim, config.init_values) if config.init_values is not None else nn.Identity()
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(self, x: Float[Tensor, "b t d"], rope: Rope | None = None) -> Float[Tensor, "b t d"]:
        """One step of depth."""
        mixed = self.attn(self.norm1(x)) if rope is None else self.attn(self.norm1(x), rope)
        x = x + self.drop_path1(self.ls1(mixed))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


class AttentionPool(nn.Module):
    """One vector per image: a learned query looks at the tokens, then an MLP on a residual branch.

    Source: Zhai et al. 2022, arXiv:2106.04560, section 3.4 ("MAP head"). Parameter names are those of timm's
    ``AttentionPoolLatent``.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        d = config.embed_dim
        self.num_heads = config.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, d))
        self.q = nn.Linear(d, d)
        self.kv = nn.Linear(d, 2 * d)
        self.proj = nn.Linear(d, d)
        self.norm = nn.LayerNorm(d, eps=config.norm_eps)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), config.act)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        """Pool the tokens."""
        b, t, d = x.shape
        q = self.q(self.latent.expand(b, -1, -1)).reshape(b, 1, self.num_heads, -1).transpose(1, 2)
        k, v = self.kv(x).reshape(b, t, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 1, d))
        out: Tensor = pooled + self.mlp(self.norm(pooled))
        return out[:, 0]
