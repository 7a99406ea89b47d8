"""How others name a ViT's weights, as data: for each layout the keys it has, in our names, and what is left out.

Our names are timm's. Where a source keeps queries, keys and values apart, or gate and value of a SwiGLU, the tables
give the names ``attn.q``, ``attn.k``, ``attn.v``, ``mlp.gate`` and ``mlp.value``; ``fuse.py`` joins them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to name the weights."""

    name: str
    """What messages call it."""
    anchor: str
    """A key that every file in this layout has, and no file in another."""
    renames: tuple[tuple[str, str], ...]
    """Pattern of a whole key and what it is here; the first that fits holds. Other keys are unknown."""
    dropped: tuple[tuple[str, str], ...] = ()
    """Pattern of a whole key that is not wanted, and what it is."""


_HEADS = (
    (r"(head|head_dist|classifier|cls_classifier|distillation_classifier|lm_head)\.(.+)", "a class head"),
    (r"(mask_token|masked_embed)", "the mask token, which only training uses"),
    (r"(decoder|predictor)[._].+", "a decoder, which only training uses"),
)
_BLOCK_ENDS = r"(weight|bias)"

TIMM = Layout(
    name="timm",
    anchor="patch_embed.proj.weight",
    renames=(
        # Meta's training checkpoints keep blocks in chunks: blocks.CHUNK.NUMBER, the number counting on.
        (r"blocks\.\d+\.(\d+)\.(.+)", r"blocks.\1.\2"),
        (r"(register_tokens|storage_tokens|reg_token)", "reg_token"),
        (r"(cls_token|pos_embed|dist_token)", r"\1"),
        (r"rope_embed\.periods", "rope.periods"),
        (r"(patch_embed\.proj|norm_pre|norm|fc_norm)\." + _BLOCK_ENDS, r"\1.\2"),
        (r"attn_pool\.(latent|(?:q|kv|proj|norm|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))", r"attn_pool.\1"),
        # timm's EVA blocks, which run DINOv3
        (r"blocks\.(\d+)\.gamma_(1|2)", r"blocks.\1.ls\2.gamma"),
        (r"blocks\.(\d+)\.attn\.(q|v)_bias", r"blocks.\1.attn.\2.bias"),
        (r"blocks\.(\d+)\.attn\.(q|k|v)_proj\." + _BLOCK_ENDS, r"blocks.\1.attn.\2.\3"),
        (r"blocks\.(\d+)\.mlp\.fc1_g\." + _BLOCK_ENDS, r"blocks.\1.mlp.gate.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1_x\." + _BLOCK_ENDS, r"blocks.\1.mlp.value.\2"),
        # Meta's SwiGLU: w12 packed (DINOv2), w1 and w2 apart (DINOv3)
        (r"blocks\.(\d+)\.mlp\.w12\." + _BLOCK_ENDS, r"blocks.\1.mlp.fc1.\2"),
        (r"blocks\.(\d+)\.mlp\.w1\." + _BLOCK_ENDS, r"blocks.\1.mlp.gate.\2"),
        (r"blocks\.(\d+)\.mlp\.w2\." + _BLOCK_ENDS, r"blocks.\1.mlp.value.\2"),
        (r"blocks\.(\d+)\.mlp\.w3\." + _BLOCK_ENDS, r"blocks.\1.mlp.fc2.\2"),
        (r"blocks\.(\d+)\.attn\.qkv\.bias_mask", r"blocks.\1.attn.bias_mask"),
        (r"blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\." + _BLOCK_ENDS, r"blocks.\1.\2.\3"),
        (r"blocks\.(\d+)\.ls(1|2)\.gamma", r"blocks.\1.ls\2.gamma"),
    ),
    dropped=(
        *_HEADS,
        (r"pre_logits\.(.+)", "a class head"),
        (r"local_cls_norm\.(.+)", "a norm that only training uses"),
        (r"(dino_head|ibot_head|projectors|projection_head)\.(.+)", "a training head"),
    ),
)

CONV_STEM = Layout(
    name="vitembed with a convolutional stem",
    anchor="patch_embed.backbone.0.conv.weight",
    renames=(
        (r"(patch_embed\.backbone\.\d+\.(?:conv|bn)\.\w+)", r"\1"),
        *((pattern, ours) for pattern, ours in TIMM.renames if "patch_embed" not in pattern),
        (r"(norm)\." + _BLOCK_ENDS, r"\1.\2"),
    ),
    dropped=TIMM.dropped,
)

_HF_LAYER = r"(?:encoder\.layer|encoder\.layers|layers|layer|model\.layer)\.(\d+)\."
_HF_BLOCKS = (
    (_HF_LAYER + r"attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\." + _BLOCK_ENDS, r"blocks.\1.attn.\2.\3"),
    (_HF_LAYER + r"attention\.(?:output\.dense|o_proj)\." + _BLOCK_ENDS, r"blocks.\1.attn.proj.\2"),
    (_HF_LAYER + r"(?:layernorm_before|norm1)\." + _BLOCK_ENDS, r"blocks.\1.norm1.\2"),
    (_HF_LAYER + r"(?:layernorm_after|norm2)\." + _BLOCK_ENDS, r"blocks.\1.norm2.\2"),
    (_HF_LAYER + r"(?:intermediate\.dense|mlp\.fc1|mlp\.weights_in)\." + _BLOCK_ENDS, r"blocks.\1.mlp.fc1.\2"),
    (
        _HF_LAYER + r"(?:output\.dense|mlp\.fc2|mlp\.weights_out|mlp\.down_proj)\." + _BLOCK_ENDS,
        r"blocks.\1.mlp.fc2.\2",
    ),
    (_HF_LAYER + r"mlp\.gate_proj\." + _BLOCK_ENDS, r"blocks.\1.mlp.gate.\2"),
    (_HF_LAYER + r"mlp\.up_proj\." + _BLOCK_ENDS, r"blocks.\1.mlp.value.\2"),
    (_HF_LAYER + r"layer_scale(1|2)\.lambda1", r"blocks.\1.ls\2.gamma"),
)
_HF_TOKENS = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"(?:layernorm|norm)\." + _BLOCK_ENDS, r"norm.\1"),
)
_HF_DROPPED = (
    *_HEADS,
    (r"embeddings\.mask_token", "the mask token, which only training uses"),
    (r"pooler\.(.+)", "a pooler behind the cls vector"),
    (r"(?:embeddings\.)?position_ids", "a counter"),
)

HF_VIT = Layout(
    name="Hugging Face ViT (ViT, DeiT, ViTMAE, DINO, DINOv2, I-JEPA)",
    anchor="embeddings.patch_embeddings.projection.weight",
    renames=(
        (r"embeddings\.patch_embeddings\.projection\." + _BLOCK_ENDS, r"patch_embed.proj.\1"),
        *_HF_TOKENS,
        *_HF_BLOCKS,
    ),
    dropped=_HF_DROPPED,
)

HF_DINOV3 = Layout(
    name="Hugging Face DINOv3",
    anchor="embeddings.patch_embeddings.weight",
    renames=((r"embeddings\.patch_embeddings\." + _BLOCK_ENDS, r"patch_embed.proj.\1"), *_HF_TOKENS, *_HF_BLOCKS),
    dropped=_HF_DROPPED,
)

_CLIP_LAYER = r"encoder\.layers\.(\d+)\."
HF_CLIP = Layout(
    name="Hugging Face CLIP or SigLIP",
    anchor="embeddings.patch_embedding.weight",
    renames=(
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.patch_embedding\." + _BLOCK_ENDS, r"patch_embed.proj.\1"),
        (r"embeddings\.position_embedding\.weight", "pos_embed"),
        (r"pre_layrnorm\." + _BLOCK_ENDS, r"norm_pre.\1"),
        (r"post_layernorm\." + _BLOCK_ENDS, r"norm.\1"),
        (_CLIP_LAYER + r"self_attn\.(q|k|v)_proj\." + _BLOCK_ENDS, r"blocks.\1.attn.\2.\3"),
        (_CLIP_LAYER + r"self_attn\.out_proj\." + _BLOCK_ENDS, r"blocks.\1.attn.proj.\2"),
        (_CLIP_LAYER + r"layer_norm(1|2)\." + _BLOCK_ENDS, r"blocks.\1.norm\2.\3"),
        (_CLIP_LAYER + r"mlp\.fc(1|2)\." + _BLOCK_ENDS, r"blocks.\1.mlp.fc\2.\3"),
        (r"head\.probe", "attn_pool.latent"),
        (r"head\.attention\.in_proj_" + _BLOCK_ENDS, r"attn_pool.qkv.\1"),
        (r"head\.attention\.out_proj\." + _BLOCK_ENDS, r"attn_pool.proj.\1"),
        (r"head\.layernorm\." + _BLOCK_ENDS, r"attn_pool.norm.\1"),
        (r"head\.mlp\.fc(1|2)\." + _BLOCK_ENDS, r"attn_pool.mlp.fc\1.\2"),
    ),
    dropped=((r"embeddings\.position_ids", "a counter"), (r"(classifier)\.(.+)", "a class head")),
)

_OPEN_LAYER = r"transformer\.resblocks\.(\d+)\."
OPEN_CLIP = Layout(
    name="open_clip",
    anchor="ln_pre.weight",
    renames=(
        (r"class_embedding", "cls_token"),
        (r"positional_embedding", "pos_embed"),
        (r"conv1\.weight", "patch_embed.proj.weight"),
        (r"ln_pre\." + _BLOCK_ENDS, r"norm_pre.\1"),
        (r"ln_post\." + _BLOCK_ENDS, r"norm.\1"),
        (_OPEN_LAYER + r"ln_(1|2)\." + _BLOCK_ENDS, r"blocks.\1.norm\2.\3"),
        (_OPEN_LAYER + r"ls_(1|2)\.gamma", r"blocks.\1.ls\2.gamma"),
        (_OPEN_LAYER + r"attn\.in_proj_" + _BLOCK_ENDS, r"blocks.\1.attn.qkv.\2"),
        (_OPEN_LAYER + r"attn\.out_proj\." + _BLOCK_ENDS, r"blocks.\1.attn.proj.\2"),
        (_OPEN_LAYER + r"mlp\.c_fc\." + _BLOCK_ENDS, r"blocks.\1.mlp.fc1.\2"),
        (_OPEN_LAYER + r"mlp\.c_proj\." + _BLOCK_ENDS, r"blocks.\1.mlp.fc2.\2"),
    ),
    dropped=((r"proj", "the projection to the space of texts"),),
)

LAYOUTS = (TIMM, CONV_STEM, HF_VIT, HF_DINOV3, HF_CLIP, OPEN_CLIP)
