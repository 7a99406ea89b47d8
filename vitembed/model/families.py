"""Families of public ViTs, as data: what their keys do not say, and by which marks a family is known.

What a source's configuration says goes before these numbers; they hold for a bare weights file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Heads by width, as published: ViT, DeiT, DINO, DINOv2, MAE, CLIP, I-JEPA. A head is 64 wide but in sizes above large.
HEADS: Mapping[int, int] = {
    128: 2, 192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14, 1024: 16, 1152: 16, 1280: 16,
    1408: 16, 1536: 24, 1664: 16,
}  # fmt: skip
_DINOV3_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 18, 1280: 20, 1536: 24, 4096: 32}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the models of a family share beside their keys."""

    norm_eps: float
    """In the layer norms."""
    pos_interpolation: str = "antialias"
    """How the source resizes positions: see ``ViTConfig``."""
    act: str = "gelu"
    """Activation of the MLPs."""
    heads: Mapping[int, int] = field(default_factory=lambda: HEADS)
    """Attention heads by width."""


_HF_VIT = Family(norm_eps=1e-12, pos_interpolation="bicubic")
FAMILIES: dict[str, Family] = {
    # timm's own and everything saved by it
    "timm-vit": Family(norm_eps=1e-6),
    "timm-clip": Family(norm_eps=1e-5),
    "timm-siglip": Family(norm_eps=1e-6, heads={**HEADS, 1536: 16}),
    "timm-dinov3": Family(norm_eps=1e-5, heads=_DINOV3_HEADS),
    # the authors' files, whose names timm took over
    "deit": Family(norm_eps=1e-6, pos_interpolation="bicubic"),
    "mae": Family(norm_eps=1e-6, pos_interpolation="bicubic"),
    "ijepa": Family(norm_eps=1e-6, pos_interpolation="bicubic"),
    "dino": Family(norm_eps=1e-6, pos_interpolation="bicubic_offset"),
    "dinov2": Family(norm_eps=1e-6, pos_interpolation="bicubic_offset"),
    "dinov2-reg": Family(norm_eps=1e-6),
    "dinov3": Family(norm_eps=1e-5, heads=_DINOV3_HEADS),
    "open-clip": Family(norm_eps=1e-5),
    # transformers; values of its configuration classes
    "hf-vit": _HF_VIT,
    "hf-deit": _HF_VIT,
    "hf-mae": _HF_VIT,
    "hf-ijepa": _HF_VIT,
    "hf-dinov2": Family(norm_eps=1e-6, pos_interpolation="bicubic"),
    "hf-dinov2-reg": Family(norm_eps=1e-6),
    "hf-dinov3": Family(norm_eps=1e-5, heads=_DINOV3_HEADS),
    "hf-clip": Family(norm_eps=1e-5, pos_interpolation="bicubic", act="quick_gelu"),
    "hf-siglip": Family(norm_eps=1e-6, pos_interpolation="bicubic", act="gelu_tanh", heads={**HEADS, 1536: 16}),
    # ours; a model folder's config.json says everything
    "vitembed": Family(norm_eps=1e-6),
}

# model_type of a Hugging Face config.json, and the family it means.
HF_TYPES: dict[str, str] = {
    "vit": "hf-vit", "deit": "hf-deit", "vit_mae": "hf-mae", "vit_msn": "hf-vit", "ijepa": "hf-ijepa",
    "dinov2": "hf-dinov2", "dinov2_with_registers": "hf-dinov2-reg", "dinov3_vit": "hf-dinov3",
    "clip": "hf-clip", "clip_vision_model": "hf-clip", "siglip": "hf-siglip", "siglip_vision_model": "hf-siglip",
}  # fmt: skip

# Parts of timm's architecture names that say what no key says. First the settings, then what is refused.
TIMM_SETTINGS: tuple[tuple[str, dict[str, object]], ...] = (
    (r"quickgelu", {"act": "quick_gelu"}),
    (r"patch32_siglip|large_patch16_siglip(_gap)?_512|(so400m|giantopt)_patch16_siglip", {"act": "gelu_tanh"}),
    (r"vit_base_patch16_gap_224|giantopt_patch16_siglip", {"num_heads": 16}),
    (r"^test_vit[23]?$", {"heads": {64: 2, 96: 3}}),
)
TIMM_REFUSED: tuple[tuple[str, str], ...] = (
    (r"_distilled_", "a vector that is the mean of the cls and the distillation token"),
    (r"^test_vit3$", "a pooling over registers too"),
    (r"_rpn_", "norms behind attention and MLP"),
    (r"^(eva(?!_large)|eva02|beit|vit_pe|vit_.*rope)", "other position or attention layers"),
    (r"^aimv2|^vit_.*_xp_|18x2|pwee|dpwee|dwee|dlittle", "other blocks"),
)

# Arguments of timm's constructors that can be read here: from the weights, from the table above, or without a say in
# what an image gives. A model with any other argument is run by timm.
TIMM_ARGUMENTS = frozenset({
    "num_classes", "global_pool", "img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio",
    "qkv_bias", "init_values", "class_token", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm",
    "act_layer", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init",
})  # fmt: skip
