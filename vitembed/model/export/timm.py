"""``--to timm``: weights under timm's names, and the exact call that builds their model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from vitembed.atomic import atomic_folder
from vitembed.config import ViTConfig
from vitembed.model.export.card import model_card
from vitembed.model.export.fitting import facts, plain_vit, positions_at
from vitembed.model.export.publish import FOLDER_FILES, WEIGHTS_FILE, check_folder
from vitembed.model.misfit import refuse_misfit
from vitembed.outputs import CARD, WEIGHTS, output_file, write_output

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder

WHAT, OTHER = "timm's ViT", "export it with --to onnx"
# A timm name stands for what no JSON argument can say: the norms' epsilon and the kind of MLP.
_PLAIN, _CLIP, _SWIGLU = "vit_base_patch16_224", "vit_base_patch16_clip_224", "vit_giant_patch14_dinov2"
_CROP_MODES = {"crop": "center", "squash": "squash", "squash+crop": "squash", "pad": "border"}


@dataclass(frozen=True, kw_only=True)
class TimmCall:
    """How timm builds the model."""

    architecture: str
    """A name that every timm knows; the arguments overrule its sizes."""
    args: dict[str, Any]
    """Arguments of ``create_model`` as JSON."""
    code_args: dict[str, str]
    """Arguments that only Python can say, as expressions; with any, timm's config.json cannot describe the model."""
    imports: tuple[str, ...]
    """What those expressions need."""

    cls_proj: bool
    """Whether timm's head is the map behind our cls vector."""

    def code(self, weights: str, pool: str) -> str:
        """Python that loads the weights, strictly, and gives the vector of ``pixels``."""
        args = [f"{key}={value!r}" for key, value in self.args.items()]
        args += [f"{key}={value}" for key, value in self.code_args.items()]
        lines = [
            *self.imports,
            "import timm",
            "",
            "model = timm.create_model(",
            f'    "{self.architecture}",',
            f"    checkpoint_path={weights!r},",
            *(f"    {arg}," for arg in args),
            ").eval()",
        ]
        if pool == "cls+mean":
            lines += [
                "tokens = model.forward_features(pixels)",
                "patches = tokens[:, model.num_prefix_tokens :]",
                f"cls = {'model.head(tokens[:, 0])' if self.cls_proj else 'tokens[:, 0]'}",
                "vector = torch.cat([cls, patches.mean(dim=1)], dim=1)",
            ]
            return "\n".join(["import torch", *lines] if "import torch" not in self.imports else lines)
        return "\n".join([*lines, "vector = model(pixels)"])


def timm_call(config: ViTConfig, pool: str, img_size: int) -> TimmCall:
    """The call that builds an architecture in timm.

    Args:
        config: The architecture.
        pool: How its tokens become a vector.
        img_size: Side of the images; positions are exported for it.

    Raises:
        ModelError: If timm's ViT cannot be built like that.
    """
    misfits = []
    if config.pos_embed == "rope":
        misfits.append("pos_embed='rope'")
    if config.attn_pool and pool != "cls":
        misfits.append(f"pool {pool!r} beside attn_pool")
    if config.final_norm == "pooled" and pool != "mean":
        misfits.append(f"pool {pool!r} without a norm")
    refuse_misfit(config, WHAT, misfits, OTHER)
    cls_proj = config.cls_proj and pool != "mean"
    global_pool = "map" if config.attn_pool else {"cls": "token", "mean": "avg", "cls+mean": "token"}[pool]
    args: dict[str, Any] = {
        "img_size": img_size,
        "patch_size": config.patch_size,
        "in_chans": config.in_chans,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "reg_tokens": config.num_registers,
        "class_token": config.class_token,
        "no_embed_class": config.no_embed_class,
        "pre_norm": config.pre_norm,
        "final_norm": config.final_norm != "none",
        "fc_norm": config.final_norm == "pooled",
        "global_pool": global_pool,
        "num_classes": config.embed_dim if cls_proj else 0,
    }
    if config.init_values is not None:
        args["init_values"] = config.init_values
    if config.act != "gelu":
        args["act_layer"] = config.act
    architecture, code_args, imports = _PLAIN, dict[str, str](), []
    if config.mlp == "swiglu" and config.init_values is not None and config.norm_eps == 1e-6:
        architecture = _SWIGLU
    elif config.mlp == "swiglu":
        imports += ["import torch", "from timm.layers import SwiGLUPacked"]
        code_args |= {"mlp_layer": "SwiGLUPacked", "act_layer": "torch.nn.SiLU"}
    if config.norm_eps == 1e-5 and config.mlp == "mlp":
        architecture = _CLIP
    elif config.norm_eps != 1e-6:
        imports += ["from functools import partial", "import torch"]
        code_args["norm_layer"] = f"partial(torch.nn.LayerNorm, eps={config.norm_eps!r})"
    if config.stem == "conv":
        num = config.patch_size.bit_length() - 1
        imports += ["from functools import partial", "from timm.layers import HybridEmbed"]
        imports += ["from timm.models.vision_transformer_hybrid import ConvStem"]
        args["patch_size"] = 1  # of the stem's output
        stem = f"ConvStem(in_chans={config.in_chans}, depth={num}, channels={config.embed_dim}, stride={(2,) * num})"
        code_args["embed_layer"] = f"partial(HybridEmbed, backbone={stem}, proj=False)"
    return TimmCall(
        architecture=architecture,
        args=args,
        code_args=code_args,
        imports=tuple(dict.fromkeys(sorted(imports))),
        cls_proj=cls_proj,
    )


def export_timm(encoder: Encoder, path: Path) -> str:
    """Write weights that ``timm.create_model(..., checkpoint_path=...)`` loads strictly.

    A path that ends in ``.safetensors`` becomes that file, with a card (``.md``) beside it. Any other becomes a folder
    in the layout of timm's hub models (``timm.create_model("local-dir:PATH", pretrained=True)``) with a card, unless
    only Python can say how the model is built (a convolutional stem, unusual norms): then the card alone says it.

    Returns:
        The Python code that loads it, as it stands in the card.

    Raises:
        ModelError: If timm's ViT cannot hold this encoder.
        OSError: If it cannot be written.
    """
    vit = plain_vit(encoder, WHAT, OTHER)
    size = encoder.preprocess.img_size
    call = timm_call(vit.config, encoder.pool, size)
    weights: dict[str, Tensor] = {name: tensor.detach().cpu() for name, tensor in vit.state_dict().items()}
    positions = positions_at(vit, size)
    if positions is not None:
        weights["pos_embed"] = positions.detach().cpu()
    weights = {name: (t.float() if t.is_floating_point() else t).contiguous() for name, t in weights.items()}
    told = facts(encoder)
    for kind in ("weight", "bias") if vit.cls_proj is not None else ():
        tensor = weights.pop(f"cls_proj.{kind}")
        if call.cls_proj:
            weights[f"head.{kind}"] = tensor
    if call.cls_proj:
        told["cls_proj"] = "head"
    metadata = {"format": "pt", "vitembed": json.dumps(told, sort_keys=True)}
    alone = path.suffix == ".safetensors"
    code = call.code(str(path if alone else path / WEIGHTS_FILE), encoder.pool)
    remarks = ["`pixels`: float [b, c, h, w], prepared as below."]
    if encoder.preprocess.resize == "pad":
        remarks.append("timm's own transforms pad with another colour.")
    card = model_card(encoder, "timm", code, remarks)
    if alone:
        write_output(path.with_suffix(".md"), CARD, card)
        with output_file(path, WEIGHTS) as temp:
            save_file(weights, temp, metadata)
        return code
    check_folder(path, force=True)
    with atomic_folder(path, FOLDER_FILES) as folder:
        save_file(weights, folder / WEIGHTS_FILE, metadata)
        (folder / "README.md").write_text(card, encoding="utf-8")
        name = "vitembed.json" if call.code_args else "config.json"
        config = {"vitembed": told} if call.code_args else {**_hub_config(encoder, call), "vitembed": told}
        (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return code


def _hub_config(encoder: Encoder, call: TimmCall) -> dict[str, Any]:
    """The description that timm reads of a model on a hub."""
    preprocess = encoder.preprocess
    return {
        "architecture": call.architecture,
        "num_classes": call.args["num_classes"],
        "num_features": encoder.vit.config.embed_dim,
        "global_pool": call.args["global_pool"],
        "model_args": call.args,
        "pretrained_cfg": {
            "input_size": [preprocess.in_chans, preprocess.img_size, preprocess.img_size],
            "fixed_input_size": True,
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct if "crop" in preprocess.resize else 1.0,
            "crop_mode": _CROP_MODES[preprocess.resize],
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "num_classes": call.args["num_classes"],
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **({"license": encoder.licence} if encoder.licence else {}),
        },
    }
