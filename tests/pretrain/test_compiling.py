"""Compiling blocks: the same numbers and names, and a word instead of a crash where it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from vitembed.config import PretrainConfig
from vitembed.errors import ConfigError
from vitembed.model.vit import Block, VisionTransformer
from vitembed.pretrain import compiling
from vitembed.pretrain.compiling import compile_blocks
from vitembed.pretrain.objective import MaskedViews
from vitembed.recipes import load_config

TINY = [
    "model.img_size=16",
    "model.patch_size=8",
    "model.embed_dim=16",
    "model.depth=2",
    "objective.head_hidden_dim=16",
]


def make(mode: str) -> tuple[PretrainConfig, MaskedViews]:
    config = load_config(PretrainConfig, "nano", [*TINY, f"trainer.compile={mode}"])
    torch.manual_seed(0)
    return config, MaskedViews(VisionTransformer(config.model.vit()), config.objective)


def compiled(config: PretrainConfig, objective: MaskedViews, **changes) -> bool:
    given = {"device": torch.device("cpu"), "batch_size": 4, "dtype": None, "max_steps": 100, "backend": "eager"}
    return compile_blocks(objective, config, **{**given, **changes})


# In a process of its own, as the shape checks of the tests stop at the tensors that a compiler looks with.
SCRIPT = """
import json, logging, sys, torch
from vitembed.config import PretrainConfig
from vitembed.model.vit import Block, VisionTransformer
from vitembed.pretrain.compiling import compile_blocks, uncompile
from vitembed.pretrain.objective import MaskedViews
from vitembed.recipes import load_config

logging.getLogger("vitembed").addHandler(logging.StreamHandler(sys.stderr))
logging.getLogger("vitembed").setLevel(logging.INFO)
config = load_config(PretrainConfig, "nano", sys.argv[2:])
torch.manual_seed(0)
objective = MaskedViews(VisionTransformer(config.model.vit()), config.objective)

def numbers():
    views = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    loss = objective(views, torch.Generator().manual_seed(2)).loss
    gradients = torch.autograd.grad(loss, list(objective.vit.parameters()))
    return torch.cat([loss.reshape(1), *(gradient.flatten() for gradient in gradients)]).detach()

def broken(graph, inputs):
    raise RuntimeError("no C compiler here\\nand much more")

names, plain = list(objective.state_dict()), numbers()
blocks = [part for part in objective.modules() if isinstance(part, Block)]
backend = broken if sys.argv[1] == "broken" else "aot_eager"
given = {"device": torch.device("cpu"), "batch_size": 4, "dtype": None, "max_steps": 9}
done = compile_blocks(objective, config, **given, backend=backend)
same = bool(torch.allclose(numbers(), plain, atol=1e-5, rtol=1e-4))
inside = [block._compiled_call_impl is not None for block in blocks]
graphs = torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)
kept = list(objective.state_dict()) == names
uncompile(objective)
left = any(block._compiled_call_impl is not None for block in blocks)
print(json.dumps({"done": done, "same": same, "inside": inside, "graphs": graphs, "kept": kept, "left": left}))
"""


def in_a_process(backend: str) -> tuple[dict, list[str]]:
    command = [sys.executable, "-c", SCRIPT, backend, *TINY, "trainer.compile=on"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout), [line for line in ended.stderr.splitlines() if "torch.compile" in line]


def test_compiled_blocks_give_the_same_numbers_and_keep_their_names():
    found, said = in_a_process("aot_eager")
    assert found.pop("graphs") <= 4  # encoder and decoder, in the trial and in the run: not one for each block
    assert found == {"done": True, "same": True, "inside": [True] * 3, "kept": True, "left": False}
    assert len(said) == 1
    assert "times their speed" in said[0]


def test_a_compiler_that_fails_is_said_in_one_line_and_training_goes_on():
    found, said = in_a_process("broken")
    assert found["done"] is False
    assert found["same"]
    assert found["inside"] == [False] * 3
    assert len(said) == 1
    assert said[0].startswith("torch.compile failed, training goes on without it: ")
    assert "no C compiler here" in said[0]


def test_auto_is_off_on_a_cpu_and_off_is_off(monkeypatch):
    monkeypatch.setattr(compiling, "_trial_step", lambda *args: pytest.fail("nothing is to be tried"))
    for mode in ("auto", "off"):
        config, objective = make(mode)
        assert not compiled(config, objective)


@pytest.mark.parametrize(
    ("max_steps", "eager", "after", "expected"),
    [(10**6, 1.0, 0.5, True), (100, 1.0, 0.5, False), (10**6, 1.0, 0.99, False)],
)
def test_auto_on_a_gpu_wants_a_long_run_and_a_gain(monkeypatch, max_steps, eager, after, expected):
    config, objective = make("auto")
    seconds = iter([eager, after])
    monkeypatch.setattr(compiling, "_trial_step", lambda *args: lambda: None)
    monkeypatch.setattr(compiling, "_seconds", lambda *args: next(seconds))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    assert compiled(config, objective, device=torch.device("cuda"), max_steps=max_steps) == expected
    assert all(
        (part._compiled_call_impl is not None) == expected for part in objective.modules() if isinstance(part, Block)
    )


def test_words_of_yaml_are_understood_and_others_refused():
    for given, expected in (("on", "on"), ("off", "off"), ("auto", "auto")):
        assert load_config(PretrainConfig, "nano", [f"trainer.compile={given}"]).trainer.compile == expected
        if given != "on":
            assert load_config(PretrainConfig, "nano", [f"data.cache={given}"]).data.cache == expected
    with pytest.raises(ConfigError, match="trainer.compile must be auto, on or off, got 'always'"):
        load_config(PretrainConfig, "nano", ["trainer.compile=always"])
    with pytest.raises(ConfigError, match="data.cache must be auto, ram, disk or off, got 'on'"):
        load_config(PretrainConfig, "nano", ["data.cache=on"])
