"""The step itself: what masking saves, how near it comes to the rate of matrix multiplication, what compiling gains."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from speed.pairs import Pair, in_turn, timed
from vitembed.config import PretrainConfig
from vitembed.model.vit import Block, VisionTransformer
from vitembed.pretrain.memory import step_memory
from vitembed.pretrain.objective import MaskedViews
from vitembed.recipes import load_config


def make_step(
    settings: list[str],
    batch_size: int,
    *,
    recipe: str = "nano",
    change: Callable[[VisionTransformer], None] | None = None,
) -> Callable[[], None]:
    """Forward, backward and AdamW of a recipe's objective on views in memory; the encoder changed before, or not."""
    config = load_config(PretrainConfig, recipe, settings)
    torch.manual_seed(0)
    objective = MaskedViews(VisionTransformer(config.model.vit()), config.objective)
    if change is not None:
        change(objective.vit)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    views = torch.randn(config.objective.num_views, batch_size, 3, config.model.img_size, config.model.img_size)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        objective(views, generator).loss.backward()
        optimizer.step()

    return step


def flops(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the one that the counter knows
        step()
    return counter.get_total_flops()


def masked_against_whole(settings: list[str], mask_ratio: float, batch_size: int) -> tuple[Pair, float]:
    """Seconds of the step with and without masking (cls terms alone), and the ratio of their FLOPs."""
    bare = [*settings, "objective.patch_weight=0"]
    masked = make_step([*bare, f"objective.mask_ratio={mask_ratio}"], batch_size)
    whole = make_step([*bare, "objective.mask_ratio=0"], batch_size)
    return in_turn(masked, whole, clock=time.process_time), flops(whole) / flops(masked)


def channels_last_against_first(settings: list[str], batch_size: int, *, pairs: int = 9) -> Pair:
    """Seconds of the step with its convolutional stem as it is, in channels-last, and with pixels as they come."""

    def channels_first(vit: VisionTransformer) -> None:
        backbone = vit.patch_embed.backbone
        vit.patch_embed.forward = lambda pixels: backbone(pixels).flatten(2).transpose(1, 2)

    as_it_is, other = make_step(settings, batch_size), make_step(settings, batch_size, change=channels_first)
    return in_turn(as_it_is, other, pairs=pairs, clock=time.process_time)


def matmul_rate(side: int = 1024, *, repeats: int = 9) -> float:
    """Floating-point operations per CPU second of a square fp32 matrix multiplication, the best of some."""
    a, b = torch.randn(side, side), torch.randn(side, side)
    return 2 * side**3 / min(timed(lambda: a @ b, time.process_time) for _ in range(repeats))


def utilisation(settings: list[str], batch_size: int, *, pairs: int = 5) -> tuple[float, float]:
    """Share of the matrix multiplication's rate that the model's FLOPs reach in a step, and that rate."""
    step = make_step(settings, batch_size)
    work = flops(step)
    shares, rates = [], []
    for _ in range(pairs):
        rates.append(matmul_rate())
        shares.append(work / timed(step, time.process_time) / rates[-1])
    return statistics.median(shares), statistics.median(rates)


def compiled_against_eager(img_size: int, patch_size: int, batch_size: int) -> tuple[Pair, float]:
    """Seconds of a compiled and of an eager block of the nano model, and those of compiling."""
    tokens = 1 + (img_size // patch_size) ** 2 // 2
    config = load_config(PretrainConfig, "nano", [f"model.img_size={img_size}", f"model.patch_size={patch_size}"])
    eager, compiled = (Block(config.model.vit(), 0.0) for _ in range(2))
    compiled.compile(dynamic=False)
    x = torch.randn(2 * batch_size, tokens, config.model.vit().embed_dim, requires_grad=True)
    took = timed(lambda: compiled(x).sum().backward())
    pair = in_turn(
        lambda: compiled(x).sum().backward(),
        lambda: eager(x).sum().backward(),
        pairs=15,
        clock=time.process_time,
    )
    return pair, took


_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from vitembed._torchvision import import_torchvision
import_torchvision()
from speed.model import peak
peak(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
"""


def peak_memory(recipe: str, batch_size: int, settings: list[str], *, path: str) -> tuple[int, int]:
    """Bytes by which a process grows for two steps, and what ``step_memory`` says."""
    command = [sys.executable, "-c", _CHILD, path, recipe, str(batch_size), *settings]
    measured = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    config = load_config(PretrainConfig, recipe, settings)
    return measured, step_memory(config, batch_size, half=False).total


def peak(recipe: str, batch_size: int, settings: list[str]) -> None:
    """In a process of its own: print the growth in bytes."""
    torch.nn.Linear(8, 8)(torch.randn(8, 8)).sum().backward()
    before = _high_water()
    step = make_step(settings, batch_size, recipe=recipe)
    step(), step()
    print(_high_water() - before)


def _high_water() -> int:
    """Most bytes that this process ever had in memory; ``ru_maxrss`` would begin at what its parent had."""
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
