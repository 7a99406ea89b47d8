"""Models saved by timm with any pooling and head: our vectors are those of timm with ``num_classes=0``, or refused."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from vitembed._torchvision import import_torchvision
from vitembed.errors import ModelError
from vitembed.model.encoder import load
from vitembed.model.opening import open_model, open_trainable
from vitembed.model.vit import VisionTransformer

import_torchvision()
timm = pytest.importorskip("timm")
from timm.models import save_for_hf

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def saved(folder, name="vit_tiny_patch16_224", *, small=SMALL, num_classes=3, side=32, **settings):
    """A model of timm with random weights, saved as timm saves for the hub; the model without its classifier."""
    twin = timm.create_model(name, pretrained=False, num_classes=num_classes, **small, **settings)
    generator = torch.Generator().manual_seed(0)
    for key, value in twin.named_parameters():
        if key.endswith("gamma") or ("norm" in key and key.endswith("weight")):
            nn.init.uniform_(value, 0.5, 1.5, generator=generator)
        else:
            nn.init.normal_(value, std=0.2, generator=generator)
    data = {"input_size": (3, side, side), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    save_for_hf(twin.eval(), folder, model_config={"pretrained_cfg": data}, safe_serialization=True)
    twin.reset_classifier(0)
    return twin


def theirs(twin, images=IMAGES):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return twin(pixels).numpy()


def worst_cosine(ours, expected):
    assert ours.shape == expected.shape
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((ours * expected).sum(axis=1) / norms).min())


def assert_same_or_refused(folder, twin, images=IMAGES):
    """Compare, and say who ran it: ours, timm or nobody."""
    try:
        encoder = load(folder, device="cpu")
    except ModelError:
        return "refused"
    vectors = encoder.embed_arrays(images)
    assert worst_cosine(vectors, theirs(twin, images)) > 0.9999, (encoder.pool, encoder.vit.config)
    return "ours" if isinstance(encoder.vit, VisionTransformer) else "timm"


@pytest.mark.parametrize("pool", ["token", "avg", "max", "avgmax", "map", "prr", ""])
def test_every_pooling_and_head(pool, tmp_path):
    ran = []
    heads = itertools.product((None, True, False), (False, True), (True, False), (0, 2))
    for number, (fc_norm, prefix, class_token, reg_tokens) in enumerate(heads):
        settings = {"fc_norm": fc_norm, "pool_include_prefix": prefix, "reg_tokens": reg_tokens}
        if pool == "token" and not class_token:
            continue
        folder = tmp_path / str(number)
        settings |= {"class_token": class_token, "no_embed_class": bool(number % 2), "final_norm": number % 5 > 0}
        twin = saved(folder, global_pool=pool, num_classes=3 if number % 3 else 0, **settings)
        who = assert_same_or_refused(folder, twin)
        assert (who == "refused") == (pool == ""), settings
        if who == "timm":
            with pytest.raises(ModelError, match="trained"):
                open_trainable(folder)
        ran.append(who)
    assert ("ours" in ran) == (pool in ("token", "avg", "map"))


OPTIONS = {
    "pre_norm": {"pre_norm": True},
    "qk_norm": {"qk_norm": True},
    "scale_attn_norm": {"scale_attn_norm": True},
    "scale_mlp_norm": {"scale_mlp_norm": True},
    "proj_bias": {"proj_bias": False},
    "qkv_bias": {"qkv_bias": False},
    "dynamic_img_size": {"dynamic_img_size": True},
    "dynamic_img_pad": {"dynamic_img_size": True, "dynamic_img_pad": True},
    "init_values": {"init_values": 0.1},
    "no positions": {"pos_embed": "none"},
    "drop rates": {"drop_rate": 0.1, "patch_drop_rate": 0.5, "pos_drop_rate": 0.1, "drop_path_rate": 0.3},
    "mlp_ratio": {"mlp_ratio": 2.5},
    **{f"act {act}": {"act_layer": act} for act in ("gelu", "quick_gelu", "gelu_tanh", "silu", "relu")},
    **{f"norm {norm}": {"norm_layer": norm} for norm in ("layernorm", "rmsnorm", "simplenorm")},
    **{f"embed norm {norm}": {"embed_norm_layer": norm} for norm in ("layernorm",)},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_other_option(option, tmp_path):
    try:
        twin = saved(tmp_path, **OPTIONS[option])
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        pytest.skip(f"timm does not build it: {error}")
    assert_same_or_refused(tmp_path, twin)


@pytest.mark.parametrize(
    ("name", "side", "who"),
    [
        ("test_vit", 160, "ours"),
        ("test_vit2", 160, "ours"),
        ("test_vit3", 160, "timm"),
        ("test_vit4", 160, "timm"),
        ("deit_tiny_distilled_patch16_224", 224, "timm"),
        ("vit_tiny_patch16_224", 224, "ours"),
        ("eva02_tiny_patch14_224", 224, "timm"),
        ("vit_pwee_patch16_reg1_gap_256", 256, "timm"),
    ],
)
def test_small_models_of_the_registry(name, side, who, tmp_path):
    twin = saved(tmp_path, name, small={} if name.startswith("test") else {"depth": 2}, side=side)
    images = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    assert assert_same_or_refused(tmp_path, twin, images) == who


def test_dinov3_says_which_vector_it_gives(tmp_path):
    twin = saved(tmp_path, "vit_small_patch16_dinov3", small={"depth": 1}, side=32)
    assert assert_same_or_refused(tmp_path, twin) == "ours"
    config = json.loads((tmp_path / "config.json").read_text())  # as the hub has it: without arguments
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_args": {}}))
    opened = open_model(tmp_path)
    assert any("cls, as its authors use it" in note for note in opened.provenance["notes"])
    mean = load(tmp_path, device="cpu", pool="mean")
    assert worst_cosine(mean.embed_arrays(IMAGES), theirs(twin)) > 0.9999


@pytest.mark.parametrize("chans", [1, 4])
def test_other_channels_are_refused_when_opened(chans, tmp_path):
    twin = timm.create_model("vit_tiny_patch16_224", num_classes=0, in_chans=chans, **SMALL)
    save_for_hf(twin, tmp_path, safe_serialization=True)
    for opens in (open_model, open_trainable):
        with pytest.raises(ModelError, match=rf"takes images of {chans} channels?: images are RGB here"):
            opens(tmp_path)


def test_a_config_that_says_nothing_of_pooling_is_read_by_its_weights(tmp_path):
    twin = saved(tmp_path, global_pool="avg")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["global_pool"]
    config["model_args"].pop("global_pool", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert assert_same_or_refused(tmp_path, twin) == "ours"


def test_every_name_of_a_vit_in_timm_is_run_as_timm_does_or_refused():
    """Heads, activation, epsilon and pooling by the tables, for the names whose models are small enough to draw."""
    from vitembed.model.convert import convert

    names = timm.list_models(["vit_tiny*", "vit_small*", "vit_xsmall*", "vit_*pwee*", "deit*tiny*", "test_vit*"])
    assert len(names) > 20
    acts = {"GELU": "gelu", "QuickGELU": "quick_gelu", "GELUTanh": "gelu_tanh", "SiLU": "silu"}
    for name in names:
        if re.search("18x2|_r_|_r26_|resnet", name):
            continue  # not made of plain blocks; slow to draw
        twin = timm.create_model(name, pretrained=False, num_classes=0, depth=1)
        try:
            found = convert(twin.state_dict(), {"architecture": name, "global_pool": twin.global_pool}, where=name)
        except ModelError:
            continue
        config, block = found.vit.config, twin.blocks[0]
        assert type(twin).__name__ in ("VisionTransformer", "Eva"), name
        assert config.num_heads == block.attn.num_heads, name
        assert config.norm_eps == block.norm1.eps, name
        assert config.mlp == "swiglu" or acts[type(block.mlp.act).__name__] == config.act, name
        pooled = {"token": "cls", "map": "cls", "avg": "mean"}[twin.global_pool]
        assert found.pool == pooled or "dinov3" in name, name
        assert not getattr(twin, "pool_include_prefix", False), name
