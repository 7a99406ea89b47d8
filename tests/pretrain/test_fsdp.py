"""FSDP with two processes on processors: the model of DDP, whole in every file, and killed it goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vitembed.pretrain.keep.checkpoint_io import read_checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo as on POSIX")
STEPS = 10
SETTINGS = [
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.drop_path_rate=0.3",
    "model.stem=conv",
    "objective.head_hidden_dim=16",
    "objective.head_dim=8",
    "objective.teacher=true",
    "objective.patch_target=latent",
    "objective.num_local_views=2",
    "optim.batch_size=6",
    "optim.export_ema=0.9",
    "optim.grad_clip=0.5",
    f"optim.max_steps={STEPS}",
    "trainer.accelerator=cpu",
    "trainer.precision=bf16-mixed",
    "trainer.devices=2",
    "trainer.num_pictures=2",
    "trainer.log_every_steps=1",
    "trainer.save_every_minutes=0",
    "data.holdout=8",
]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    images = tmp_path_factory.mktemp("images")
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{i:02}.png")

    def run(work, strategy, *, kill_after=0):
        script = Path(__file__).with_name("cpu_fsdp.py")
        settings = [*SETTINGS, f"trainer.strategy={strategy}"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*command, str(script), str(images), str(work), str(kill_after), *settings],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=300,
            text=True,
        )
        assert (done.returncode == 0) == (kill_after == 0), done.stderr[-4_000:]
        return work / ".vitembed"

    return run


@pytest.fixture(scope="module")
def sharded(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("fsdp"), "fsdp")


def weights(place):
    return load_file(place / "model" / "encoder.safetensors")


def test_weights_in_parts_learn_what_whole_ones_do(train, sharded, tmp_path):
    whole = train(tmp_path, "ddp")
    mine, theirs = weights(sharded), weights(whole)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(mine[name], value, atol=1e-3, err_msg=name)
    saved, expected = (read_checkpoint(place / "runs" / "model" / "last.ckpt") for place in (sharded, whole))
    assert saved["state_dict"].keys() == expected["state_dict"].keys()
    for name, value in expected["state_dict"].items():
        assert saved["state_dict"][name].shape == value.shape, name
    moments, whole_moments = (state["optimizer_states"][0]["state"] for state in (saved, expected))
    assert moments.keys() == whole_moments.keys()
    for key, value in whole_moments.items():
        expected_moment = value["exp_avg"].numpy()
        near = 1e-3 + 0.1 * np.abs(expected_moment).max()  # 16 bits
        np.testing.assert_allclose(moments[key]["exp_avg"].numpy(), expected_moment, atol=near, err_msg=str(key))


@pytest.mark.slow
@pytest.mark.parametrize("goes_on_with", ["fsdp", "ddp"])
def test_killed_it_goes_on(goes_on_with, train, sharded, tmp_path):
    train(tmp_path, "fsdp", kill_after=4)
    mine, expected = weights(train(tmp_path, goes_on_with)), weights(sharded)
    for name, value in expected.items():
        if goes_on_with == "fsdp":
            np.testing.assert_array_equal(mine[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(mine[name], value, atol=1e-3, err_msg=name)
