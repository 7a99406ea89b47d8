"""The estimate of a step's memory against what a process really takes, and batches that fit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from vitembed.config import PretrainConfig
from vitembed.errors import TrainingError
from vitembed.pretrain import memory
from vitembed.pretrain.memory import StepMemory, fitting_batch_size, memory_explained, step_memory
from vitembed.recipes import load_config

MEASURE = """
import sys, torch
from vitembed.config import PretrainConfig
from vitembed.images.augment import random_views
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.objective import MaskedViews
from vitembed.recipes import load_config

def peak():  # not ru_maxrss, which begins at what the parent process had
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))

config = load_config(PretrainConfig, "nano", sys.argv[2:])
side, cache_side, b = config.model.img_size, config.cache_size, int(sys.argv[1])
warm = torch.nn.Linear(8, 8)
warm(torch.randn(8, 8)).sum().backward()
torch.optim.AdamW(warm.parameters(), fused=True).step()
before = peak()
objective = MaskedViews(VisionTransformer(config.model.vit()), config.objective)
optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], fused=True)
images, aspect = torch.zeros(b, cache_side, cache_side, 3, dtype=torch.uint8), torch.ones(b)
generator = torch.Generator().manual_seed(0)
for _ in range(2):
    views = torch.stack([random_views(images, aspect, config.augment, img_size=side, generator=generator)
                         for _ in range(config.objective.num_views)])
    optimizer.zero_grad()
    objective(views, generator).loss.backward()
    optimizer.step()
print(peak() - before)
"""
SMALL = ["model.img_size=32", "model.patch_size=8", "objective.head_hidden_dim=256"]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured the way of Linux")
@pytest.mark.parametrize(
    ("batch_size", "settings"),
    [
        (192, ["model.depth=2"]),
        (
            96,
            [
                "objective.teacher=true",
                "objective.spread=info_nce",
                "objective.contrast_weight=0",
                "objective.decoder_dim=128",
            ],
        ),
    ],
)
def test_the_estimate_is_what_a_process_takes(batch_size, settings):
    # Freed blocks are given back at once: the allocator's gaps are the machine's, not the step's.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, str(batch_size), *SMALL, *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    estimate = step_memory(load_config(PretrainConfig, "nano", [*SMALL, *settings]), batch_size, half=False).total
    assert 0.8 < estimate / int(done.stdout) < 1.25


def test_state_is_weights_gradients_two_moments_and_copies():
    config = load_config(PretrainConfig, "nano", [*SMALL, "optim.export_ema=0"])
    with_teacher = load_config(PretrainConfig, "nano", [*SMALL, "optim.export_ema=0", "objective.teacher=true"])
    with_average = load_config(PretrainConfig, "nano", [*SMALL, "optim.export_ema=0.99"])
    from vitembed.model.vit import VisionTransformer
    from vitembed.pretrain.objective import MaskedViews

    objective = MaskedViews(VisionTransformer(config.model.vit()), config.objective)
    vit = sum(p.numel() for p in objective.vit.parameters())
    head = sum(p.numel() for p in objective.head.parameters())
    total = sum(p.numel() for p in objective.parameters())
    buffers = 4096  # positions and batch-norm statistics

    def state(of):
        return step_memory(of, 8, half=False).state

    assert 16 * total <= state(config) <= 16 * total + 4 * buffers * 4
    assert state(with_average) - state(config) == 4 * vit
    assert 0 <= state(with_teacher) - state(config) - 4 * (vit + head) < 4 * buffers


def test_activations_grow_with_the_batch_and_shrink_in_16_bits():
    config = load_config(PretrainConfig, "nano", SMALL)
    few, many = (step_memory(config, size, half=False).activations for size in (64, 128))
    assert many == pytest.approx(2 * few, rel=0.05)
    assert 0.4 < step_memory(config, 128, half=True).activations / many < 0.8


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_the_largest_power_of_two_that_fits(monkeypatch, kind):
    config = load_config(PretrainConfig, "nano", [*SMALL, "optim.batch_size=1000"])
    asked = []

    def step(config, batch_size, *, half):
        asked.append(half)
        return StepMemory(state=10**6, activations=10**5 * batch_size, scratch=10**3 * batch_size)

    monkeypatch.setattr(memory, "step_memory", step)

    def choose(free):
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        return fitting_batch_size(config, torch.device(kind))

    def needs(size):
        gaps = memory.CPU_GAPS if kind == "cpu" else 1.0
        return int(step(config, size, half=False).total * gaps / memory.MEMORY_SHARE)

    assert choose(needs(1000) * 2)[0] == 1000
    assert asked[-1] == (kind == "cuda")  # in 16 bits on GPUs
    assert choose(needs(1000) - 1000)[0] == 512
    assert choose(needs(128) + 1000)[0] == 128
    size, reason = choose(needs(128) - 1000)
    assert size == 64
    assert "batches of 64 instead of 1000" in reason
    size, reason = choose(1)
    assert size == memory.SMALLEST_BATCH
    assert "too little even so" in reason
    assert choose(0)[0] == 1000  # a system that does not tell


def test_reserved_memory_is_not_counted_as_free(monkeypatch):
    config = load_config(PretrainConfig, "nano", [*SMALL, "optim.batch_size=256"])
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**10)
    assert fitting_batch_size(config, torch.device("cpu"))[0] == 256
    assert fitting_batch_size(config, torch.device("cpu"), reserved=10**10 - 10**8)[0] < 256


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_line_that_names_the_setting(error):
    config = load_config(PretrainConfig, "nano", ["optim.batch_size=96"])
    message = r"ran out of memory at 96 images .*set optim.batch_size=48"
    with pytest.raises(TrainingError, match=message), memory_explained(config):
        raise error


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes differ"), memory_explained(PretrainConfig()):
        raise RuntimeError("shapes differ")
