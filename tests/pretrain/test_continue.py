"""Runs that go on from a model, from folder to folder: what they keep, what they refuse, killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest
import torch

import vitembed
from vitembed.config import ViTConfig
from vitembed.errors import ConfigError, ModelError
from vitembed.images.preprocess import Preprocess
from vitembed.model.checkpoint import read_model, save_model
from vitembed.model.vit import VisionTransformer
from vitembed.pretrain.onward.adapt import Adapting
from vitembed.workspace import find_workspace

ARCHITECTURE = ViTConfig(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0, qkv_bias=False)
PREPROCESS = Preprocess(img_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), crop_pct=0.9)
TINY = [
    "objective.head_hidden_dim=16",
    "objective.head_dim=8",
    "objective.decoder_dim=32",
    "objective.decoder_depth=1",
    "optim.batch_size=8",
    "trainer.log_every_steps=1",
    "trainer.accelerator=cpu",
    "data.holdout=24",
]


@pytest.fixture
def folder(photo_folder):
    return photo_folder


@pytest.fixture
def parent_dir(tmp_path):
    """A model of another architecture, other preprocessing and a licence, as if from elsewhere."""
    torch.manual_seed(0)
    vit = VisionTransformer(ARCHITECTURE)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    facts = {"made_by": "someone else"}
    return save_model(tmp_path / "parent", vit, PREPROCESS, provenance=facts, licence="MIT")


def run(folder, tmp_path, model, *settings, **options):
    return vitembed.pretrain(
        folder,
        model=model,
        overrides=[*TINY, *settings],
        workspace=find_workspace(tmp_path / "work", create=True),
        progress=False,
        **options,
    )


def weights(directory):
    return read_model(directory).vit.state_dict()


def lines(result):
    return [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_continued_run_takes_everything_from_its_parent_and_names_it(folder, tmp_path, parent_dir):
    result = run(folder, tmp_path, parent_dir, "optim.max_steps=10", "adapt.num_checks=2", "model.drop_path_rate=0.1")
    assert result.completed
    parent, made = read_model(parent_dir), read_model(result.model_dir)
    assert made.vit.config == dataclasses.replace(ARCHITECTURE, drop_path_rate=0.1)
    assert made.preprocess == PREPROCESS
    assert made.licence == "MIT"
    assert made.provenance["parent"]["fingerprint"] == parent.fingerprint
    assert made.provenance["parent"]["provenance"] == {"made_by": "someone else"}
    assert result.decision["kept"] == made.provenance["decision"]["kept"]
    state = json.loads((result.run_dir / "run.json").read_text())
    assert state["decision"] == result.decision
    assert state["config"]["adapt"]["parent"] == parent.fingerprint
    assert result.decision["words"] in (result.run_dir / "report.html").read_text().replace("&#x27;", "'")
    first, *rest = lines(result)
    assert (first["step"], first["model"]) == (0, "frozen")
    assert {"rankme", "view_retrieval", "knn"} <= set(first)
    assert [line["step"] for line in rest] == list(range(1, 11))
    assert all("anchor" in line for line in rest)
    best = read_model(result.run_dir / "best")
    assert (best.licence, best.preprocess) == ("MIT", PREPROCESS)
    assert vitembed.load(result.model_dir, device="cpu").embed(folder).vectors.shape == (24, 16)
    again = run(folder, tmp_path, parent_dir, "optim.max_steps=10", "adapt.num_checks=2", "model.drop_path_rate=0.1")
    assert again.decision == result.decision


@pytest.mark.parametrize("mode", ["lora", "last_blocks"])
def test_only_the_mode_s_weights_change_and_the_names_stay(folder, tmp_path, parent_dir, mode, monkeypatch):
    monkeypatch.setattr(
        "vitembed.pretrain.onward.frozen.merit", lambda look, max_rank: float(look["step"])
    )  # the end is the best
    settings = ("optim.max_steps=12", "optim.base_lr=0.05", f"adapt.mode={mode}", "adapt.num_checks=1")
    result = run(folder, tmp_path, parent_dir, *settings)
    assert result.decision["kept"] == "last"
    before, after = weights(parent_dir), weights(result.model_dir)
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    last = {name for name in before if name.startswith(("blocks.2.", "norm."))}
    if mode == "last_blocks":
        assert changed == last
    else:
        layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        inside = {f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in layers}
        inside |= {f"blocks.{i}.{norm}.bias" for i in (0, 1) for norm in ("norm1", "norm2")}
        assert changed == last | inside
        update = after["blocks.0.mlp.fc1.weight"] - before["blocks.0.mlp.fc1.weight"]
        assert torch.linalg.matrix_rank(update.double(), rtol=1e-4) <= 16


def test_the_heads_are_warmed_on_an_unchanged_encoder_and_the_patch_loss_rises(
    folder, tmp_path, parent_dir, monkeypatch
):
    seen = []
    original = Adapting.on_train_batch_start

    def note(self, trainer, module, *args):
        original(self, trainer, module, *args)
        head = module.objective.head[0].weight.detach().clone()
        vit = {name: tensor.clone() for name, tensor in module.vit.state_dict().items()}
        seen.append((self.warming, float(module.objective.patch_scale), vit, head))

    monkeypatch.setattr(Adapting, "on_train_batch_start", note)
    run(folder, tmp_path, parent_dir, "optim.max_steps=30", "adapt.patch_ramp_share=0.5", "adapt.num_checks=1")
    # 20 steps at least, half of the run at most: 15 steps.
    assert [warming for warming, *_ in seen] == [True] * 15 + [False] * 15
    start = weights(parent_dir)
    for step in range(16):  # the state before step 15 is that after the last step of the phase
        assert all(torch.equal(tensor, start[name]) for name, tensor in seen[step][2].items())
    assert not torch.equal(seen[15][3], seen[0][3]), "the heads have not learned"
    after = seen[16][2]
    assert all(
        not torch.equal(after[name], tensor) for name, tensor in start.items() if name.startswith("blocks.2.mlp")
    )
    assert [scale for _, scale, *_ in seen] == pytest.approx([min(1.0, (step + 1) / 15) for step in range(30)])


def test_a_run_that_gets_worse_keeps_the_frozen_model_bit_for_bit(folder, tmp_path, parent_dir, caplog):
    settings = ("optim.max_steps=100", "adapt.lr_scale=5000", "adapt.layer_decay=1", "adapt.anchor_weight=0")
    with caplog.at_level("INFO", "vitembed"):
        result = run(folder, tmp_path, parent_dir, *settings, "monitor.labels=none", "model.img_size=32")
    words = result.decision["words"]
    assert result.decision["kept"] == "frozen"
    assert words.startswith("stopped early as it only got worse; the frozen model is kept unchanged: RankMe x view")
    assert words in caplog.text
    assert "views of 32 px for a model of 16 px: its positions are interpolated" in caplog.text
    assert result.num_steps < 100
    parent, kept = read_model(parent_dir), read_model(result.model_dir)
    assert kept.fingerprint == parent.fingerprint
    assert all(torch.equal(kept.vit.state_dict()[name], tensor) for name, tensor in parent.vit.state_dict().items())
    assert kept.provenance["decision"]["words"] == words
    assert words in (result.run_dir / "report.html").read_text()
    # Killed between the last save and the export: the same command only exports.
    state = json.loads((result.run_dir / "run.json").read_text())
    (result.run_dir / "run.json").write_text(json.dumps({**state, "status": "running"}))
    again = run(folder, tmp_path, parent_dir, *settings, "monitor.labels=none", "model.img_size=32")
    assert (again.decision, again.num_steps) == (result.decision, result.num_steps)


SCRIPT = """
import sys, vitembed
from pathlib import Path
from vitembed.workspace import find_workspace
vitembed.pretrain(sys.argv[1], model=sys.argv[3], overrides=sys.argv[4:], progress=False, name="killed",
                  workspace=find_workspace(Path(sys.argv[2]), create=True))
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_bits(folder, tmp_path, parent_dir):
    settings = ["optim.max_steps=50", "adapt.mode=lora", "model.drop_path_rate=0.2", "adapt.num_checks=5"]
    settings += ["optim.export_ema=0.9", "trainer.save_every_minutes=0.0005"]
    metrics = tmp_path / "work" / ".vitembed" / "runs" / "killed" / "metrics.jsonl"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(tmp_path / "work"), str(parent_dir), *TINY, *settings]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= 32:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before the signal came"
    stored = (parent_dir / "config.json").read_text()
    other = save_model(tmp_path / "other", VisionTransformer(ARCHITECTURE), PREPROCESS)
    with pytest.raises(ConfigError, match=r"adapt\.parent: .* -> .*--fresh"):
        run(folder, tmp_path, other, *settings, name="killed")
    assert (parent_dir / "config.json").read_text() == stored
    resumed = run(folder, tmp_path, parent_dir, *settings, name="killed")
    whole = run(folder, tmp_path, parent_dir, *settings, name="whole")
    assert [line["step"] for line in lines(resumed)] == list(range(51))
    assert resumed.decision == whole.decision
    assert read_model(resumed.model_dir).fingerprint == read_model(whole.model_dir).fingerprint
    for name in ("loss", "anchor", "patch"):
        assert [line.get(name) for line in lines(resumed)] == [line.get(name) for line in lines(whole)]
    assert read_model(resumed.run_dir / "best").fingerprint == read_model(whole.run_dir / "best").fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.patch_size=4"], r"model.patch_size is 4, the model has 8: leave model\.\* out"),
        (["model.size=base"], "model.size is base, the model has embed_dim 16, depth 3, num_heads 2"),
        (
            ["model.depth=4", "model.num_registers=2"],
            "depth is 4, the model has 3; model.num_registers is 2, the model",
        ),
        (["model.img_size=20"], "img_size 20 must be a multiple of patch_size 8"),
        (["adapt.mode=lora", "adapt.num_blocks=4"], "adapt.num_blocks is 4, the model has 3 blocks"),
        (["adapt.mode=qlora"], "adapt.mode must be full, lora or last_blocks, got 'qlora'"),
        (["adapt.parent=abc"], "adapt.parent asks for the model with fingerprint abc"),
        (["trainer.num_pictures=0"], "trainer.num_pictures is 0: a run that goes on from a model is checked"),
    ],
)
def test_settings_that_contradict_the_model_are_refused(folder, tmp_path, parent_dir, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(folder, tmp_path, parent_dir, *settings)


def test_what_says_how_to_go_on_is_refused_without_a_model(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"adapt.mode says how to go on from a trained model: name one with --model"):
        run(folder, tmp_path, None, "adapt.mode=lora", config="smoke")
    with pytest.raises(ConfigError, match="recipe continue goes on from a trained model: name one with --model"):
        run(folder, tmp_path, None, config="continue")


def test_a_model_is_found_by_name_and_never_written_over(folder, tmp_path, parent_dir):
    workspace = find_workspace(tmp_path / "work", create=True)
    parent_dir.rename(workspace.model_dir)
    settings = ("optim.max_steps=2", "adapt.num_checks=1")
    with pytest.raises(ConfigError, match=r"would replace .*model, the model that the run starts from.*--name"):
        run(folder, tmp_path, "model", *settings)
    result = run(folder, tmp_path, "model", *settings, name="second", config="small")
    made = read_model(result.model_dir)
    assert made.provenance["parent"]["fingerprint"] == read_model(workspace.model_dir).fingerprint
    assert made.vit.config.embed_dim == 16, "a packaged recipe's model section gives way"
    third = run(folder, tmp_path, "second", *settings, name="third")
    assert read_model(third.model_dir).provenance["parent"]["fingerprint"] == made.fingerprint
    with pytest.raises(ModelError, match="no model at fourth"):
        run(folder, tmp_path, "fourth", *settings, name="fifth")
