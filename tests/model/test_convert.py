"""Finding an encoder in a file: wrappers and prefixes, what is left out and said, and all that is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from vitembed.config import ViTConfig, preset, to_dict
from vitembed.errors import ConfigError, ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.convert import convert
from vitembed.model.encoder import Encoder
from vitembed.model.vit import VisionTransformer
from vitembed.model.weights_file import read_weights

CONFIG = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
HEADS = {"num_attention_heads": 2}
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def drawn(config=CONFIG, seed=0):
    torch.manual_seed(seed)
    vit = VisionTransformer(config).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


def under(prefix, weights):
    return {prefix + key: value for key, value in weights.items()}


def other_network(prefix, seed=7):
    return under(prefix, drawn(seed=seed).state_dict())


WRAPPED = {
    "plain": ("", {}),
    "distributed": ("module.", {}),
    "compiled": ("_orig_mod.", {}),
    "both": ("module._orig_mod.", {}),
    "model": ("model.", {"optimizer.state.0.exp_avg": torch.zeros(3)}),
    "state_dict": ("state_dict.", {}),
    "ema": ("ema.", other_network("model.")),
    "model_ema": ("model_ema.module.", other_network("model.")),
    # lightly-train: a Lightning checkpoint with the teacher's wrapper in it
    "lightly-train": (
        "state_dict.teacher_embedding_model.wrapped_model._model.",
        {**other_network("state_dict.student_embedding_model.wrapped_model._model."), "state_dict.head.w": PIXELS},
    ),
    # stable-pretraining: Lightning, the backbone under its name, projector and queue beside it
    "stable-pretraining": (
        "state_dict.backbone.",
        {"state_dict.projector.0.weight": torch.ones(4, 16), "state_dict.callbacks_queue.size": torch.tensor([3])},
    ),
    "stable-pretraining, teacher": ("state_dict.backbone.teacher.", other_network("state_dict.backbone.student.")),
    "lightly": ("state_dict.teacher_backbone.vit.", other_network("state_dict.student_backbone.vit.")),
    "vissl": ("classy_state_dict.base_model.model.trunk.", {"classy_state_dict.loss": torch.ones(1)}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRAPPED)
def test_the_encoder_is_found_behind_any_prefix(case, tmp_path):
    vit, (prefix, beside) = drawn(), WRAPPED[case]
    torch.save({**under(prefix, vit.state_dict()), **beside, "epoch": 3, "note": "text"}, tmp_path / "w.ckpt")
    result = convert(read_weights(tmp_path / "w.ckpt"), HEADS, where="w.ckpt")
    assert result.family == "timm-vit"
    for name, value in vit.state_dict().items():
        assert torch.equal(result.vit.state_dict()[name], value)
    assert bool(beside) is any(note.startswith("left out beside the encoder") for note in result.notes)
    assert not result.vit.training


def test_nested_dictionaries_are_as_good_as_prefixes(tmp_path):
    vit = drawn()
    torch.save(
        {"student": {"vit": drawn(seed=5).state_dict()}, "teacher": {"vit": vit.state_dict()}}, tmp_path / "w.pt"
    )
    result = convert(read_weights(tmp_path / "w.pt"), HEADS, where="w.pt")
    assert torch.equal(result.vit.cls_token, vit.cls_token)


def test_what_comes_out_is_a_copy(tmp_path):
    vit = drawn()
    torch.save(vit.state_dict(), tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    result = convert(weights, HEADS, where="w.pt")
    (tmp_path / "w.pt").write_bytes(b"")  # the file was mapped
    with torch.no_grad():
        torch.testing.assert_close(result.vit(PIXELS).cls, vit(PIXELS).cls)
    own = dict(vit.state_dict())
    convert(own, HEADS, where="w").vit.cls_token.data.zero_()
    assert own["cls_token"].abs().max() > 0


def changed(**changes):
    weights = dict(drawn().state_dict())
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del weights[key]
        else:
            weights[key] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ({}, "is no vision transformer known here"),
        ({"conv1.weight": torch.ones(3), "fc.weight": torch.ones(2)}, "holds conv1.weight, fc.weight.*expected pat"),
        (changed(blocks__0__attn__q_norm__weight=torch.ones(8)), "1 unknown keys: blocks.0.attn.q_norm.weight"),
        (changed(blocks__1__norm2__bias=None), "missing: blocks.1.norm2.bias"),
        (changed(norm__weight=torch.ones(8)), r"of another shape: norm.weight \(8,\), expected \(16,\)"),
        (changed(blocks__1__mlp__fc1__weight=torch.ones(4, 16)), "of another shape: blocks.1.mlp.fc1.weight"),
        (changed(blocks__999999__norm1__weight=torch.ones(16)), "blocks are not numbered from 0 on"),
        (changed(blocks__0__mlp__fc1__weight=None), "blocks.0.mlp.fc1.weight is missing or no matrix"),
        (changed(pos_embed=torch.ones(1, 7, 16)), "7 positions are no square of patches, with 1 cls token"),
        (changed(patch_embed__proj__weight=torch.ones(16, 3, 8, 4)), "is .16, 3, 8, 4.: expected square patches"),
        (changed(patch_embed__proj__weight=torch.ones(16, 192)), "patch embedding is .16, 192.: expected square"),
        (changed(norm__bias=torch.ones(16, dtype=torch.int8)), "norm.bias is torch.int8: expected floating-point"),
        (changed(norm__bias=torch.full((16,), torch.nan)), "norm.bias holds values that are no numbers"),
        ({**other_network("enc_q."), **other_network("enc_k.")}, "holds 2 vision transformers .'enc_q.', 'enc_k.'"),
        (changed(blocks__0__1__norm1__bias=torch.ones(16)), "and blocks.1.norm1.bias are the same weight"),
        (changed(pos_embed=None), "nothing says which rotary ones belong to it"),
        (changed(blocks__0__mlp__w1__bias=torch.ones(4)), "blocks.0.mlp has a gate and nothing for it to gate"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(weights, match):
    with pytest.raises(ModelError, match=match) as caught:
        convert(weights, HEADS, where="model.pth")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.pth")


def test_the_first_unknown_keys_are_named_and_the_others_counted():
    weights = {**drawn().state_dict(), **{f"adapter.{i}": torch.ones(1) for i in range(9)}}
    with pytest.raises(ModelError, match=r"9 unknown keys: adapter.0, adapter.1, adapter.2 and 6 more"):
        convert(weights, HEADS, where="model.pth")


def test_heads_come_from_a_config_or_a_published_width_and_are_never_guessed():
    weights = drawn().state_dict()
    with pytest.raises(ModelError, match='width 16 is of no published model.*{"num_attention_heads": N}'):
        convert(weights, where="model.pth")
    vit = drawn(dataclasses.replace(CONFIG, embed_dim=384, num_heads=6, depth=1))
    assert convert(vit.state_dict(), where="model.pth").vit.config.num_heads == 6
    assert convert(vit.state_dict(), {"num_attention_heads": 12}, where="model.pth").vit.config.num_heads == 12


def test_every_published_size_has_its_heads():
    # ViT table 1, DeiT table 1, DINOv2 table 17, OpenCLIP's and I-JEPA's configurations
    published = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
    for width, heads in published.items():
        with torch.device("meta"):
            config = ViTConfig(img_size=2, patch_size=1, embed_dim=width, depth=1, num_heads=1, mlp_ratio=0.1)
            names = VisionTransformer(config)
        weights = {key: torch.zeros(value.shape) for key, value in names.state_dict().items()}
        assert convert(weights, where="w").vit.config.num_heads == heads


def test_our_own_weights_come_back_with_and_without_their_config(tmp_path):
    config = dataclasses.replace(preset("nano", img_size=32, patch_size=8), stem="conv", num_registers=2, depth=1)
    vit = drawn(config)
    stored = {"format": "vitembed-encoder", "architecture": to_dict(config), "pool": "cls+mean"}
    named = convert(vit.state_dict(), stored, where="w")
    assert (named.family, named.pool, named.vit.config) == ("vitembed", "cls+mean", config)
    bare = convert(vit.state_dict(), where="w")
    assert bare.family == "vitembed"
    pixels = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        for result in (named, bare):
            torch.testing.assert_close(result.vit(pixels).cls, vit(pixels).cls)
    with pytest.raises(ModelError, match="its config.json is damaged"):
        convert(vit.state_dict(), {"format": "vitembed-encoder"}, where="w")
    with pytest.raises(ModelError, match="missing: reg_token"):
        convert({k: v for k, v in vit.state_dict().items() if k != "reg_token"}, stored, where="w")


def test_a_family_that_is_none_is_refused():
    with pytest.raises(ModelError, match="unknown family 'resnet': expected one of timm-vit"):
        convert(drawn().state_dict(), HEADS, where="w", family="resnet")


NEW_KINDS = {
    "rotary": {"pos_embed": "rope", "no_embed_class": True, "num_registers": 2, "norm_eps": 1e-5},
    "rounded periods": {"pos_embed": "rope", "rope_periods": "bfloat16", "num_heads": 1},
    "no cls": {"class_token": False, "pos_interpolation": "bicubic"},
    "no cls, registers": {"class_token": False, "num_registers": 3},
    "clip": {"pre_norm": True, "act": "quick_gelu"},
    "swiglu": {"mlp": "swiglu", "init_values": 0.1, "pos_interpolation": "bicubic_offset"},
    "siglip": {"class_token": False, "attn_pool": True, "act": "gelu_tanh"},
    "norm behind the mean": {"final_norm": "pooled"},
    "no final norm": {"final_norm": "none"},
}


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_every_kind_of_vit_is_saved_and_read_and_told_apart(kind, tmp_path):
    config = dataclasses.replace(CONFIG, **NEW_KINDS[kind])
    vit = drawn(config)
    pool = "cls" if config.has_cls else "mean"
    saved = read_model(save_model(tmp_path / "m", vit, Preprocess(img_size=16), pool=pool))
    assert saved.vit.config == config
    pixels = torch.randn(2, 3, 24, 32)
    with torch.no_grad():
        for one, other in zip(saved.vit(pixels), vit(pixels), strict=True):
            assert torch.equal(one, other)
        last = vit.intermediate(pixels, 2)[-1]
        assert torch.equal(last.patches, vit(pixels).patches)
    prints = set()
    for changes in ({}, NEW_KINDS[kind]):
        twin = VisionTransformer(dataclasses.replace(CONFIG, **changes))
        prints.add(Encoder(twin, Preprocess(img_size=16), pool="mean").fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_hidden_patches_work_for_every_kind(kind):
    vit = drawn(dataclasses.replace(CONFIG, **NEW_KINDS[kind]))
    order = torch.stack([torch.randperm(4), torch.randperm(4)])
    with torch.no_grad():
        whole, shuffled = vit(PIXELS), vit(PIXELS, order)
    expected = whole.patches.gather(1, order.unsqueeze(-1).expand(-1, -1, 16))
    torch.testing.assert_close(shuffled.patches, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shuffled.cls, whole.cls, atol=1e-5, rtol=1e-4)


def test_a_cls_vector_is_not_made_up_where_there_is_none():
    vit = drawn(dataclasses.replace(CONFIG, class_token=False))
    for pool in ("cls", "cls+mean"):
        with pytest.raises(ConfigError, match="needs a cls token, which this architecture does not have: use mean"):
            Encoder(vit, Preprocess(img_size=16), pool=pool)
    assert Encoder(vit, Preprocess(img_size=16), pool="mean").embed_dim == 16


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("act", "relu", "act must be one of gelu, quick_gelu, gelu_tanh, got 'relu'"),
        ("pos_interpolation", "nearest", "pos_interpolation must be one of antialias, bicubic, bicubic_offset"),
        ("final_norm", "twice", "final_norm must be one of tokens, pooled, none, got 'twice'"),
    ],
)
def test_kinds_that_there_are_not_are_refused(name, value, message):
    config = dataclasses.replace(CONFIG)
    object.__setattr__(config, name, value)  # the types are checked in tests alone, a config.json at any time
    with pytest.raises(ConfigError, match=message):
        config.__post_init__()


def test_rotary_positions_need_heads_of_a_width_that_four_divides():
    with pytest.raises(ConfigError, match="heads whose width is a multiple of 4, got 6"):
        dataclasses.replace(CONFIG, pos_embed="rope", embed_dim=12)


def test_rotary_positions_turn_by_place_and_leave_the_prefix_alone():
    from vitembed.model.rope import axial_rope, turn

    rope = axial_rope((2, 3), 8, theta=100.0)
    x = torch.randn(1, 1, 8, 8)
    turned = turn(x, rope)
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    # patch (row 1, column 0): centres of patches at 0.5 down and -2/3 across; periods 1 and 10
    for i, (place, period) in enumerate([(0.5, 1.0), (0.5, 10.0), (-2 / 3, 1.0), (-2 / 3, 10.0)]):
        angle = torch.tensor(2 * torch.pi * place / period)
        first, second = x[0, 0, 5, i], x[0, 0, 5, i + 4]
        torch.testing.assert_close(turned[0, 0, 5, i], first * angle.cos() - second * angle.sin())
        torch.testing.assert_close(turned[0, 0, 5, i + 4], second * angle.cos() + first * angle.sin())
    # the score of two patches depends on how far apart they lie only
    q, k = torch.randn(8), torch.randn(8)
    wide = axial_rope((4, 4), 8, theta=100.0)
    scores = turn(q.expand(1, 1, 16, 8), wide)[0, 0] @ turn(k.expand(1, 1, 16, 8), wide)[0, 0].T
    torch.testing.assert_close(scores[0, 5], scores[5, 10], atol=1e-5, rtol=1e-4)
