"""A Hugging Face cache on disk, in its published layout, with tiny models of random weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BIT = {
    "image_processor_type": "BitImageProcessor", "do_resize": True, "size": {"shortest_edge": 36}, "resample": 3,
    "do_center_crop": True, "crop_size": {"height": 28, "width": 28}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}  # fmt: skip


def put(cache: Path, hub_id: str, files: dict[str, bytes], *, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """Files as huggingface_hub would keep them: blobs by their sum, snapshots of links, a branch's commit."""
    root = cache / f"models--{hub_id.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (root / "blobs", snapshot, root / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    if ref is not None:
        (root / "refs" / ref).write_text(commit)
    return snapshot


def dinov2_model():
    """A DINOv2 of two narrow blocks from transformers, every weight random."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14, mlp_ratio=4
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def files_of(model, folder: Path, processor: dict | None = BIT, card: str | None = None) -> dict[str, bytes]:
    """What ``save_pretrained`` writes, and a processor beside it."""
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if card is not None:
        (folder / "README.md").write_text(card)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(folder)
    return files
