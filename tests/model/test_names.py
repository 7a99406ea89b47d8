"""The catalogue against models that timm builds, and what names mean."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from vitembed.model.about import config_of
from vitembed.model.catalogue import MODELS
from vitembed.model.names import DEFAULT_MODEL, near_matches, public_source, refuse_unknown
from vitembed.model.vit import VisionTransformer

# The same architectures in timm, for those that are not timm's own repositories.
IN_TIMM = {
    "dinov2-small": "vit_small_patch14_dinov2", "dinov2-giant-reg": "vit_giant_patch14_reg4_dinov2",
    "dinov3-small-plus": "vit_small_plus_patch16_dinov3", "dinov3-huge-plus": "vit_huge_plus_patch16_dinov3",
    "dinov3-7b": "vit_7b_patch16_dinov3", "dino-small8": "vit_small_patch8_224", "mae-huge": "vit_huge_patch14_224",
    "clip-base32": "vit_base_patch32_clip_224", "clip-large14-336": "vit_large_patch14_clip_336",
    "ijepa-huge16": "vit_huge_patch16_gap_448", "ijepa-giant16-22k": "vit_giant_patch16_gap_224",
}  # fmt: skip


@pytest.mark.parametrize("row", [row for row in MODELS if row.name in IN_TIMM or row.hub_id.startswith("timm/")])
def test_sizes_are_those_of_timms_models(row):
    name = IN_TIMM.get(row.name, row.hub_id.removeprefix("timm/"))
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert row.num_params == pytest.approx(count, rel=0.005)
    assert (row.embed_dim, row.depth) == (model.embed_dim, len(model.blocks))
    assert row.num_heads == model.blocks[0].attn.num_heads
    assert (row.patch_size, row.patch_size) == model.patch_embed.patch_size
    assert row.num_registers == getattr(model, "num_reg_tokens", model.num_prefix_tokens - 1)
    if row.hub_id.startswith("timm/"):
        settings = timm.models.get_pretrained_cfg(name)
        assert settings.hf_hub_id == row.hub_id
        assert settings.license.lower() == row.licence.lower()
        assert settings.input_size[1] == row.img_size


def test_the_catalogue_is_complete_and_unique():
    names = [row.name for row in MODELS]
    assert len(set(names)) == len(names)
    assert len({row.hub_id for row in MODELS}) == len(MODELS)
    promised = [f"dinov2-{size}{reg}" for size in ("small", "base", "large", "giant") for reg in ("", "-reg")]
    promised += ["dino-small16", "dino-small8", "dino-base16", "dino-base8", "mae-base", "mae-large", "mae-huge"]
    assert set(promised) <= set(names)
    assert {"dinov3", "deit3", "augreg", "clip", "ijepa"} <= {row.family for row in MODELS}
    assert DEFAULT_MODEL in names
    for row in MODELS:
        assert row.img_size % row.patch_size == 0
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", row.paper)
        assert row.revision is None or re.fullmatch(r"[0-9a-f]{40}", row.revision)
        assert row.gated == (row.family == "dinov3")


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_costs_are_worked_out_for_the_right_architecture(row):
    with torch.device("meta"):
        vit = VisionTransformer(config_of(row))
    # Positions of a larger native image (DINOv2: 518 px) are the only difference.
    count = sum(parameter.numel() for parameter in vit.parameters())
    assert count == pytest.approx(row.num_params, rel=0.03)


@pytest.mark.parametrize(
    ("name", "hub_id", "revision"),
    [
        ("dinov2-small", "facebook/dinov2-small", None),
        ("dinov2-small@main", "facebook/dinov2-small", "main"),
        ("timm/vit_base_patch16_224.dino", "timm/vit_base_patch16_224.dino", None),
        ("facebook/dinov2-small@refs/pr/1", "facebook/dinov2-small", "refs/pr/1"),
    ],
)
def test_public_names(name, hub_id, revision):
    source = public_source(name)
    assert (source.hub_id, source.revision) == (hub_id, revision)
    assert public_source(source.pinned_to("a" * 40)).revision == "a" * 40
    assert public_source(source.pinned_to("a" * 40)).hub_id == hub_id


def test_a_repository_of_the_catalogue_has_its_row():
    assert public_source("facebook/dinov2-small").row.name == "dinov2-small"


@pytest.mark.parametrize("name", ["model", "./model", "/a/b", "a/b/c", "runs/x.safetensors", "../x", "a/..", "", "x@"])
def test_what_is_no_public_name(name):
    assert public_source(name) is None


def test_near_matches():
    assert near_matches("dinov2_smal")[0] == "dinov2-small"
    assert near_matches("DINOv2-Base")[0] == "dinov2-base"
    assert near_matches("mae")  # a family alone
    assert near_matches("zzz") == []
    assert "Did you mean 'dinov2-large'" in str(refuse_unknown("dinov2-larg"))
    assert "Did you mean" not in str(refuse_unknown("my_model"))
