"""Two processes on CPUs: one model, no hang; whoever is killed or asked to stop, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch.distributed
from PIL import Image

import vitembed
from vitembed.config import TrainerConfig
from vitembed.errors import ConfigError, TrainingError
from vitembed.pretrain.many import launch
from vitembed.pretrain.many.agree import Agreement, SharedClock, Wishes
from vitembed.pretrain.many.processes import Process, current_process, num_processes
from vitembed.workspace import find_workspace

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and gloo as on POSIX")
STEPS = 30
SETTINGS = [
    "model.embed_dim=16",
    "model.depth=1",
    "model.num_heads=2",
    "model.drop_path_rate=0.3",
    "objective.head_hidden_dim=16",
    "objective.head_dim=8",
    "objective.teacher=true",
    "optim.batch_size=6",
    f"optim.max_steps={STEPS}",
    "optim.low_res_share=0.5",
    "trainer.accelerator=cpu",
    "trainer.num_pictures=2",
    "trainer.log_every_steps=1",
    "trainer.save_every_minutes=0",
    "data.holdout=8",
]
SCRIPT = """
import sys
from pathlib import Path
import vitembed
from vitembed.workspace import find_workspace
result = vitembed.pretrain(sys.argv[1], config="smoke", overrides=sys.argv[3:], progress=False,
                           workspace=find_workspace(Path(sys.argv[2]), create=True))
assert (result.model_dir / "config.json").is_file() == result.completed
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("images")
    for i in range(24):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(noise).save(directory / f"{i:02}.png")
    return directory


def run(folder, work, *settings):
    workspace = find_workspace(work, create=True)
    settings = [*SETTINGS, "trainer.devices=2", *settings]
    return vitembed.pretrain(folder, config="smoke", overrides=settings, workspace=workspace, progress=False)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run of two processes."""
    return run(folder, tmp_path_factory.mktemp("whole"))


def weights(work):
    return (work / ".vitembed" / "model" / "encoder.safetensors").read_bytes()


def steps(work):
    lines = (work / ".vitembed" / "runs" / "model" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def wait_for_steps(work, count, process=None):
    """Until so many steps are in the metrics, or the process has ended."""
    path = work / ".vitembed" / "runs" / "model" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        if path.exists() and len(path.read_text().splitlines()) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("no such step came")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def workers(monkeypatch):
    """Pids of the processes that a run starts."""
    started = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        child = popen(*args, **kwargs)
        started.append(child.pid)
        return child

    monkeypatch.setattr(launch.subprocess, "Popen", start)
    return started


def test_two_processes_leave_one_model_and_no_trace_of_themselves(whole):
    work = whole.run_dir.parents[2]
    assert whole.completed
    assert steps(work) == list(range(1, STEPS + 1))
    assert json.loads((whole.run_dir / "run.json").read_text())["world_size"] == 2
    assert not (whole.run_dir / "plan.json").exists()
    assert not torch.distributed.is_initialized()
    assert not {"LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK"} & set(os.environ)
    facts = json.loads((whole.model_dir / "config.json").read_text())["provenance"]
    assert facts["num_steps"] == STEPS


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_and_a_killed_one_is_told(folder, whole, tmp_path, workers):
    work = tmp_path / "work"

    def once_there(count, number):
        def act():
            wait_for_steps(work, count)
            os.kill(workers[-1], number)

        thread = threading.Thread(target=act)
        thread.start()
        return thread

    thread = once_there(3, signal.SIGTERM)
    stopped = run(folder, work)
    thread.join()
    assert not stopped.completed
    assert 3 <= stopped.num_steps < STEPS
    assert steps(work) == list(range(1, stopped.num_steps + 1))
    thread = once_there(stopped.num_steps + 3, signal.SIGKILL)
    with pytest.raises(TrainingError, match="process 1 of 2 was killed by SIGKILL.*the same command goes on"):
        run(folder, work)
    thread.join()
    assert run(folder, work).completed
    assert weights(work) == weights(whole.run_dir.parents[2])
    assert steps(work) == list(range(1, STEPS + 1))
    assert not any(alive(pid) for pid in workers)


def test_a_loss_that_is_no_number_stops_all_and_each_keeps_its_batch(folder, tmp_path):
    work = tmp_path / "work"
    with pytest.raises(TrainingError, match=r"at step \d+ \(.*nonfinite-"):
        run(folder, work, "optim.base_lr=1e30", "optim.grad_clip=1e30")
    kept = (work / ".vitembed" / "runs" / "model").glob("nonfinite-*.json")
    facts = sorted((json.loads(path.read_text()) for path in kept), key=lambda fact: fact["rank"])
    assert [(fact["rank"], fact["world_size"]) for fact in facts] == [(0, 2), (1, 2)]
    assert facts[0]["step"] == facts[1]["step"]


@pytest.mark.slow
def test_where_the_first_process_is_killed_the_others_end_and_the_same_command_goes_on(folder, whole, tmp_path):
    work = tmp_path / "work"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(work), *SETTINGS, "trainer.devices=2"]
    first = subprocess.Popen(command, start_new_session=True)
    wait_for_steps(work, 4, first)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and group_lives(first.pid):
        time.sleep(0.1)
    assert not group_lives(first.pid), "a worker outlived the first process"
    assert run(folder, work).completed
    assert weights(work) == weights(whole.run_dir.parents[2])


def group_lives(group):
    """Whether any process of a group that is not a zombie is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_torchrun_killed_and_repeated_ends_in_the_same_model(folder, whole, tmp_path):
    work = tmp_path / "work"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(script), str(folder), str(work), *SETTINGS]
    agent = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for_steps(work, 4, agent)
    lock = json.loads((work / ".vitembed" / "runs" / "model" / "run.lock").read_text())
    os.kill(lock["pid"], signal.SIGKILL)  # the first process alone
    assert agent.wait(timeout=60) != 0
    assert not (work / ".vitembed" / "model").exists()
    assert subprocess.run(command, timeout=120).returncode == 0
    assert weights(work) == weights(whole.run_dir.parents[2])
    assert steps(work) == list(range(1, STEPS + 1))


def slurm(folder, work, rank, *settings):
    """One of two tasks of a job, as srun starts them."""
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    env = {**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_ADDR": "127.0.0.1"}
    env["MASTER_PORT"] = str(20000 + os.getpid() % 10000)
    command = [sys.executable, "-m", "vitembed_cli", "pretrain", str(folder), "--config", "smoke"]
    command += ["--workspace", str(work), *SETTINGS, *settings]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_on_slurm_a_signal_before_the_time_is_up_saves_and_says_how_to_requeue(folder, whole, tmp_path):
    work = tmp_path / "work"
    tasks = [slurm(folder, work, rank) for rank in (0, 1)]
    wait_for_steps(work, 3, tasks[0])
    tasks[1].send_signal(signal.SIGUSR1)
    outputs = [task.communicate(timeout=60) for task in tasks]
    assert [task.returncode for task in tasks] == [130, 130]
    assert "`scontrol requeue 4242`" in outputs[0][1]
    assert "Interrupted; everything is saved." in outputs[0][1]
    assert outputs[1] == ("", "") or "Error" not in outputs[1][1]
    assert run(folder, work).completed
    assert weights(work) == weights(whole.run_dir.parents[2])


def test_an_error_of_the_first_process_is_one_line_for_all(folder, tmp_path):
    tasks = [slurm(folder, tmp_path / "work", rank, "trainer.devices=3") for rank in (0, 1)]
    outputs = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [1, 1]
    said = [line for out, err in outputs for line in (out + err).splitlines() if line.startswith("Error:")]
    cause = "trainer.devices=3, but slurm started 2 processes per machine"
    assert said == [f"Error: {cause}: leave trainer.devices out, or start as many"]


def test_who_a_process_is_comes_from_its_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "TORCHELASTIC")):
            monkeypatch.delenv(name)
    assert current_process() == Process()
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert current_process() == Process(5, 8, 4, "slurm")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert current_process() == Process()
    for name, value in {"RUN_ID": "none"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert current_process() == Process(3, 4, 2, "torchrun")
    assert num_processes(TrainerConfig(), current_process()) == (2, 2)
    assert num_processes(TrainerConfig(devices="2", num_nodes=2), current_process()) == (2, 2)
    with pytest.raises(ConfigError, match="trainer.num_nodes=3, but torchrun started 2 machines"):
        num_processes(TrainerConfig(num_nodes=3), current_process())


def test_processes_that_cannot_be_are_refused():
    assert num_processes(TrainerConfig(devices="3", accelerator="cpu"), Process()) == (3, 1)
    assert num_processes(TrainerConfig(accelerator="cpu"), Process()) == (1, 1)
    with pytest.raises(ConfigError, match="trainer.num_nodes=2 needs a process on every machine: start with torchrun"):
        num_processes(TrainerConfig(num_nodes=2), Process())
    for wrong in ({"devices": "0"}, {"devices": "two"}, {"num_nodes": 0}, {"strategy": "dp"}):
        with pytest.raises(ConfigError, match=f"trainer.{next(iter(wrong))} must be"):
            TrainerConfig(**wrong)


def test_fsdp_without_gpus_is_one_clear_line(folder, tmp_path):
    with pytest.raises(ConfigError, match="trainer.strategy=fsdp needs CUDA GPUs"):
        run(folder, tmp_path / "work", "trainer.strategy=fsdp")


def test_the_shared_clock_goes_on_between_agreements_and_never_back():
    clock = SharedClock(max_steps=None, budget_seconds=100.0)
    clock.agreed_step, clock.agreed_seconds, clock.step_seconds = 10, 50.0, 2.0
    assert clock.progress(10) == pytest.approx(0.5)
    assert clock.progress(15) == pytest.approx(0.6)
    assert clock.progress(1000) == 1.0
    clock.max_steps = 20
    assert clock.progress(15) == pytest.approx(0.75)
    alone = Agreement(clock)
    wishes = Wishes(stop=True, bad_step=3)
    assert alone.due(7)
    assert alone.agree(wishes, 7) is wishes
