"""The objective learns, spreads, and pays for visible patches only."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitembed.config import ObjectiveConfig, ViTConfig, preset
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.module import parameter_groups
from vitembed.pretrain.monitors import rankme, view_retrieval
from vitembed.pretrain.objective import MaskedViews

CONFIG = ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)


def objective(**settings) -> MaskedViews:
    torch.manual_seed(0)
    small = {"head_hidden_dim": 32, "head_dim": 16, "decoder_dim": 32}
    return MaskedViews(VisionTransformer(CONFIG), ObjectiveConfig(**{**small, **settings}))


def test_eight_images_are_overfitted_until_the_patch_loss_falls_tenfold():
    module = objective(num_views=1, spread="none", mask_ratio=0.5, decoder_depth=2)
    images = torch.nn.functional.interpolate(torch.randn(8, 3, 8, 8), size=32, mode="bicubic").unsqueeze(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    losses = []
    for step in range(300):
        loss = module(images, torch.Generator().manual_seed(step % 4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-10:]) < losses[0] / 10


@pytest.mark.parametrize("spread", ["coding_rate", "info_nce"])
def test_views_of_an_image_meet_and_images_stay_apart(spread):
    module = objective(spread=spread, patch_weight=0.0)
    images = torch.randn(16, 3, 32, 32)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for step in range(60):
        noise = torch.randn(2, 16, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        loss = module(images + 0.3 * noise, torch.Generator().manual_seed(step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        first, second = (module.vit(images + 0.3 * torch.randn(16, 3, 32, 32)).cls for _ in range(2))
    assert view_retrieval(first, second) > 0.8
    assert rankme(first - first.mean(0)) > 4


def test_the_encoder_pays_for_visible_patches_only():
    def flops(mask_ratio: float) -> int:
        module = objective(mask_ratio=mask_ratio, patch_weight=0.0)
        views = torch.randn(2, 4, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            module(views, torch.Generator())
        return sum(counter.get_flop_counts()["MaskedViews.vit.blocks.0"].values())

    # 1 + 16 tokens against 1 + 4.
    assert flops(0.75) < flops(0.0) * 5 / 17 * 1.01


def test_every_trained_parameter_gets_a_gradient():
    module = objective()
    module(torch.randn(2, 8, 3, 32, 32), torch.Generator()).loss.backward()
    missing = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_terms_add_up_to_the_loss():
    module = objective(align_weight=0.5, spread_weight=2.0, patch_weight=0.25)
    output = module(torch.randn(2, 8, 3, 32, 32), torch.Generator())
    terms = output.terms
    expected = 0.5 * terms["align"] - 2.0 * terms["spread"] + 0.25 * terms["patch"]
    torch.testing.assert_close(output.loss.detach(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_gives_nearly_the_same_loss(dtype):
    module = objective().eval()
    views = torch.randn(2, 8, 3, 32, 32)
    full = module(views, torch.Generator().manual_seed(0)).loss
    with torch.autocast("cpu", dtype=dtype):
        half = module(views, torch.Generator().manual_seed(0)).loss
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.03, rtol=0.03)


def test_weight_decay_is_on_matrices_alone():
    module = MaskedViews(
        VisionTransformer(preset("nano", img_size=32, patch_size=8, num_registers=2, init_values=1e-5)),
        ObjectiveConfig(),
    )
    decay, no_decay = parameter_groups(module, 0.05)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert all(names[id(p)].endswith("weight") and p.ndim >= 2 for p in decay["params"])
    kept = {names[id(p)].split(".")[-1] for p in no_decay["params"]}
    assert kept == {"bias", "weight", "cls_token", "reg_token", "pos_embed", "mask_token", "gamma"}
    assert len(decay["params"]) + len(no_decay["params"]) == len(list(module.parameters()))


def test_rankme_of_known_spectra():
    assert rankme(torch.eye(8)) == pytest.approx(8, rel=1e-5)
    assert rankme(torch.ones(10, 5)) == pytest.approx(1, rel=1e-3)
