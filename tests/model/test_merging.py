"""Token merging against the paper's algorithm written as loops, and what the choice of speed does to vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import vitembed
from vitembed.config import ViTConfig
from vitembed.errors import ConfigError, ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import save_model
from vitembed.model.encoder import Encoder
from vitembed.model.merging import MergingViT, match_tokens, merge_tokens, new_places
from vitembed.model.speed import Speed, half_dtype
from vitembed.model.vit import VisionTransformer

CONFIGS = [
    {},
    {"num_registers": 3, "init_values": 0.5},
    {"no_embed_class": True, "qkv_bias": False},
    {"stem": "conv", "pos_embed": "sincos2d"},
    {"class_token": False, "norm_eps": 1e-3},
]


def make_vit(depth=3, **extra) -> VisionTransformer:
    torch.manual_seed(0)
    vit = VisionTransformer(
        ViTConfig(img_size=32, patch_size=8, embed_dim=32, depth=depth, num_heads=2, **extra)
    ).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.2)
    return vit


def pixels(num=3, size=32):
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(1))


def merged_by_hand(keys, r):
    """Steps 1 to 5 of section 3 for one image: lists of the old places that each new token stands for, in any order."""
    n = len(keys)
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    best = {}
    for a in range(0, n, 2):
        likeness = [(unit[a] @ unit[b], b) for b in range(1, n, 2)]
        best[a] = max(likeness)
    chosen = sorted(best, key=lambda a: -best[a][0])[:r]
    groups = {place: [place] for place in range(n) if place not in chosen}
    for a in chosen:
        groups[best[a][1]].append(a)
    return list(groups.values())


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def encode_by_hand(vit, image, r):
    """One image through ToMe in float64 NumPy: cls, patches (each with the vector of its token), sizes."""

    def linear(layer, x):
        y = x @ layer.weight.double().numpy().T
        return y if layer.bias is None else y + layer.bias.double().numpy()

    def norm(layer, x):
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
        return y * layer.weight.double().numpy() + layer.bias.double().numpy()

    def scaled(layer, x):
        return x * layer.gamma.double().numpy() if hasattr(layer, "gamma") else x

    x = vit.embed_tokens(image.unsqueeze(0), None)[0].double().numpy()
    prefix, heads, dim = vit.num_prefix, vit.config.num_heads, x.shape[1]
    stands_for = [[i] for i in range(len(x) - prefix)]
    for block in vit.blocks:
        sizes = np.array([1] * prefix + [len(group) for group in stands_for], float)
        y = linear(block.attn.qkv, norm(block.norm1, x)).reshape(len(x), 3, heads, dim // heads)
        mixed = np.zeros((len(x), heads, dim // heads))
        for h in range(heads):
            q, k, v = y[:, 0, h], y[:, 1, h], y[:, 2, h]
            mixed[:, h] = softmax(q @ k.T / math.sqrt(dim // heads) + np.log(sizes)) @ v
        x = x + scaled(block.ls1, linear(block.attn.proj, mixed.reshape(len(x), dim)))
        groups = merged_by_hand(y[prefix:, 1].mean(axis=1), min(r, (len(x) - prefix) // 2))
        tokens = [
            np.average([x[prefix + old] for old in group], axis=0, weights=[len(stands_for[old]) for old in group])
            for group in groups
        ]
        # In the order in which the next block splits them: A tokens that stayed, then the B tokens.
        order = sorted(range(len(groups)), key=lambda i: (groups[i][0] % 2, groups[i][0]))
        stands_for = [[p for old in groups[i] for p in stands_for[old]] for i in order]
        x = np.concatenate([x[:prefix], [tokens[i] for i in order]])
        hidden = linear(block.mlp.fc1, norm(block.norm2, x))
        hidden = hidden * 0.5 * (1 + torch.erf(torch.from_numpy(hidden) / math.sqrt(2)).numpy())
        x = x + scaled(block.ls2, linear(block.mlp.fc2, hidden))
    x = norm(vit.norm, x)
    patches = np.zeros((sum(map(len, stands_for)), dim))
    for token, group in zip(x[prefix:], stands_for, strict=True):
        patches[group] = token
    return x[0], x[int(vit.config.class_token) : prefix], patches


@pytest.mark.parametrize("n", [2, 7, 16])
def test_pairs_are_those_of_the_paper(n):
    keys, x = torch.randn(4, n, 6), torch.randn(4, n, 5)
    size = torch.randint(1, 5, (4, n)).float()
    for r in range(n // 2 + 1):
        match = match_tokens(keys, r)
        merged, sizes = merge_tokens(x, size, match)
        places = new_places(match, n)
        assert merged.shape == (4, n - r, 5)
        torch.testing.assert_close(sizes.sum(1), size.sum(1))
        for i in range(4):
            groups = merged_by_hand(keys[i].numpy(), r)
            found = [np.flatnonzero(places[i].numpy() == new).tolist() for new in range(n - r)]
            assert sorted(map(sorted, groups)) == sorted(found)
            for new, group in enumerate(found):
                expected = np.average(x[i, group].numpy(), axis=0, weights=size[i, group].numpy())
                np.testing.assert_allclose(merged[i, new].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("extra", CONFIGS)
@pytest.mark.parametrize("r", [1, 4, 20])
def test_encoding_equals_the_paper_in_loops(extra, r):
    vit = make_vit(**extra)
    images = pixels()
    with torch.no_grad():
        tokens = MergingViT(vit, r)(images)
        for i, image in enumerate(images):
            cls, registers, patches = encode_by_hand(vit, image, r)
            if vit.config.class_token:
                np.testing.assert_allclose(tokens.cls[i].numpy(), cls, atol=1e-4)
            np.testing.assert_allclose(tokens.registers[i].numpy(), registers, atol=1e-4)
            np.testing.assert_allclose(tokens.patches[i].numpy(), patches, atol=1e-4)


@pytest.mark.parametrize("extra", [*CONFIGS, {"pos_embed": "rope"}, {"class_token": False, "attn_pool": True}])
def test_no_merging_is_exact_bit_for_bit(extra):
    vit, images = make_vit(**extra), pixels(size=48)
    with torch.inference_mode():
        for merged, exact in zip(MergingViT(vit, 0)(images), vit(images), strict=True):
            assert torch.equal(merged, exact)


def test_like_patches_merge_without_loss():
    """An image of one colour has one kind of patch (positions aside): merging them all changes nothing."""
    vit = make_vit()
    vit.pos_embed.data.zero_()
    flat = torch.full((2, 3, 32, 32), 0.3)
    with torch.no_grad():
        torch.testing.assert_close(MergingViT(vit, 8)(flat).cls, vit(flat).cls, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "speed"),
    [
        ("exact", Speed()),
        ("tome:0", Speed()),
        ("half", Speed(half=True)),
        ("tome:8", Speed(merged=8)),
        ("half+tome:8", Speed(half=True, merged=8)),
        ("tome:8+half", Speed(half=True, merged=8)),
    ],
)
def test_speeds_are_read_and_written(text, speed):
    assert Speed.parse(text) == speed
    assert Speed.parse(str(speed)) == speed


@pytest.mark.parametrize("text", ["", "fast", "tome", "tome:", "tome:-1", "half+half", "tome:1+tome:2", "half,tome:2"])
def test_unknown_speeds_are_refused(text):
    with pytest.raises(ConfigError, match="expected exact, half, tome:R or half\\+tome:R"):
        Speed.parse(text)
    with pytest.raises(ConfigError, match="leave one out"):
        Speed.parse("exact+tome:2")


def test_each_speed_has_a_fingerprint_of_its_own(tmp_path):
    folder = save_model(tmp_path / "m", make_vit(), Preprocess(img_size=32))
    plain = vitembed.load(folder, device="cpu").fingerprint
    prints = [
        vitembed.load(folder, device="cpu", speed=s).fingerprint for s in ("half", "tome:2", "tome:3", "half+tome:2")
    ]
    assert len({plain, *prints}) == 5
    assert vitembed.load(folder, device="cpu", speed="tome:0").fingerprint == plain


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_the_encoder_pools_merged_tokens_by_their_size(pool):
    vit = make_vit()
    arrays = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    preprocess = Preprocess(img_size=32)
    vectors = Encoder(vit, preprocess, pool=pool, speed="tome:4").embed_arrays(arrays)
    for array, vector in zip(arrays, vectors, strict=True):
        image = (array.astype(np.float32) / 255 - np.float32(preprocess.mean)) / np.float32(preprocess.std)
        with torch.no_grad():
            cls, _, patches = encode_by_hand(vit, torch.from_numpy(image).permute(2, 0, 1), 4)
        mean = patches.mean(axis=0)
        expected = {"cls": cls, "mean": mean, "cls+mean": np.concatenate([cls, mean])}[pool]
        np.testing.assert_allclose(vector, expected, atol=1e-4)


@pytest.mark.parametrize("speed", ["half", "half+tome:4"])
def test_half_precision_stays_within_its_rounding(speed):
    vit = make_vit()
    arrays = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    full = speed.replace("half+", "").replace("half", "exact")
    exact = Encoder(vit, Preprocess(img_size=32), speed=full).embed_arrays(arrays)
    half = Encoder(vit, Preprocess(img_size=32), speed=speed).embed_arrays(arrays)
    assert half.dtype == np.float32
    assert not np.array_equal(exact, half)
    cosines = (exact * half).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(half, axis=1)
    assert cosines.min() > 0.999
    assert half_dtype(torch.device("cpu")) == torch.bfloat16


def test_what_has_no_tokens_or_rotary_positions_is_not_merged():
    with pytest.raises(ModelError, match=r"has no pos_embed='rope' \(.*\): use speed exact or half"):
        Encoder(make_vit(pos_embed="rope"), Preprocess(img_size=32), speed="tome:2")
    assert Encoder(make_vit(pos_embed="rope"), Preprocess(img_size=32), speed="half").embed_dim == 32
    with pytest.raises(ModelError, match="Conv2d has no tokens to merge; use exact or half"):
        Speed(merged=2).applied(nn.Conv2d(1, 1, 1), torch.device("cpu"))
