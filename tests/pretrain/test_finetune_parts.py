"""Head, layer-wise rates, sides and settings of fine-tuning, each against what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from vitembed.config import FinetuneConfig, ViTConfig
from vitembed.errors import ConfigError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import SavedModel
from vitembed.model.vit import ClassHead, VisionTransformer
from vitembed.model.whitening import with_cls_proj
from vitembed.pretrain.module import parameter_groups
from vitembed.pretrain.onward.adapt import split_by_scale
from vitembed.pretrain.supervised.auto import batch_for, passes_for
from vitembed.pretrain.supervised.head import StandardHead, as_arrays
from vitembed.pretrain.supervised.module import Network, layer_scales, start_vit
from vitembed.pretrain.supervised.stream import MIN_VALIDATION, sides_of
from vitembed.pretrain.supervised.teach import balanced
from vitembed.probe.linear import LinearProbe
from vitembed.probe.saving import SavedProbe
from vitembed.recipes import load_config

CONFIG = ViTConfig(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_linear_head_starts_with_the_answers_of_the_probe(num_classes):
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((90, 6)) * [1, 5, 0.1, 1, 20, 1] + 3).astype(np.float32)
    labels = np.arange(90) % num_classes
    vectors[:, 0] += labels
    probe = LinearProbe(C=1.0).fit(vectors, labels)
    head = StandardHead(torch.from_numpy(vectors.mean(0)), torch.from_numpy(vectors.std(0)), num_classes, None)
    head.start_from(probe)
    with torch.no_grad():
        found = head(torch.from_numpy(vectors)).softmax(dim=1).numpy()
    np.testing.assert_allclose(found, probe.predict_proba(vectors), atol=1e-5)


@pytest.mark.parametrize("hidden_dim", [None, 5])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_folded_head_and_a_saved_one_say_the_same(hidden_dim, num_classes, tmp_path):
    torch.manual_seed(0)
    head = StandardHead(torch.randn(6) * 4, torch.rand(6) + 0.1, num_classes, hidden_dim)
    cls = torch.randn(8, 6) * 3 + 1
    with torch.no_grad():
        expected = head(cls)
        plain = head.folded()
        assert isinstance(plain, ClassHead)
        torch.testing.assert_close(plain(cls), expected, atol=1e-4, rtol=1e-4)
    coef, intercept, hidden = as_arrays(plain)
    probe = SavedProbe(
        classes=["a", "b", "c"][:num_classes],
        coef=coef,
        intercept=intercept,
        hidden=hidden,
        fingerprint="f" * 64,
        threshold=0.5,
    )
    probe.save(tmp_path / "p.safetensors")
    back = SavedProbe.load(tmp_path / "p.safetensors")
    np.testing.assert_allclose(back.predict_proba(cls.numpy()), plain(cls).softmax(1).detach().numpy(), atol=1e-6)


def test_layers_learn_at_the_rates_that_one_computes_by_hand():
    vit = with_cls_proj(VisionTransformer(CONFIG), torch.eye(32), torch.zeros(32))
    network = Network(vit, StandardHead(torch.zeros(32), torch.ones(32), 3, 8))
    groups = split_by_scale(parameter_groups(network, 0.05), layer_scales(vit, scale=0.5, decay=0.5))
    found = {}
    for group in groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["full_lr_scale"], group["weight_decay"], group["backbone"])
    named = {name: found[id(parameter)] for name, parameter in network.named_parameters()}
    assert len(found) == len(list(network.parameters()))
    assert named["vit.pos_embed"] == (0.5 * 0.125, 0.0, True)
    assert named["vit.cls_token"] == (0.5 * 0.125, 0.0, True)
    assert named["vit.patch_embed.proj.weight"] == (0.5 * 0.125, 0.05, True)
    assert named["vit.blocks.0.attn.qkv.weight"] == (0.5 * 0.25, 0.05, True)
    assert named["vit.blocks.1.mlp.fc1.bias"] == (0.5 * 0.5, 0.0, True)
    assert named["vit.norm.weight"] == (0.5, 0.0, True)
    assert named["vit.cls_proj.weight"] == (0.5, 0.05, True)
    assert named["head.head.layers.0.weight"] == (1.0, 0.05, False)


def test_the_encoder_starts_as_the_one_it_comes_from_whitened_or_not():
    torch.manual_seed(0)
    vit = with_cls_proj(VisionTransformer(CONFIG), torch.randn(32, 32), torch.randn(32)).eval()
    parent = SavedModel(
        vit=vit, preprocess=Preprocess(img_size=16), pool="cls", provenance={}, licence=None, fingerprint="f"
    )
    start = start_vit(parent, img_size=16, drop_path_rate=0.2).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(start(pixels).cls, vit(pixels).cls)
        start.cls_proj.weight.zero_()
    assert vit.cls_proj.weight.abs().sum() > 0
    fixed = {name for name, parameter in start.named_parameters() if not parameter.requires_grad}
    assert fixed == {"cls_proj.weight", "cls_proj.bias"}


def test_validation_images_are_training_images_that_no_group_shares():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 1200)
    is_test = rng.random(1200) < 0.25
    sides = sides_of(targets, is_test, None, validation_share=0.1, seed=0)
    assert sorted([*sides.train, *sides.validation, *sides.test]) == list(range(1200))
    assert not is_test[sides.validation].any()
    assert 0.08 < len(sides.validation) / (~is_test).sum() < 0.12
    groups = rng.integers(0, 100, 1200)
    grouped = sides_of(targets, is_test, groups, validation_share=0.1, seed=0)
    assert len(grouped.validation)
    assert not set(groups[grouped.train]) & set(groups[grouped.validation])
    again = sides_of(targets, is_test, groups, validation_share=0.1, seed=0)
    assert np.array_equal(grouped.validation, again.validation)
    few = sides_of(targets[:200], is_test[:200], None, validation_share=0.1, seed=0)
    assert len(few.validation) == 0
    assert 0.1 * (~is_test[:200]).sum() < MIN_VALIDATION


def test_balanced_weights_are_scikit_learn_s():
    targets = np.repeat([0, 1, 2], [60, 30, 10])
    from sklearn.utils.class_weight import compute_class_weight

    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(balanced(targets).numpy(), expected, rtol=1e-6)
    assert LogisticRegression(class_weight="balanced")  # the same rule


def test_more_images_get_larger_batches_and_fewer_passes():
    sizes = [batch_for(num, gpu=False) for num in (50, 200, 1000, 50_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 16
    passes = [passes_for(num, 10**6, gpu=True)[0] for num in (150, 1500, 40_000)]
    assert passes == sorted(passes, reverse=True)
    few, why = passes_for(10_000, 10**11, gpu=False)
    assert few < passes_for(10_000, 10**11, gpu=True)[0]
    assert "no GPU" in why


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.head=tree", "model.head must be one of mlp, linear"),
        ("labels.smoothing=1", "labels.smoothing must be a number in 0..1"),
        ("labels.mixup_alpha=-1", "labels.mixup_alpha must be a number in 0..1000, got -1"),
        ("labels.class_weight=equal", "labels.class_weight must be one of"),
        ("split.test_share=1", "split.test_share must be a number in 0..1"),
        ("optim.layer_decay=0", "optim.layer_decay must be"),
        ("optim.base_lr=0", "optim.base_lr must be a number in 0"),
        ("trainer.devices=2", "fine-tuning runs on one device"),
        ("trainer.strategy=fsdp", "trainer.strategy is for pretraining"),
        ("trainer.num_pictures=2", "trainer.num_pictures is for pretraining"),
        ("trainer.compile=on", "does not compile"),
        ("labels.mixup=1", "unknown setting 'labels.mixup'. Did you mean"),
        ("objective.mask_ratio=0.5", "unknown setting 'objective'"),
    ],
)
def test_wrong_settings_are_one_line(setting, message):
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(FinetuneConfig, None, [setting])
    assert "\n" not in str(raised.value)
