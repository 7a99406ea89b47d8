"""A loss that is no number: the weights never see it, and its batch gives the same number again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitembed
from vitembed.errors import DataError, TrainingError
from vitembed.pretrain.keep import nonfinite
from vitembed.pretrain.keep.checkpoint_io import read_checkpoint
from vitembed.pretrain.keep.replay import replay
from vitembed.pretrain.module import PretrainModule
from vitembed.pretrain.objective import MaskedViews
from vitembed.workspace import find_workspace

BAD_STEP = 4  # as in metrics.jsonl: the first step is 1


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "images"
    directory.mkdir()
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{i:02}.png")
    return directory


def run(folder, tmp_path, *settings):
    tiny = ["model.embed_dim=16", "model.depth=1", "model.num_heads=2", "model.drop_path_rate=0.3"]
    tiny += ["objective.head_hidden_dim=16", "objective.head_dim=8", "optim.batch_size=8", "optim.max_steps=8"]
    tiny += ["trainer.accelerator=cpu", "trainer.num_pictures=0", "trainer.log_every_steps=3"]
    workspace = find_workspace(tmp_path / "work", create=True)
    return vitembed.pretrain(folder, config="smoke", overrides=[*tiny, *settings], workspace=workspace, progress=False)


def break_step(monkeypatch, number=math.nan):
    """Multiply the loss of one step by a number, and note the weights and the loss before."""
    noted = {}
    whole = PretrainModule.training_step

    def step(self, batch, batch_idx):
        loss = whole(self, batch, batch_idx)
        if self.global_step == BAD_STEP - 1:
            if "loss" not in noted:
                noted["images"] = batch["images"].clone()
                noted["weights"] = {name: value.clone() for name, value in self.named_parameters()}
                noted["loss"] = float(loss.detach())
                noted["terms"] = {name: float(term) for name, term in self.last_output.terms.items()}
            loss = loss * number
            self.last_output = self.last_output._replace(loss=loss)
        return loss

    monkeypatch.setattr(PretrainModule, "training_step", step)
    return noted


@pytest.mark.parametrize("deferred", [False, True])
def test_the_run_stops_before_the_weights_are_spoiled_and_keeps_the_batch(folder, tmp_path, monkeypatch, deferred):
    noted = break_step(monkeypatch)
    if deferred:  # as on a GPU: asked for at the log line of step 6
        init = nonfinite.Guard.__init__
        monkeypatch.setattr(
            nonfinite.Guard, "__init__", lambda self, *args, **kwargs: init(self, *args, deferred=True, **kwargs)
        )
    with pytest.raises(TrainingError, match=rf"at step {BAD_STEP}.*nonfinite-0000004.json.*Lower optim.base_lr"):
        run(folder, tmp_path)
    run_dir = tmp_path / "work" / ".vitembed" / "runs" / "model"
    kept = load_file(run_dir / "nonfinite-0000004.safetensors")
    assert torch.equal(kept["images"], noted["images"])
    for name, value in noted["weights"].items():
        if f"state.{name}" in kept:  # the encoder is there under one of its two names
            assert torch.equal(kept[f"state.{name}"], value), name
    assert sum(name.startswith("state.objective.vit.") for name in kept) > 10
    facts = json.loads((run_dir / "nonfinite-0000004.json").read_text())
    assert (facts["step"], facts["seed"], facts["rank"], facts["precision"]) == (BAD_STEP, 0, 0, "32-true")
    again = replay(run_dir / "nonfinite-0000004.json")
    assert math.isnan(again.loss)
    assert again.terms == noted["terms"]
    monkeypatch.undo()
    assert replay(run_dir / "nonfinite-0000004.safetensors").loss == noted["loss"]  # every bit of it


def test_a_save_before_the_gpu_was_asked_holds_the_weights_from_before(folder, tmp_path, monkeypatch):
    noted = break_step(monkeypatch)
    init = nonfinite.Guard.__init__
    monkeypatch.setattr(
        nonfinite.Guard, "__init__", lambda self, *args, **kwargs: init(self, *args, deferred=True, **kwargs)
    )
    with pytest.raises(TrainingError, match="at step 4"):
        run(folder, tmp_path, "trainer.save_every_minutes=0", "trainer.log_every_steps=100")
    state = read_checkpoint(tmp_path / "work" / ".vitembed" / "runs" / "model" / "last.ckpt")
    assert state["global_step"] == BAD_STEP - 1
    for name, value in noted["weights"].items():
        assert torch.equal(state["state_dict"][name], value), name


@pytest.mark.filterwarnings("ignore:Error detected in")  # anomaly mode tells where the forward pass was
def test_a_loss_in_the_objective_itself_is_found_again_by_replay(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("vitembed.pretrain.objective.normalise_patches", lambda p: (p - p.mean(-1, keepdim=True)) / 0.0)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step 1 .*patch"):
        run(folder, tmp_path)
    path = tmp_path / "work" / ".vitembed" / "runs" / "model" / "nonfinite-0000001.json"
    again = replay(path)
    facts = json.loads(path.read_text())
    assert not math.isfinite(again.loss)
    assert {name: repr(term) for name, term in again.terms.items()} == facts["terms"]
    assert not math.isfinite(again.grad_norm)
    with pytest.raises(RuntimeError, match="returned nan values"):
        replay(path, anomaly=True)


def test_a_finite_loss_with_an_infinite_gradient_stops_too(folder, tmp_path, monkeypatch):
    whole = MaskedViews.forward

    def forward(self, *args, **kwargs):
        output = whole(self, *args, **kwargs)
        zero = (self.vit.norm.weight[0] - self.vit.norm.weight[0].detach()).abs().sqrt()  # 0, with slope infinity
        return output._replace(loss=output.loss + zero)

    monkeypatch.setattr(MaskedViews, "forward", forward)
    with pytest.raises(TrainingError, match=r"the gradient is not finite at step 1 "):
        run(folder, tmp_path)


def test_what_is_no_kept_step_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read the kept step"):
        replay(tmp_path / "nonfinite-0000001.json")
