"""Our ViT written down as an ONNX graph, operator by operator: uint8 pixels in, one pooled vector out.

The graph is built from the weights rather than traced: ``torch.onnx.export`` changed its exporter, its needs and its
graphs between torch 2.6 and 2.13, takes seconds, and leaves shape arithmetic in the graph. What is written here depends
on no torch release, takes as long as copying the weights, and is what onnxruntime fuses best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitembed.images.preprocess import Preprocess
from vitembed.model.blocks import AttentionPool, Block, LayerScale, Mlp, SwiGlu
from vitembed.model.export.fitting import fixed_parts
from vitembed.model.patches import ConvNorm, ConvStem, PatchEmbed
from vitembed.model.vit import VisionTransformer

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OPSET = 20
"""The first with Gelu; onnxruntime reads it since 1.17 (January 2024)."""
IR_VERSION = 9
"""The one of opset 20: a newer number would shut out runtimes that know every operator in the graph."""
INPUT, OUTPUT = "images", "embeddings"


Store = Callable[[np.ndarray, str], "TensorProto"]
"""Keeps a contiguous array under a name: in the graph, or elsewhere with a word in the graph where."""


def build_graph(vit: VisionTransformer, preprocess: Preprocess, pool: str, *, store: Store | None = None) -> ModelProto:
    """The whole way from preprocessed pixels to the vector of ``Encoder``.

    The input ``images`` is uint8 [batch, s, s, c] of ``preprocess.img_size``, RGB; the output ``embeddings`` is float32
    [batch, d], not normalised. Scaling to 0..1, mean and std are inside.

    Args:
        vit: Its weights are copied as fp32; LayerScale, batch norm and the attention's scale are multiplied into them.
        preprocess: For size, mean and std.
        pool: cls, mean or cls+mean.
        store: Where weights go; none: into the graph.
    """
    from onnx import numpy_helper

    return _Graph(vit, preprocess, pool, store or numpy_helper.from_array).model()


class _Graph:
    """Operators and weights of one graph, in the order in which they are met."""

    def __init__(self, vit: VisionTransformer, preprocess: Preprocess, pool: str, store: Store) -> None:
        self.vit, self.preprocess, self.pool, self.store = vit, preprocess, pool, store
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []

    @torch.no_grad()
    def model(self) -> ModelProto:
        """Write the graph."""
        from onnx import TensorProto, helper

        size, chans = self.preprocess.img_size, self.vit.config.in_chans
        x = self._tokens(self._standardised())
        turns = self._turns()
        for i, block in enumerate(self.vit.blocks):
            x = self._block(x, cast(Block, block), f"blocks.{i}", turns)
        dim = self._pooled(self._layer_norm(x, self.vit.norm, "norm"))
        graph = helper.make_graph(
            self.nodes,
            "vitembed",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", size, size, chans])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", dim])],
            initializer=self.weights,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, producer_name="vitembed", opset_imports=opsets, ir_version=IR_VERSION)

    def _standardised(self) -> str:
        """uint8 [b, s, s, c] to what the ViT takes, float [b, c, s, s]."""
        mean, std = (np.array(values, np.float32) for values in (self.preprocess.mean, self.preprocess.std))
        x = self._add("Cast", [INPUT], to=1)
        x = self._add("Div", [x, self._array("scale", np.array(255.0, np.float32))])
        x = self._add("Transpose", [x], perm=[0, 3, 1, 2])
        x = self._add("Sub", [x, self._array("mean", mean.reshape(1, -1, 1, 1))])
        return self._add("Div", [x, self._array("std", std.reshape(1, -1, 1, 1))])

    def _tokens(self, pixels: str) -> str:
        """Patches with positions behind the prefix tokens, [b, t, d]."""
        vit = self.vit
        prefix, positions = fixed_parts(vit, self.preprocess.img_size)
        x = self._patch_embed(pixels)
        x = self._add("Reshape", [x, self._ints("patches.shape", [0, vit.config.embed_dim, -1])])
        x = self._add("Transpose", [x], perm=[0, 2, 1])
        if positions is not None:
            x = self._add("Add", [x, self._tensor("pos_embed", positions)])
        if prefix is not None:
            batch = self._add("Shape", [INPUT], start=0, end=1)
            shape = self._add("Concat", [batch, self._ints("prefix.shape", prefix.shape[1:])], axis=0)
            x = self._add("Concat", [self._add("Expand", [self._tensor("prefix", prefix), shape]), x], axis=1)
        return self._layer_norm(x, vit.norm_pre, "norm_pre")

    def _patch_embed(self, pixels: str) -> str:
        embed, patch = self.vit.patch_embed, self.vit.config.patch_size
        if isinstance(embed, PatchEmbed):
            return self._conv(pixels, embed.proj, "patch_embed", stride=patch, padding=0)
        layers = list(cast(ConvStem, embed).backbone)
        x = pixels
        for i, layer in enumerate(cast("list[ConvNorm]", layers)):
            x = self._conv(x, layer.conv, f"patch_embed.{i}", norm=layer.bn, stride=2, padding=1)
            x = x if layer.last else self._add("Relu", [x])
        return x

    def _turns(self) -> tuple[str, str] | None:
        """Cosines and sines of rotary positions, [1, 1, t, width of a head]; prefix tokens are turned by nothing."""
        size, prefix = self.preprocess.img_size, self.vit.num_prefix
        rope = self.vit.rope(torch.zeros(1, self.vit.config.in_chans, size, size), None)
        if rope is None:
            return None
        cos = F.pad(rope.cos, (0, 0, prefix, 0), value=1.0)
        return self._tensor("rope.cos", cos), self._tensor("rope.sin", F.pad(rope.sin, (0, 0, prefix, 0)))

    def _block(self, x: str, block: Block, name: str, turns: tuple[str, str] | None) -> str:
        mixed = self._attention(self._layer_norm(x, block.norm1, f"{name}.norm1"), block, f"{name}.attn", turns)
        x = self._add("Add", [x, mixed])
        y = self._layer_norm(x, block.norm2, f"{name}.norm2")
        return self._add("Add", [x, self._mlp(y, block.mlp, f"{name}.mlp", scale=block.ls2)])

    def _mlp(self, x: str, mlp: Mlp | SwiGlu, name: str, scale: nn.Module | None = None) -> str:
        hidden = self._linear(x, mlp.fc1, f"{name}.fc1")
        if isinstance(mlp, SwiGlu):
            gate, value = self._split(hidden, 2)
            gate = self._add("Mul", [gate, self._add("Sigmoid", [gate])])
            hidden = self._add("Mul", [gate, value])
        elif mlp.act == "quick_gelu":
            inner = self._add("Mul", [hidden, self._array(f"{name}.quick", np.array(1.702, np.float32))])
            hidden = self._add("Mul", [hidden, self._add("Sigmoid", [inner])])
        else:
            hidden = self._add("Gelu", [hidden], approximate="tanh" if mlp.act == "gelu_tanh" else "none")
        return self._linear(hidden, mlp.fc2, f"{name}.fc2", scale=scale)

    def _attention(self, x: str, block: Block, name: str, turns: tuple[str, str] | None) -> str:
        attn, d = block.attn, self.vit.config.embed_dim
        shape = self._ints(f"{name}.heads", [0, 0, attn.num_heads, d // attn.num_heads])
        q, k, v = (
            self._add("Transpose", [self._add("Reshape", [part, shape])], perm=[0, 2, 1, 3])
            for part in self._split(
                self._linear(x, attn.qkv, f"{name}.qkv", first=(d, (d // attn.num_heads) ** -0.5)), 3
            )
        )
        if turns is not None:
            q, k = self._turned(q, turns), self._turned(k, turns)
        return self._linear(self._mixed(q, k, v, d, name), attn.proj, f"{name}.proj", scale=block.ls1)

    def _mixed(self, q: str, k: str, v: str, d: int, name: str) -> str:
        """What each query sees, [b, q, d]; the queries are scaled already."""
        weights = self._add("MatMul", [q, self._add("Transpose", [k], perm=[0, 1, 3, 2])])
        mixed = self._add("MatMul", [self._add("Softmax", [weights], axis=-1), v])
        mixed = self._add("Transpose", [mixed], perm=[0, 2, 1, 3])
        return self._add("Reshape", [mixed, self._ints(f"{name}.joined", [0, 0, d])])

    def _turned(self, x: str, turns: tuple[str, str]) -> str:
        cos, sin = turns
        first, second = self._split(x, 2)
        across = self._add("Concat", [self._add("Neg", [second]), first], axis=-1)
        return self._add("Add", [self._add("Mul", [x, cos]), self._add("Mul", [across, sin])])

    def _pooled(self, x: str) -> int:
        """Write the output; give its width."""
        axis = self._ints("patches.axis", [1])
        bounds = [self._ints("patches.start", [self.vit.num_prefix]), self._ints("patches.end", [1 << 62])]
        patches = self._add("Slice", [x, *bounds, axis])
        parts = []
        if self.pool in ("cls", "cls+mean"):
            if self.vit.attn_pool is None:
                parts.append(self._add("Gather", [x, self._array("cls.index", np.array(0))], axis=1))
            else:
                parts.append(self._attention_pool(patches, self.vit.attn_pool))
            if self.vit.cls_proj is not None:
                parts[0] = self._linear(parts[0], self.vit.cls_proj, "cls_proj")
        if self.pool in ("mean", "cls+mean"):
            mean = self._add("ReduceMean", [patches, axis], keepdims=0)
            parts.append(self._layer_norm(mean, self.vit.fc_norm, "fc_norm"))
        self._add("Concat", parts, output=OUTPUT, axis=1)
        return self.vit.config.embed_dim * len(parts)

    def _attention_pool(self, x: str, pool: AttentionPool) -> str:
        d, name = self.vit.config.embed_dim, "attn_pool"
        head_dim = d // pool.num_heads
        query = (pool.q(pool.latent) * head_dim**-0.5).reshape(1, pool.num_heads, 1, head_dim)
        shape = self._ints(f"{name}.heads", [0, 0, pool.num_heads, head_dim])
        k, v = (
            self._add("Transpose", [self._add("Reshape", [part, shape])], perm=[0, 2, 1, 3])
            for part in self._split(self._linear(x, pool.kv, f"{name}.kv"), 2)
        )
        mixed = self._mixed(self._tensor(f"{name}.query", query), k, v, d, name)
        pooled = self._linear(mixed, pool.proj, f"{name}.proj")
        y = self._mlp(self._layer_norm(pooled, pool.norm, f"{name}.norm"), pool.mlp, f"{name}.mlp")
        pooled = self._add("Add", [pooled, y])
        return self._add("Gather", [pooled, self._array(f"{name}.index", np.array(0))], axis=1)

    def _layer_norm(self, x: str, norm: nn.Module, name: str) -> str:
        """Nothing where there is no norm."""
        if not isinstance(norm, nn.LayerNorm):
            return x
        weight, bias = self._tensor(f"{name}.weight", norm.weight), self._tensor(f"{name}.bias", norm.bias)
        return self._add("LayerNormalization", [x, weight, bias], axis=-1, epsilon=norm.eps)

    def _linear(
        self,
        x: str,
        linear: nn.Linear,
        name: str,
        *,
        scale: nn.Module | None = None,
        first: tuple[int, float] = (0, 1.0),
    ) -> str:
        """A linear layer, with what multiplies its output inside: LayerScale, or a factor on the ``first`` outputs."""
        factor = torch.ones(linear.out_features, device=linear.weight.device)
        if isinstance(scale, LayerScale):
            factor = scale.gamma.clone()
        factor[: first[0]] *= first[1]
        y = self._add("MatMul", [x, self._tensor(f"{name}.weight", (linear.weight * factor.unsqueeze(1)).t())])
        bias = cast("Tensor | None", linear.bias)
        return y if bias is None else self._add("Add", [y, self._tensor(f"{name}.bias", bias * factor)])

    def _conv(
        self, x: str, conv: nn.Conv2d, name: str, *, norm: nn.Module | None = None, stride: int, padding: int
    ) -> str:
        weight, bias = conv.weight, conv.bias
        if isinstance(norm, nn.BatchNorm2d):
            weight, bias = _without_batch_norm(conv.weight, norm)
        inputs = [x, self._tensor(f"{name}.weight", weight)]
        inputs += [] if bias is None else [self._tensor(f"{name}.bias", bias)]
        return self._add("Conv", inputs, strides=[stride] * 2, pads=[padding] * 4, kernel_shape=list(weight.shape[2:]))

    def _split(self, x: str, num: int) -> list[str]:
        """Equal parts along the last axis."""
        from onnx import helper

        names = [f"Split_{len(self.nodes)}.{i}" for i in range(num)]
        self.nodes.append(helper.make_node("Split", [x], names, name=names[0], axis=-1, num_outputs=num))
        return names

    def _add(self, kind: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def _tensor(self, name: str, value: Tensor) -> str:
        return self._array(name, value.detach().float().cpu().numpy())

    def _ints(self, name: str, values: Sequence[int]) -> str:
        return self._array(name, np.array(list(values), np.int64))

    def _array(self, name: str, value: np.ndarray) -> str:
        self.weights.append(self.store(value if value.ndim == 0 else np.ascontiguousarray(value), name))
        return name


def _without_batch_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """A convolution without bias followed by batch norm in evaluation, as one convolution with bias."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = norm.weight / torch.sqrt(variance + norm.eps)
    return weight * factor.reshape(-1, 1, 1, 1), norm.bias - mean * factor
