"""One set of random weights for everybody, as each of them reads it; runs in clip-retrieval's environment.

    python weights.py SIZE FOLDER

An image encoder of open_clip with a seed: ``open_clip/`` holds it as open_clip publishes models (read by vitembed and
by ``clip_retrieval_run.py``), ``rclip/`` the image tower as the ONNX file that rclip would download, under the name it
looks for, beside empty files for the parts that a query by image never opens (text tower, tokenizer).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

SIZES = {"base": (768, 12), "small": (384, 12), "tiny": (192, 4)}
"""Width and depth; patches of 32 px, images of 256 px and 512-d vectors, as the model that rclip is made for."""
SEED = 0
RCLIP_MODEL = "ViT-B-32-256-datacomp_s34b_b86k"


def config(size: str) -> dict[str, object]:
    """What open_clip calls a model config."""
    width, layers = SIZES[size]
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    if size != "base":
        text |= {"width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": 256, "layers": layers, "width": width, "patch_size": 32}
    return {"embed_dim": 512, "vision_cfg": vision, "text_cfg": text}


def create(size: str, folder: Path):
    """open_clip's model, evaluation transform and tokenizer; weights from ``folder`` where it has some, else random."""
    import open_clip
    from safetensors.torch import load_file

    name = f"side-by-side-{size}"
    place = folder / "configs"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.json").write_text(json.dumps(config(size)))
    open_clip.add_model_config(place)
    torch.manual_seed(SEED)
    model, _, transform = open_clip.create_model_and_transforms(name, pretrained=None)
    weights = folder / "open_clip" / "open_clip_model.safetensors"
    if weights.exists():
        model.load_state_dict(load_file(weights))
    return model.eval(), transform, open_clip.get_tokenizer(name)


def main(size: str, folder: Path) -> None:
    from safetensors.torch import save_file

    model, transform, _ = create(size, folder)
    place = folder / "open_clip"
    place.mkdir(parents=True, exist_ok=True)
    normalise = transform.transforms[-1]
    preprocess = {
        "mean": list(normalise.mean), "std": list(normalise.std), "interpolation": "bicubic", "resize_mode": "shortest",
    }  # fmt: skip
    settings = {"model_cfg": config(size), "preprocess_cfg": preprocess}
    (place / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, place / "open_clip_model.safetensors"
    )
    tower = folder / "rclip" / RCLIP_MODEL
    tower.mkdir(parents=True, exist_ok=True)
    (tower / "textual.onnx").touch()
    (folder / "rclip" / "tokenizer").mkdir(exist_ok=True)
    (folder / "rclip" / "tokenizer" / "bpe_simple_vocab_16e6.txt.gz").touch()
    pixels = torch.randn(2, 3, 256, 256)
    torch.onnx.export(
        model.visual,
        (pixels,),
        tower / "visual.onnx",
        input_names=["input"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(tower / "visual.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model.visual(pixels)
    [given] = session.run(None, {"input": pixels.numpy()})
    difference = float((expected - torch.from_numpy(given)).abs().max())
    assert difference < 1e-3, f"the ONNX file gives other vectors, off by {difference}"


if __name__ == "__main__":
    from vitembed._torchvision import import_torchvision

    import_torchvision()
    main(sys.argv[1], Path(sys.argv[2]))
