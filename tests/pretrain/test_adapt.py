"""How a continued run spares the model it starts from: groups, phases, anchor, each against a computation by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from vitembed.config import AdaptConfig, ModelConfig, PretrainConfig, ViTConfig
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.module import parameter_groups
from vitembed.pretrain.objective import MaskedViews, ObjectiveOutput
from vitembed.pretrain.onward.adapt import (
    Adaptation,
    anchor_loss,
    backbone_ramp,
    layer_id,
    started_from,
    warmup_end,
)
from vitembed.pretrain.onward.parent import continued_config
from vitembed.recipes import load_config

ARCHITECTURE = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_registers=1)


def parent(architecture=ARCHITECTURE, **preprocess):
    torch.manual_seed(0)
    vit = VisionTransformer(architecture).eval()
    torch.nn.init.normal_(vit.cls_token, std=0.5)
    return SavedModel(
        vit=vit,
        preprocess=Preprocess(img_size=architecture.img_size, **preprocess),
        pool="cls",
        provenance={},
        licence=None,
        fingerprint="f",
    )


def adaptation(start=None, img_size=16, **settings):
    config = PretrainConfig(
        model=ModelConfig(size="nano", img_size=img_size, patch_size=8, num_registers=1), adapt=AdaptConfig(**settings)
    )
    return Adaptation(config, start or parent())


def scales(adapted):
    """Full scale of each trainable parameter, by name in the objective."""
    vit = adapted.start()
    objective = MaskedViews(vit, PretrainConfig().objective)
    groups = adapted.split_groups(parameter_groups(objective, 0.05), vit)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    found = {names[id(p)]: group["full_lr_scale"] for group in groups for p in group["params"]}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    plain = parameter_groups(objective, 0.05)
    assert decayed == {names[id(p)] for p in plain[0]["params"]}, "splitting must not move weight decay"
    assert len(found) == sum(len(group["params"]) for group in plain)
    return found


def test_rates_fall_with_the_distance_from_the_end():
    found = scales(adaptation(lr_scale=0.2, layer_decay=0.5))
    assert found["vit.norm.weight"] == pytest.approx(0.2)
    assert found["vit.blocks.2.attn.qkv.weight"] == pytest.approx(0.2 * 0.5)
    assert found["vit.blocks.0.norm1.bias"] == pytest.approx(0.2 * 0.5**3)
    for name in ("patch_embed.proj.weight", "cls_token", "reg_token", "pos_embed"):
        assert found[f"vit.{name}"] == pytest.approx(0.2 * 0.5**4)
    assert {scale for name, scale in found.items() if not name.startswith("vit.")} == {1.0}


def test_layer_decay_is_that_of_timm():
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5
    )
    names = {id(parameter): name for name, parameter in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, layer_decay=0.75)
    expected = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert {expected.pop("head.weight"), expected.pop("head.bias")} == {1.0}
    for part in ("weight", "bias"):  # timm counts the final norm to the last block, BEiT and we to what follows
        assert expected.pop(f"norm.{part}") == pytest.approx(0.75)
    ours = {name: 0.75 ** (4 - layer_id(name, 3)) for name in expected}
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mode", "trained"),
    [("last_blocks", ("blocks.1.", "blocks.2.", "norm.")), ("lora", ("blocks.1.", "blocks.2.", "norm.", "blocks.0."))],
)
def test_only_what_the_mode_says_is_trained(mode, trained):
    found = scales(adaptation(mode=mode, num_blocks=2, lora_lr_scale=0.3))
    inside = [name.removeprefix("vit.") for name in found if name.startswith("vit.")]
    assert inside
    assert all(name.startswith(trained) for name in inside)
    changes = {name for name in inside if ".lora_" in name}
    assert {found[f"vit.{name}"] for name in changes} == ({0.3} if mode == "lora" else set())
    if mode == "lora":
        assert {name for name in inside if name.startswith("blocks.0.")} - changes == {
            f"blocks.0.{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")
        }


def test_the_copy_starts_equal_and_leaves_the_parent_alone():
    start = parent()
    before = {name: tensor.clone() for name, tensor in start.vit.state_dict().items()}
    for mode in ("full", "lora", "last_blocks"):
        adapted = adaptation(start, mode=mode)
        vit = adapted.start().eval()
        pixels = torch.randn(2, 3, 16, 16)
        assert torch.equal(vit(pixels).cls, start.vit(pixels).cls)
        with torch.no_grad():
            for parameter in vit.parameters():
                parameter.add_(1.0)
        assert all(torch.equal(start.vit.state_dict()[name], tensor) for name, tensor in before.items())
        assert torch.equal(adapted.frozen(pixels).cls, start.vit(pixels).cls)
        assert not any(parameter.requires_grad for parameter in adapted.frozen.parameters())


def test_another_image_size_interpolates_the_positions():
    start = parent()
    resized = started_from(start.vit, img_size=32, drop_path_rate=0.1).eval()
    assert resized.native_grid == (4, 4)
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(resized(pixels).cls, start.vit(pixels).cls)
    adapted = adaptation(parent(mean=(0.5, 0.4, 0.3), resize="pad"), img_size=32)
    assert adapted.preprocess == Preprocess(img_size=32, mean=(0.5, 0.4, 0.3), resize="pad")


def test_the_phases():
    assert warmup_end(0.05, 1000) == 0.05
    assert warmup_end(0.05, 100) == pytest.approx(0.2), "20 steps at least"
    assert warmup_end(0.05, 10) == 0.5, "half of the run at most"
    assert warmup_end(0.05, None) == 0.05
    assert warmup_end(0.0, 10) == 0.0
    assert backbone_ramp(0.05, 0.05, 0.1) == 0.0
    assert backbone_ramp(0.10, 0.05, 0.1) == pytest.approx(0.5)
    assert backbone_ramp(0.15, 0.05, 0.1) == pytest.approx(1.0)
    assert backbone_ramp(0.90, 0.05, 0.1) == 1.0
    assert backbone_ramp(0.06, 0.05, 0.0) == 1.0
    assert backbone_ramp(0.01, 0.0, 0.1) == pytest.approx(0.1)


def test_the_anchor_is_one_minus_the_mean_cosine():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    cosines = [a[i] @ b[i] / np.linalg.norm(a[i]) / np.linalg.norm(b[i]) for i in range(5)]
    assert float(anchor_loss(torch.tensor(a), torch.tensor(b))) == pytest.approx(1 - np.mean(cosines), abs=1e-6)
    half = torch.tensor(a).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert anchor_loss(half, half * 3).dtype == torch.float32
        assert float(anchor_loss(half, half * 3)) == pytest.approx(0.0, abs=1e-3)


def test_the_anchor_is_added_with_its_weight_and_pulls_the_cls_vectors_alone():
    adapted = adaptation(anchor_weight=0.7)
    views = torch.randn(2, 3, 3, 16, 16)
    cls = torch.randn(6, 16, requires_grad=True)
    output = adapted.with_anchor(ObjectiveOutput(torch.tensor(2.0), {"align": torch.tensor(1.0)}, cls), views)
    target = parent().vit(views.flatten(0, 1)).cls
    expected = 1 - torch.nn.functional.cosine_similarity(cls, target).mean()
    assert output.loss.item() == pytest.approx(2.0 + 0.7 * expected.item(), abs=1e-6)
    assert float(output.terms["anchor"]) == pytest.approx(expected.item(), abs=1e-6)
    assert not output.terms["anchor"].requires_grad
    output.loss.backward()
    assert cls.grad is not None
    off = dataclasses.replace(adapted.config, anchor_weight=0.0)
    adapted.config = off
    assert "anchor" not in adapted.with_anchor(ObjectiveOutput(torch.tensor(2.0), {}, cls), views).terms


@pytest.mark.parametrize(("width", "recipe"), [(16, "nano"), (128, "nano"), (192, "continue")])
def test_heads_are_not_larger_than_the_model_is_worth(width, recipe):
    found = continued_config(parent(dataclasses.replace(ARCHITECTURE, embed_dim=width)), None, ["optim.max_steps=9"])
    expected = load_config(PretrainConfig, recipe)
    assert found.objective == expected.objective
    assert (found.optim.batch_size, found.optim.base_lr) == (expected.optim.batch_size, expected.optim.base_lr)
    assert found.adapt.lr_scale == (0.5 if recipe == "nano" else 0.1)
    assert (found.model.embed_dim, found.model.stem, found.optim.max_steps) == (width, "patch", 9)


def test_a_small_model_goes_on_as_long_as_any():
    found = continued_config(parent(), None, [])
    assert found.optim.max_steps == load_config(PretrainConfig, "continue").optim.max_steps
