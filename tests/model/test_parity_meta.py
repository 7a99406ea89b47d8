"""The authors' own files (Meta's DINO family, MAE, I-JEPA, open_clip): written here in their layout.

That the layout is theirs, timm's own ``checkpoint_filter_fn`` says, which turns it into weights for timm's model.
"""

from __future__ import annotations

import copy
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import vitembed
from vitembed._torchvision import import_torchvision
from vitembed.errors import ModelError
from vitembed.model.convert import convert
from vitembed.model.patches import sincos_pos_embed
from vitembed.model.weights_file import read_weights

import_torchvision()
timm = pytest.importorskip("timm")
vit_file = pytest.importorskip("timm.models.vision_transformer")
eva_file = pytest.importorskip("timm.models.eva")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4}
HEADS = {"num_attention_heads": 4}


def twin_of(name, **changes):
    twin = timm.create_model(name, num_classes=0, dynamic_img_size=True, **{**SMALL, **changes}).eval()
    torch.manual_seed(0)
    for key, value in twin.named_parameters():
        if key.endswith(("norm1.weight", "norm2.weight", "gamma", "gamma_1", "gamma_2")):
            nn.init.uniform_(value, 0.5, 1.5)
        else:
            nn.init.normal_(value, std=0.2)
    return twin


def loaded(weights, tmp_path, config=HEADS, **settings):
    torch.save(weights, tmp_path / "weights.pth")
    return convert(read_weights(tmp_path / "weights.pth"), config, where="weights.pth", **settings)


def assert_same(vit, twin, sizes=((32, 32),), atol=1e-4):
    first = vit.num_prefix
    for height, width in sizes:
        pixels = torch.randn(2, 3, height, width)
        with torch.no_grad():
            tokens, expected = vit(pixels), twin.forward_features(pixels)
        if vit.config.class_token:
            torch.testing.assert_close(tokens.cls, expected[:, 0], atol=atol, rtol=0)
        torch.testing.assert_close(
            tokens.registers, expected[:, first - vit.config.num_registers : first], atol=atol, rtol=0
        )
        torch.testing.assert_close(tokens.patches, expected[:, first:], atol=atol, rtol=0)


def with_positions_of_meta(twin, grid):
    """The twin for another grid, its positions resized as Meta's DINO writes it (scale with 0.1 patches more)."""
    pos = twin.pos_embed[:, 1:]
    side = math.sqrt(pos.shape[1])
    image = F.interpolate(
        pos.reshape(1, int(side), int(side), -1).permute(0, 3, 1, 2),
        scale_factor=((grid[0] + 0.1) / side, (grid[1] + 0.1) / side),
        mode="bicubic",
    )
    assert image.shape[-2:] == grid
    other = copy.deepcopy(twin)
    other.patch_embed.grid_size = grid
    other.pos_embed = nn.Parameter(torch.cat([twin.pos_embed[:, :1], image.flatten(2).transpose(1, 2)], dim=1))
    return other


def dinov2_weights(twin):
    """Names of a file from the authors' hub."""
    weights = {"mask_token": torch.zeros(1, 32)}
    for key, value in twin.state_dict().items():
        if key == "reg_token":
            weights["register_tokens"] = value
        elif twin.blocks[0].mlp.fc1.out_features == 2 * twin.blocks[0].mlp.fc2.in_features:
            weights[key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3")] = value
        else:
            weights[key] = value
    if "register_tokens" in weights:  # cls has a position there, registers have none
        place = torch.randn(1, 1, 32)
        weights["pos_embed"] = torch.cat([place, weights["pos_embed"]], dim=1)
        weights["cls_token"] = weights["cls_token"] - place
    return weights


def chunked(weights, size=2):
    """Blocks in chunks, as in training checkpoints: the number counts on through the chunks."""
    return {
        re.sub(r"blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // size}.{m[1]}.", k): v for k, v in weights.items()
    }


DINOV2 = {
    "dinov2": "vit_base_patch14_dinov2",
    "dinov2-reg": "vit_base_patch14_reg4_dinov2",
    "dinov2 giant": "vit_giant_patch14_dinov2",
    "dinov2-reg giant": "vit_giant_patch14_reg4_dinov2",
}


@pytest.mark.parametrize("case", DINOV2)
def test_dinov2_of_the_authors_hub(case, tmp_path):
    twin = twin_of(DINOV2[case])
    weights = dinov2_weights(twin)
    theirs = vit_file.checkpoint_filter_fn(dict(weights), twin)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(theirs[key], value, atol=1e-6, rtol=0)
    result = loaded(weights, tmp_path)
    assert result.family == case.split()[0]
    assert any("mask token" in note for note in result.notes)
    assert_same(result.vit, twin)
    if "reg" in case:  # these resize as timm does
        assert_same(result.vit, twin, [(48, 48), (24, 56)])
    else:
        for grid in ((6, 6), (3, 7)):
            assert_same(result.vit, with_positions_of_meta(twin, grid), [(grid[0] * 8, grid[1] * 8)])


def test_the_teacher_of_a_dinov2_training_checkpoint(tmp_path):
    twin, student = twin_of("vit_base_patch14_dinov2"), twin_of("vit_base_patch14_dinov2")
    for value in student.parameters():
        nn.init.normal_(value, std=0.2)
    head = {"mlp.0.weight": torch.randn(8, 32), "last_layer.weight_g": torch.randn(8, 1)}
    content = {
        name: {
            **{f"backbone.{k}": v for k, v in chunked(dinov2_weights(model)).items()},
            **{f"dino_head.{k}": v for k, v in head.items()},
            **{f"ibot_head.{k}": v for k, v in head.items()},
        }
        for name, model in (("student", student), ("teacher", twin))
    }
    result = loaded({**content, "iteration": 1249, "optimizer": {"state": {0: torch.zeros(3)}}}, tmp_path)
    assert result.family == "dinov2"
    left = next(note for note in result.notes if note.startswith("left out beside"))
    assert "student (" in left.replace("student.backbone", "student")
    assert "teacher.dino_head (2 tensors)" in left
    assert_same(result.vit, twin)


@pytest.mark.parametrize("wrapper", ["plain", "training", "ddp"])
def test_dino(wrapper, tmp_path):
    twin = twin_of("vit_base_patch16_224")
    weights = twin.state_dict()
    if wrapper == "plain":  # only its name tells this file from timm's
        result = loaded(weights, tmp_path, family="dino")
    else:
        body = {f"backbone.{k}": v for k, v in weights.items()}
        body["head.last_layer.weight_v"] = torch.randn(4, 4)
        before = "module." if wrapper == "ddp" else ""
        student = {f"module.{k}": torch.randn_like(v) for k, v in body.items()}
        content = {"student": student, "teacher": {before + k: v for k, v in body.items()}, "epoch": 3}
        result = loaded(content, tmp_path)
    assert result.family == "dino"
    assert_same(result.vit, twin)
    for grid in ((6, 6), (3, 7)):
        assert_same(result.vit, with_positions_of_meta(twin, grid), [(grid[0] * 8, grid[1] * 8)])


def mae_weights(twin):
    twin.pos_embed.data[0, 0] = 0
    twin.pos_embed.data[0, 1:] = sincos_pos_embed(32, (4, 4))
    return twin.state_dict()


@pytest.mark.parametrize("decoder", [False, True])
def test_mae(decoder, tmp_path):
    twin = twin_of("vit_base_patch16_224")
    weights = dict(mae_weights(twin))
    if decoder:
        weights |= {"mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.randn(16, 32)}
        weights |= {
            "decoder_blocks.0.attn.qkv.weight": torch.randn(48, 16),
            "decoder_pos_embed": torch.randn(1, 17, 16),
        }
    result = loaded({"model": weights}, tmp_path)
    assert result.family == "mae"
    assert any("a decoder" in note and "(3 tensors)" in note for note in result.notes) is decoder
    assert_same(result.vit, twin)
    pos = F.interpolate(twin.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2), size=(3, 7), mode="bicubic")
    twin.patch_embed.grid_size = (3, 7)
    twin.pos_embed = nn.Parameter(torch.cat([twin.pos_embed[:, :1], pos.flatten(2).transpose(1, 2)], dim=1))
    assert_same(result.vit, twin, [(24, 56)])


def test_ijepa_takes_the_target_encoder(tmp_path):
    twin = twin_of("vit_base_patch16_224", class_token=False, global_pool="avg", fc_norm=False)
    target = {f"module.{k}": v for k, v in twin.state_dict().items()}
    content = {
        "encoder": {k: torch.randn_like(v) for k, v in target.items()},
        "predictor": {"module.predictor_embed.weight": torch.randn(4, 32)},
        "target_encoder": target,
        "opt": {"state": {}},
    }
    theirs = vit_file.checkpoint_filter_fn({"encoder": target}, twin)
    assert set(theirs) == set(twin.state_dict())
    result = loaded(content, tmp_path)
    assert (result.family, result.pool) == ("ijepa", "mean")
    assert_same(result.vit, twin)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = result.vit(pixels)
        assert tokens.cls.shape == (2, 0)
        torch.testing.assert_close(result.vit.mean_pool(tokens), twin(pixels), atol=1e-4, rtol=0)


def dinov3_weights(twin, periods):
    """Names of a file from the authors' hub; the key part of the bias holds what its mask takes away."""
    own, d = twin.state_dict(), twin.embed_dim
    weights = {"mask_token": torch.zeros(1, d), "rope_embed.periods": periods}
    names = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma", "reg_token": "storage_tokens"}
    if "blocks.0.mlp.fc1_g.weight" in own:
        names |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}
    for key, value in own.items():
        if key.endswith("q_bias"):
            attn = key.removesuffix("q_bias")
            weights[f"{attn}qkv.bias"] = torch.cat([value, torch.randn(d), own[f"{attn}v_bias"]])
            weights[f"{attn}qkv.bias_mask"] = torch.cat([torch.ones(d), torch.zeros(d), torch.ones(d)])
        elif not key.endswith("v_bias"):
            for theirs, metas in names.items():
                key = key.replace(theirs, metas)
            weights[key] = value
    return weights


PERIODS = 100.0 ** (torch.arange(2) * 4 / 8)


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"])
def test_dinov3_of_the_authors_hub(name, tmp_path):
    twin = twin_of(name)
    weights = dinov3_weights(twin, PERIODS)
    theirs = eva_file.checkpoint_filter_fn(dict(weights), twin)
    if "plus" not in name:
        for key, value in twin.state_dict().items():
            assert torch.equal(theirs[key], value)
    result = loaded(weights, tmp_path, config=None)  # the periods say how wide a head is
    assert result.family == "dinov3"
    assert result.vit.config.num_heads == 4
    assert_same(result.vit, twin, [(32, 32), (48, 48), (24, 56)])


def test_dinov3_keeps_periods_that_the_file_has_rounded(tmp_path):
    twin = twin_of("vit_small_patch16_dinov3_qkvb", embed_dim=64)
    exact = 100.0 ** (torch.arange(4) * 4 / 16)
    rounded = exact.bfloat16().float()
    assert not torch.equal(exact, rounded)
    weights = dinov3_weights(twin, rounded)
    result = loaded(weights, tmp_path, config=None)
    assert result.vit.config.rope_periods == "bfloat16"
    twin.rope.periods.copy_(rounded)
    if twin.rope.pos_embed_cached is not None:
        twin.rope.pos_embed_cached.copy_(twin.rope._create_embed(twin.rope.feat_shape, no_aug=True))
    assert_same(result.vit, twin, [(32, 32), (24, 56)])
    with pytest.raises(ModelError, match="rotary periods are not those of theta 100"):
        loaded({**weights, "rope_embed.periods": exact * 1.1}, tmp_path)


def open_clip_weights(twin):
    swaps = [
        ("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("blocks.", "transformer.resblocks."),
        ("norm_pre", "ln_pre"), ("norm1", "ln_1"), ("norm2", "ln_2"), ("norm", "ln_post"), ("qkv.", "in_proj_"),
        ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
    ]  # fmt: skip
    weights = {"visual.proj": torch.randn(32, 8), "token_embedding.weight": torch.randn(9, 4)}
    weights |= {"positional_embedding": torch.randn(7, 4), "transformer.resblocks.0.ln_1.weight": torch.randn(4)}
    for key, value in twin.state_dict().items():
        if key == "cls_token":
            key, value = "class_embedding", value[0, 0]
        elif key == "pos_embed":
            value = value[0]
        for ours, theirs in swaps:
            key = key.replace(ours, theirs)
        weights[f"visual.{key}"] = value
    return weights


def test_open_clip(tmp_path):
    twin = twin_of("vit_base_patch16_clip_quickgelu_224")
    weights = open_clip_weights(twin)
    theirs = vit_file.checkpoint_filter_fn(dict(weights), twin)
    for key, value in twin.state_dict().items():
        assert torch.equal(theirs[key], value)
    with pytest.raises(ModelError, match="which keys cannot tell: put its open_clip_config.json"):
        loaded(weights, tmp_path)
    config = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 32, "head_width": 8}}}
    result = loaded(weights, tmp_path, config)
    assert result.family == "open-clip"
    assert_same(result.vit, twin, [(32, 32), (48, 48), (24, 56)])


def test_a_folder_of_open_clip_says_its_activation_and_pixels(tmp_path):
    twin = twin_of("vit_base_patch16_clip_quickgelu_224")
    weights = {name: value.contiguous() for name, value in open_clip_weights(twin).items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    pixels = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "interpolation": "bicubic", "resize_mode": "squash"}
    described = {
        "model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 32, "head_width": 8}},
        "preprocess_cfg": pixels,
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    encoder = vitembed.load(tmp_path, device="cpu")
    assert encoder.provenance["preprocess_from"] == "open_clip_config.json"
    how = encoder.preprocess
    assert (how.resize, how.interpolation, how.img_size) == ("squash", "bicubic", 32)
    assert (how.mean, how.std) == ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    standardised = (images / 255 - torch.tensor(pixels["mean"])) / torch.tensor(pixels["std"])
    with torch.inference_mode():
        expected = twin.forward_features(standardised.permute(0, 3, 1, 2))[:, 0]
    torch.testing.assert_close(torch.from_numpy(encoder.embed_arrays(images.numpy())), expected, atol=1e-4, rtol=1e-4)
    described["preprocess_cfg"] = {**pixels, "resize_mode": "longest"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="resize_mode 'longest' of preprocess_cfg is not done here"):
        vitembed.load(tmp_path, device="cpu")
