"""The objective learns, spreads, and pays for visible patches only."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitembed.config import ObjectiveConfig, ViTConfig, preset
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.module import parameter_groups
from vitembed.pretrain.objective import MaskedViews
from vitembed.pretrain.watch.monitors import rankme, view_retrieval

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
    for step in range(500):
        loss = module(images, torch.Generator().manual_seed(step % 4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-10:]) < losses[0] / 10


@pytest.mark.parametrize("spread", ["coding_rate", "info_nce", "visreg"])
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


EVERY_KIND = [
    {},
    {"spread": "visreg", "teacher": True},
    {"spread": "info_nce", "teacher": True, "num_local_views": 2},
    {"patch_target": "latent", "teacher": True, "num_local_views": 1, "local_mask_ratio": 0.25},
    {"spread": "none", "num_views": 1, "cls_regression_weight": 1.0, "teacher": True},
]


def batch(module, *, num_local: int | None = None) -> tuple:
    """Random views and local views as the settings of the objective ask for, and masks from a fixed seed."""
    torch.manual_seed(1)
    config = module.config
    local = config.num_local_views if num_local is None else num_local
    small = torch.randn(local, 8, 3, 16, 16) if local else None
    return torch.randn(config.num_views, 8, 3, 32, 32), torch.Generator().manual_seed(2), small


@pytest.mark.parametrize("settings", EVERY_KIND)
def test_every_trained_parameter_gets_a_gradient_and_the_teacher_none(settings):
    module = objective(**settings)
    module(*batch(module)).loss.backward()
    missing = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(p.grad is None for name, p in module.named_parameters() if name.startswith("teacher"))


@pytest.mark.parametrize("settings", EVERY_KIND)
def test_the_teacher_stays_until_it_is_updated_and_travels_in_the_state_dict(settings):
    module = objective(**settings)
    teacher = {name: value.clone() for name, value in module.state_dict().items() if name.startswith("teacher_vit")}
    assert bool(teacher) == module.config.teacher
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(*batch(module)).loss.backward()
    optimizer.step()
    assert all(torch.equal(module.state_dict()[name], value) for name, value in teacher.items())
    module.update_teacher(0.0)
    for name, value in module.vit.state_dict().items():
        if module.config.teacher:
            torch.testing.assert_close(module.state_dict()[f"teacher_vit.module.{name}"], value)


def test_local_views_agree_with_the_global_ones_but_are_not_spread():
    module = objective(num_local_views=2, patch_weight=0.0)
    views, generator, local = batch(module)
    terms = module(views, generator, local).terms
    torch.manual_seed(1)
    other = module(views, torch.Generator().manual_seed(2), torch.zeros_like(local)).terms
    assert terms["align"] != other["align"]
    module.eval()  # the head's batch norm sees all views; apart from it the spread is that of the global ones
    terms = module(views, torch.Generator().manual_seed(2), local).terms
    other = module(views, torch.Generator().manual_seed(2), torch.zeros_like(local)).terms
    torch.testing.assert_close(terms["spread"], other["spread"])


def test_the_teacher_sees_whole_views_and_the_targets_are_its_own():
    module = objective(patch_target="latent", teacher=True, mask_ratio=0.75, patch_weight=1.0, spread="coding_rate")
    views, _, _ = batch(module)
    tokens = module.teach(views.flatten(0, 1))
    assert tokens.patches.shape == (16, 16, 32)
    torch.testing.assert_close(tokens.cls, module.vit(views.flatten(0, 1)).cls)  # an exact copy at the start
    assert not tokens.cls.requires_grad


def test_views_of_half_the_size_are_learned_from_too():
    module = objective(decoder_depth=1)
    loss = module(torch.randn(2, 8, 3, 16, 16), torch.Generator()).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_the_patches_of_one_view_only_are_predicted_when_asked():
    both, one = objective(norm_pix_loss=False), objective(norm_pix_loss=False, num_patch_views=1)
    assert one.state_dict().keys() == both.state_dict().keys()
    views, _, _ = batch(both)
    changed = views.clone()
    changed[1] *= 2  # the second view's pixels
    terms = [
        module(x, torch.Generator().manual_seed(2)).terms["patch"] for module in (one, both) for x in (views, changed)
    ]
    torch.testing.assert_close(terms[0], terms[1])
    assert abs(terms[2] - terms[3]) > 1e-4


def test_terms_add_up_to_the_loss():
    module = objective(align_weight=0.5, spread_weight=2.0, contrast_weight=0.3, patch_weight=0.25)
    output = module(torch.randn(2, 8, 3, 32, 32), torch.Generator())
    terms = output.terms
    expected = 0.5 * terms["align"] - 2.0 * terms["spread"] + 0.3 * terms["info_nce"] + 0.25 * terms["patch"]
    torch.testing.assert_close(output.loss.detach(), expected)
    module = objective(spread="visreg", align_weight=0.4, spread_weight=0.6, contrast_weight=0.1, patch_weight=0.0)
    output = module(torch.randn(2, 8, 3, 32, 32), torch.Generator())
    terms = output.terms
    apart = terms["center"] + terms["scale"] + terms["shape"]
    expected = 0.4 * terms["align"] + 0.6 * apart + 0.1 * terms["info_nce"]
    torch.testing.assert_close(output.loss.detach(), expected)


@pytest.mark.parametrize("settings", EVERY_KIND)
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_gives_nearly_the_same_loss(settings, dtype):
    module = objective(**settings).eval()
    full = module(*batch(module)).loss
    with torch.autocast("cpu", dtype=dtype):
        half = module(*batch(module)).loss
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
