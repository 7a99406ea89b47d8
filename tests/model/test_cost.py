"""Arithmetic against torch's own counter, memory against what a process really takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitembed.config import ViTConfig, preset
from vitembed.errors import ConfigError
from vitembed.model.cost import cost_of, cost_table, flops_of, num_tokens, raw_pixel_pairs
from vitembed.model.vit import VisionTransformer

SMALL = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
ARCHITECTURES = {
    "plain": ViTConfig(**SMALL),
    "vit-tiny": preset("tiny", img_size=96, patch_size=16),
    "conv stem": ViTConfig(**SMALL, stem="conv"),
    "registers": ViTConfig(**SMALL, num_registers=4, init_values=0.1),
    "swiglu with rotary positions": ViTConfig(**SMALL, mlp="swiglu", mlp_ratio=5.0, pos_embed="rope"),
    "no cls token": ViTConfig(**SMALL, class_token=False),
    "attention pool": ViTConfig(**SMALL, class_token=False, attn_pool=True),
    "CLIP": ViTConfig(**SMALL, pre_norm=True, act="quick_gelu"),
}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_flops_are_those_of_torchs_counter(name):
    config = ARCHITECTURES[name]
    # The counter knows no fused attention of CPUs, hence the plain one.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        tokens = VisionTransformer(config)(torch.zeros(1, 3, config.img_size, config.img_size))
    assert flops_of(config) == counter.get_total_flops()
    assert num_tokens(config) == tokens.patches.shape[1] + tokens.registers.shape[1] + config.class_token


def test_published_numbers():
    # DeiT-S and ViT-B/16: 4.6 and 17.6 billion multiply-adds at 224 px (Touvron et al. 2020, arXiv:2012.12877).
    assert flops_of(preset("small", img_size=224, patch_size=16)) / 2e9 == pytest.approx(4.6, abs=0.05)
    assert flops_of(preset("base", img_size=224, patch_size=16)) / 2e9 == pytest.approx(17.6, abs=0.1)
    assert raw_pixel_pairs(224) == (3 * 224 * 224) ** 2 == 22_658_678_784


def test_the_table_holds_what_fits():
    config = ViTConfig(**SMALL)
    table = cost_table(config, [64, 96], [8, 16, 24], batch_size=4)
    assert [(cost.img_size, cost.patch_size) for cost in table] == [(64, 8), (64, 16), (96, 8), (96, 16), (96, 24)]
    whole = cost_of(config, batch_size=4)
    assert table[0] == whole
    assert whole.num_params == sum(weight.numel() for weight in VisionTransformer(config).parameters())
    assert table[2].attention_pairs == (12 * 12 + 1) ** 2
    assert table[2].train_bytes > table[0].train_bytes > table[1].train_bytes
    with pytest.raises(ConfigError, match="no image size of 65 px is a multiple of a patch size of 8 px"):
        cost_table(config, [65], [8], batch_size=1)


MEASURE = """
import sys, torch
from vitembed.config import ViTConfig
from vitembed.model.vit import VisionTransformer

def peak():
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))

config = ViTConfig(img_size=64, patch_size=8, embed_dim=192, depth=3, num_heads=3)
warm = torch.nn.Linear(8, 8)
warm(torch.randn(8, 8)).sum().backward()
torch.optim.AdamW(warm.parameters(), fused=True).step()
before = peak()
if sys.argv[1] == "embed":
    vit = VisionTransformer(config).eval()
    images = torch.zeros(192, 64, 64, 3, dtype=torch.uint8)
    with torch.inference_mode():
        pixels = images.permute(0, 3, 1, 2).float().div(255.0)
        vit((pixels - 0.5) / 0.5)
else:
    vit = VisionTransformer(config).train()
    optimizer = torch.optim.AdamW(vit.parameters(), fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        vit(torch.zeros(96, 3, 64, 64)).cls.sum().backward()
        optimizer.step()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured the way of Linux")
@pytest.mark.parametrize(("what", "batch_size"), [("embed", 192), ("train", 96)])
def test_memory_is_near_what_a_process_takes(what, batch_size):
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what], capture_output=True, text=True, check=True, env=environment
    )
    config = ViTConfig(img_size=64, patch_size=8, embed_dim=192, depth=3, num_heads=3)
    cost = cost_of(config, batch_size=batch_size)
    estimate = cost.embed_bytes if what == "embed" else cost.train_bytes
    assert 0.7 < estimate / int(done.stdout) < 1.4
