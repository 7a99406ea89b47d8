"""``--to hf``: a folder that ``transformers.AutoModel`` and ``AutoImageProcessor`` load, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor

from vitembed.atomic import atomic_folder
from vitembed.errors import ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.export.card import model_card
from vitembed.model.export.fitting import facts, plain_vit, positions_at
from vitembed.model.export.hf_layouts import VIT, choose_layout, renamed
from vitembed.model.export.publish import FOLDER_FILES, check_folder
from vitembed.model.misfit import refuse_misfit

if TYPE_CHECKING:
    from vitembed.model.encoder import Encoder

WHAT, OTHER = "no architecture of transformers that is exported to", "export it with --to onnx or --to timm"
PROJ_FILE = "cls_proj.safetensors"
"""The map behind the cls vector, for architectures that have no layer for it."""
_FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3}
"""Pillow's numbers, of the filters that transformers has with and without torchvision."""


def export_hf(encoder: Encoder, path: Path) -> str:
    """Write a folder for transformers: weights, config.json, preprocessor_config.json and README.md (the card).

    ViTModel for plain ViTs, Dinov2Model or Dinov2WithRegistersModel where LayerScale, registers or SwiGLU need it,
    DINOv3ViTModel for rotary positions. Tokens are those of our ViT, cls first, then registers, then patches.

    Returns:
        The Python code that uses it, as it stands in the card.

    Raises:
        ModelError: If transformers has no such architecture or preprocessing.
        OSError: If it cannot be written.
    """
    check_folder(path, force=True)
    vit = plain_vit(encoder, WHAT, OTHER)
    layout, misfits = choose_layout(vit.config)
    refuse_misfit(vit.config, "transformers, as exported,", misfits, OTHER)
    processor = processor_config(encoder.preprocess)
    size = encoder.preprocess.img_size
    ours = {name: tensor.detach().float().cpu() for name, tensor in vit.state_dict().items()}
    positions = positions_at(vit, size)
    positions = positions if positions is None else positions.detach().float().cpu()
    weights = renamed(ours, positions, vit.num_positioned_prefix, vit.config, layout)
    told, remarks, apart = facts(encoder), [], dict[str, Tensor]()
    where = None
    if vit.cls_proj is not None and encoder.pool != "mean":
        where = told["cls_proj"] = "pooler.dense" if layout is VIT else PROJ_FILE
        apart = {} if layout is VIT else {k: t for k, t in ours.items() if k.startswith("cls_proj.")}
        remarks.append(
            "A linear map follows on the cls token (it evens out the directions that a cosine sees): "
            + (
                "it is the pooler."
                if layout is VIT
                else f"this architecture has no layer for it, so it is {PROJ_FILE}."
            )
        )
    code = _code(path, encoder.pool, vit.num_prefix, where)
    if encoder.pool != "cls":
        remarks.append("`pooler_output` is not this vector: it is that of the cls token.")
    if encoder.preprocess.resize != "squash" and encoder.preprocess.crop_offset == "round":
        remarks.append(
            "Where an odd number of pixels is cut off, transformers may put the crop one pixel beside where vitembed "
            "puts it; apart from that, pixels agree within 1 of 255 on average."
        )
    with atomic_folder(path, FOLDER_FILES) as folder:
        weights = {name: tensor.clone().contiguous() for name, tensor in weights.items()}  # parts of qkv share theirs
        metadata = {"format": "pt", "vitembed": json.dumps(told, sort_keys=True)}
        save_file(weights, folder / "model.safetensors", metadata)
        if apart:
            save_file({name: tensor.contiguous() for name, tensor in apart.items()}, folder / PROJ_FILE)
        for name, content in (
            ("config.json", layout.config(vit.config, size)),
            ("preprocessor_config.json", processor),
            ("vitembed.json", told),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        card = model_card(encoder, "transformers", code, remarks)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return code


def processor_config(preprocess: Preprocess) -> dict[str, Any]:
    """A preprocessor_config.json that gives the pixels of ``preprocess``.

    Raises:
        ModelError: If transformers has no such step.
    """
    if preprocess.resize == "pad":
        raise ModelError(f"transformers has no image processor that pads to a square: {OTHER}")
    if preprocess.interpolation not in _FILTERS:
        raise ModelError(f"transformers does not resize by {preprocess.interpolation}: {OTHER}")
    size = preprocess.img_size
    whole = int(size / preprocess.crop_pct) if "crop" in preprocess.resize else size
    config: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": whole, "width": whole},
        "resample": _FILTERS[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if "crop" in preprocess.resize:
        config |= {
            "image_processor_type": "BitImageProcessor",
            "do_center_crop": True,
            "crop_size": {"height": size, "width": size},
        }
    if preprocess.resize == "crop":
        config["size"] = {"shortest_edge": whole}
    return config


def _code(path: Path, pool: str, num_prefix: int, cls_proj: str | None) -> str:
    cls, before, imports = "tokens[:, 0]", [], []
    if cls_proj == PROJ_FILE:
        imports = ["from safetensors.torch import load_file"]
        before = [f"proj = load_file({str(path / PROJ_FILE)!r})"]
        cls = 'torch.nn.functional.linear(tokens[:, 0], proj["cls_proj.weight"], proj["cls_proj.bias"])'
    elif cls_proj is not None:
        cls = "output.pooler_output"
    vector = {
        "cls": cls,
        "mean": f"tokens[:, {num_prefix}:].mean(dim=1)",
        "cls+mean": f"torch.cat([{cls}, tokens[:, {num_prefix}:].mean(dim=1)], dim=1)",
    }[pool]
    return "\n".join(
        [
            "import torch",
            "from PIL import Image",
            *imports,
            "from transformers import AutoImageProcessor, AutoModel",
            "",
            f"processor = AutoImageProcessor.from_pretrained({str(path)!r})",
            f"model = AutoModel.from_pretrained({str(path)!r}).eval()",
            'inputs = processor(Image.open("image.jpg"), return_tensors="pt")',
            "with torch.inference_mode():",
            "    output = model(**inputs)",
            "tokens = output.last_hidden_state",
            *before,
            f"vector = {vector}",
        ]
    )
