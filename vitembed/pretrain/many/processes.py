"""Which process of a run this is, how the others are started, and what the first one tells them before training.

The first process (rank 0) finds the images, chooses the settings, holds the lock, prepares the run folder and builds
the cache. What it decided is the *plan*, a JSON object; the others wait for it and then only train. So no two processes
ever decide differently, and where the first one stops with an error, the others end with it.

Processes come from torchrun or SLURM, or are started by the first one, one per device of its machine (``launch.py``).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitembed.config import TrainerConfig
from vitembed.errors import ConfigError, FailedElsewhere, TrainingError, VitembedError
from vitembed.pretrain.many.launch import workers

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # torch does not list it, but documents it

_JOIN_MINUTES = 10
_GRACE_SECONDS = 30.0
_LAST_WORD_SECONDS = 3.0
"""torchrun ends all as soon as one has failed: the first process is given the time to say why."""
_calls = itertools.count()


@dataclass(frozen=True)
class Process:
    """A place among the processes of a run, as the environment tells."""

    rank: int = 0
    """0: the one that decides and writes."""
    world_size: int = 1
    """Processes that were started together."""
    local_world_size: int = 1
    """Of these, on this machine."""
    launcher: str = ""
    """torchrun, slurm, or empty: this process alone, which may start others."""


def current_process() -> Process:
    """Who this process is, without importing torch."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return Process(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"]), "torchrun")
    # As in Lightning: a shell inside a job is no task of it.
    in_shell = env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", "1")) > 1 and not in_shell:
        world_size = int(env["SLURM_NTASKS"])
        local = int(env.get("SLURM_NTASKS_PER_NODE", world_size // int(env.get("SLURM_NNODES", "1"))))
        return Process(int(env["SLURM_PROCID"]), world_size, local, "slurm")
    return Process()


def num_processes(config: TrainerConfig, process: Process) -> tuple[int, int]:
    """Processes per machine, and machines, that a run is to have.

    Raises:
        ConfigError: If the settings contradict what torchrun or SLURM started.
    """
    given = None if config.devices == "auto" else int(config.devices)
    if process.launcher:
        nodes = process.world_size // process.local_world_size
        if given not in (None, process.local_world_size):
            raise ConfigError(
                f"trainer.devices={given}, but {process.launcher} started {process.local_world_size} processes per "
                "machine: leave trainer.devices out, or start as many"
            )
        if config.num_nodes not in (1, nodes):
            raise ConfigError(f"trainer.num_nodes={config.num_nodes}, but {process.launcher} started {nodes} machines")
        return process.local_world_size, nodes
    if config.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.num_nodes} needs a process on every machine: start with torchrun or srun"
        )
    return given or _visible_devices(config), 1


def _visible_devices(config: TrainerConfig) -> int:
    """GPUs that ``auto`` takes; 1 where there is none."""
    if config.accelerator not in ("auto", "gpu", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


@dataclass(frozen=True)
class Share:
    """The part of a process in the training of a run."""

    rank: int = 0
    """Which process."""
    devices: int = 1
    """Processes on each machine."""
    num_nodes: int = 1
    """Machines."""
    launcher: str = ""
    """torchrun, slurm, or empty."""
    others: Callable[[dict[str, Any]], AbstractContextManager[None]] = lambda facts: contextlib.nullcontext()
    """Lets the others train for the time of a block; what they have to know is added to their plan."""
    plan: Mapping[str, Any] | None = None
    """What the first process decided; none in the first itself."""

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.devices * self.num_nodes


class Team:
    """The processes of a run, as the first one sees them.

    Args:
        process: The first.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.store = _join(process) if process.world_size > 1 else None
        self.announced = False
        self.result: dict[str, Any] | None = None
        """What the others give back at the end; JSON-safe."""

    @contextlib.contextmanager
    def training(self, plan: Mapping[str, Any], run_dir: Path, *, local_world_size: int) -> Iterator[None]:
        """Let the others train by the plan for the time of the block, and end them with it.

        Args:
            plan: What they need to know; JSON-safe.
            run_dir: Run folder.
            local_world_size: Processes on this machine.

        Raises:
            TrainingError: If one of them failed.
        """
        if self.store is not None:
            self.store.set("plan", json.dumps(dict(plan)))
            self.announced = True
            yield
        elif local_world_size > 1:
            with workers(dict(plan), run_dir, local_world_size):
                yield
        else:
            yield

    def end(self, error: BaseException | None) -> None:
        """Tell the others that the run is over; if all is well, wait until they know, as the store goes with us."""
        if self.store is None:
            return
        with contextlib.suppress(Exception):  # they may be gone already
            message = json.dumps({"error": None if error is None else str(error) or repr(error), "result": self.result})
            if not self.announced:
                self.store.set("plan", message)
            self.store.set("end", message)
            deadline = time.monotonic() + _GRACE_SECONDS
            others = self.process.world_size - 1
            while error is None and self.store.add("left", 0) < others and time.monotonic() < deadline:
                time.sleep(0.05)


@contextlib.contextmanager
def team_of(process: Process) -> Iterator[Team]:
    """The team for the time of a run: an error of the first process ends the others."""
    team = Team(process)
    try:
        yield team
    except BaseException as error:
        team.end(error)
        raise
    team.end(None)


class Follower:
    """A process that is not the first, started by torchrun or SLURM."""

    def __init__(self, process: Process) -> None:
        self.store = _join(process)

    def plan(self) -> dict[str, Any]:
        """What the first process decided; waits for it as long as that lives.

        Raises:
            FailedElsewhere: If it failed.
        """
        return self._wait("plan")

    def end(self) -> dict[str, Any]:
        """Wait for the end of the run, as the model is there only then; ``result`` of what the first process says.

        Raises:
            FailedElsewhere: If the first process failed.
        """
        try:
            return self._wait("end")
        finally:
            with contextlib.suppress(Exception):
                self.store.add("left", 1)

    def blame_first(self, error: Exception) -> None:
        """If the run failed because the first process did, say so instead of what that looked like from here.

        Raises:
            FailedElsewhere: If the first process failed, or is gone.
        """
        if isinstance(error, VitembedError):
            return
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            with contextlib.suppress(RuntimeError):
                if not self.store.check(["end"]):
                    time.sleep(0.1)
                    continue
            self.end()
            return

    def _wait(self, key: str) -> dict[str, Any]:
        try:
            while not self.store.check([key]):
                time.sleep(0.1)
            message: dict[str, Any] = json.loads(self.store.get(key))
        except RuntimeError:  # torch's network errors: the process that keeps the store is gone
            message = {"error": "the first process of the run is gone"}
        if message.get("error") is not None:
            time.sleep(_LAST_WORD_SECONDS)
            raise FailedElsewhere(message["error"])
        return message


def _join(process: Process) -> Store:
    """The store in which torchrun's or SLURM's processes leave word for each other.

    Raises:
        TrainingError: If the others do not come.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    if process.launcher == "slurm":
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        try:
            place = SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise ConfigError(f"SLURM: {error}") from error
        # Read by the line below, and by Lightning later.
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.main_address, str(place.main_port)
    timeout = timedelta(minutes=_JOIN_MINUTES)
    url = f"env://?rank={process.rank}&world_size={process.world_size}"
    try:
        store, _, _ = next(iter(rendezvous(url, timeout=timeout)))
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"process {process.rank} of {process.world_size} waited {_JOIN_MINUTES} minutes for the others: start them "
            f"together, with {'srun' if process.launcher == 'slurm' else 'torchrun'}"
        ) from error
    return PrefixStore(f"vitembed/{next(_calls)}", store)
