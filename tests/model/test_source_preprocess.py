"""Pixels of public models against those of the libraries that they come from, on photographs of odd shapes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data import create_transform, resolve_data_config

from vitembed.errors import ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.source_preprocess import crop_pct_for, family_default, from_processor, from_source, from_timm

SHAPES = [(427, 640), (301, 299), (97, 255), (640, 211), (230, 231), (50, 40)]
"""Width and height: both orientations, odd margins, larger and smaller than what is needed."""


@pytest.fixture(scope="module")
def photos():
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    cut = [(china, flower)[i % 2].crop((7 * i, 3 * i, 7 * i + 400, 3 * i + 380)) for i in range(len(SHAPES))]
    return [image.resize(shape, Image.Resampling.LANCZOS) for image, shape in zip(cut, SHAPES, strict=True)]


def normalised(preprocess: Preprocess, image: Image.Image) -> torch.Tensor:
    """What our ViT is given, as the encoder works it out."""
    pixels = torch.from_numpy(preprocess.apply(image)).permute(2, 0, 1).float().div(255.0)
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (pixels - mean) / std


def largest_difference(preprocess, image, expected) -> float:
    """In units of 1/255 of the range of a colour value."""
    std = torch.tensor(preprocess.std).reshape(-1, 1, 1)
    return float(((normalised(preprocess, image) - expected) * std).abs().max()) * 255


@pytest.mark.parametrize(
    "settings",
    [
        {
            "input_size": (3, 224, 224),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": (0.5,) * 3,
            "std": (0.5,) * 3,
        },
        {"input_size": (3, 224, 224), "crop_pct": 0.875, "interpolation": "bilinear", "crop_mode": "center"},
        {"input_size": (3, 96, 96), "crop_pct": 1.0, "crop_mode": "squash"},
        {"input_size": (3, 96, 96), "crop_pct": 0.95, "crop_mode": "squash", "interpolation": "lanczos"},
        {"input_size": (3, 96, 96), "crop_pct": 1.0, "crop_mode": "border", "mean": (0.2, 0.5, 0.7)},
        {"input_size": (3, 518, 518), "crop_pct": 1.0},
        {"num_classes": 10},
    ],
)
def test_timm(photos, settings):
    # The same resize by Pillow, hence the same 8-bit pixels: only the last bit of fp32 may differ.
    transform = create_transform(**resolve_data_config(pretrained_cfg=settings), is_training=False)
    ours = from_timm(settings, where="x")
    for image in photos:
        assert largest_difference(ours, image, transform(image)) < 1e-3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "deit3_base_patch16_224", "resnet50.a1_in1k"])
def test_timm_settings_as_its_models_carry_them(photos, name):
    settings = timm.models.get_pretrained_cfg(name).to_dict()
    transform = create_transform(**resolve_data_config(pretrained_cfg=settings), is_training=False)
    written = json.loads(json.dumps({"architecture": name, "pretrained_cfg": settings}))
    ours, origin = from_source("timm-vit", native_size=224, patch_size=16, config=written, where="x")
    assert origin == "pretrained_cfg in config.json"
    assert largest_difference(ours, photos[0], transform(photos[0])) < 1e-3


def processors():
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return {
        "ViT": ViTImageProcessorPil(),
        "ViT of MAE": ViTImageProcessorPil(resample=3, **imagenet),
        "Bit of DINOv2": BitImageProcessorPil(size={"shortest_edge": 256}, resample=3, **imagenet),
        "Bit with another crop": BitImageProcessorPil(
            size={"shortest_edge": 101}, crop_size={"height": 77, "width": 77}
        ),
        "CLIP": CLIPImageProcessorPil(),
        "CLIP at 336": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        "values in 0..255": ViTImageProcessorPil(do_rescale=False, image_mean=[120.0] * 3, image_std=[60.0] * 3),
        "other scale": ViTImageProcessorPil(rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
        "not normalised": ViTImageProcessorPil(do_normalize=False),
    }


@pytest.mark.parametrize("name", list(processors()))
def test_transformers(photos, name, tmp_path):
    # By Pillow there too, hence the same 8-bit pixels.
    processor = processors()[name]
    processor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    ours = from_processor(written, where="x")
    for image in photos:
        expected = torch.as_tensor(np.asarray(processor(image)["pixel_values"][0]))
        assert largest_difference(ours, image, expected) < 1e-2


def test_transformers_dinov3(photos, tmp_path):
    # It scales first and resizes floats, by torchvision. Pillow rounds to 8 bits behind each of its two passes, by up
    # to 0.5 each time, with fixed-point weights: pixels may differ by 1 of 255 and a trace, a fifth on average.
    from transformers.models.dinov3_vit.image_processing_dinov3_vit import DINOv3ViTImageProcessor

    processor = DINOv3ViTImageProcessor()
    processor.save_pretrained(tmp_path)
    ours = from_processor(json.loads((tmp_path / "preprocessor_config.json").read_text()), where="x")
    assert (ours.resize, ours.interpolation, ours.img_size) == ("squash", "bilinear", 224)
    for image in photos:
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert largest_difference(ours, image, expected) <= 1.05
        assert float((normalised(ours, image) - expected).abs().mean()) * 0.225 * 255 < 0.35


def test_transformers_by_torchvision(photos):
    # The default of transformers 5 resizes 8-bit tensors with integer weights of its own: off by 2 of 255 at worst.
    from transformers.models.bit.image_processing_bit import BitImageProcessor

    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = BitImageProcessor(size={"shortest_edge": 256}, **imagenet)
    ours = from_processor(json.loads(processor.to_json_string()), where="x")
    for image in photos:
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert largest_difference(ours, image, expected) <= 2.05


def test_what_a_processor_leaves_out_is_its_kinds_own():
    bare = from_processor({"image_processor_type": "CLIPImageProcessor"}, where="x")
    assert (bare.img_size, bare.resize, bare.crop_pct, bare.interpolation) == (224, "crop", 1.0, "bicubic")
    assert bare.mean == (0.48145466, 0.4578275, 0.40821073)
    old = from_processor(  # before transformers 4.22 sizes were numbers
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2, "do_normalize": True}, where="x"
    )
    assert (old.img_size, old.resize) == (224, "squash")


@pytest.mark.parametrize(("side", "whole"), [(224, 256), (224, 224), (77, 101), (336, 385), (518, 592), (28, 36)])
def test_crop_share_gives_back_the_resized_side(side, whole):
    assert Preprocess(img_size=side, crop_pct=crop_pct_for(side, whole)).short_px == whole


@pytest.mark.parametrize("side", range(200, 300, 7))
def test_crop_share_for_every_side(side):
    for whole in range(side, 2 * side):
        assert Preprocess(img_size=side, crop_pct=crop_pct_for(side, whole)).short_px == whole


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"image_processor_type": "NewImageProcessor"}, "is of NewImageProcessor and leaves out its settings"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 10, "width": 20}}, "10 x 20 px .* square"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 9}}, "varying shape"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "does not resize"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "not done here"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 0}, "resample 0"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": "x"}, "image_mean is 'x', expected three numbers"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [0, 1, 1]}, "std above 0"),
        (
            {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 300, "width": 300}},
            "cuts 300 px out of 224 px",
        ),
    ],
)
def test_what_is_not_done_is_refused(processor, message):
    with pytest.raises(ModelError, match=message):
        from_processor(processor, where="model x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input_size": [3, 224, 200]}, "square"),
        ({"input_size": [1, 28, 28]}, "RGB"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"crop_mode": "border", "crop_pct": 0.9}, "'border' with crop_pct 0.9"),
        ({"mean": [0.5]}, "mean is .* three numbers"),
    ],
)
def test_what_timm_does_and_we_do_not_is_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        from_timm(settings, where="model x")


def test_family_defaults():
    # DINOv2's evaluation: 256, then 224 from the centre; its positions are for 518 px.
    dinov2 = family_default("dinov2", 518)
    assert (dinov2.img_size, dinov2.short_px, dinov2.interpolation) == (224, 256, "bicubic")
    assert family_default("hf-dinov2-reg", 518) == dinov2
    assert family_default("hf-clip", 336).mean == family_default("open-clip", 336).mean
    assert family_default("mae", 224).short_px == 256
    _, origin = from_source("mae", native_size=224, patch_size=16, where="x")
    assert origin == "default of the family mae"
    with pytest.raises(ModelError, match="images of 224 px .* cannot be cut into 15-px patches"):
        from_source("mae", native_size=224, patch_size=15, where="x")
